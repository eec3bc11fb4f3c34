"""Smaller models: quantized, pruned, distilled."""
