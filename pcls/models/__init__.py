"""Classifiers built from `pcls.nn`, and the registry that knows them by name."""
