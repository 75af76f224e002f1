"""Datasets of images: one file a format, the embedded samples, caching, augmentation and loading."""

from img2img.data.base import DATA, VOID, Batch, ImageDataset, Sample, by_part
from img2img.data.spec import DataSpec, Parts, build_data

__all__ = ["DATA", "VOID", "Batch", "DataSpec", "ImageDataset", "Parts", "Sample", "build_data", "by_part"]
