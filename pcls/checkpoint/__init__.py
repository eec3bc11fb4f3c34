"""Checkpoints: saved in the background, proven by digests, walked back over when damaged."""
