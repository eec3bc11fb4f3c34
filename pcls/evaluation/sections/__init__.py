"""The sections of the report: what each computes from an evaluation, and how it looks."""
