"""Datasets that lie on disk, one module for each format."""
