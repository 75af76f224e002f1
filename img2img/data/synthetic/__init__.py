"""Datasets that are rendered, the same on every machine."""
