"""Exact evaluation: sums in the compiled step, metrics by definition, and the report."""
