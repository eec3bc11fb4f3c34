"""Layers in JAX, and the split of a module into a graph definition and plain arrays."""
