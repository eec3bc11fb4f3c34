"""Weights at rest: the bundle, safe to send and to load."""
