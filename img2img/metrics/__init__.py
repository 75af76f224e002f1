"""How results are measured: pure functions for the maths, `torchmetrics.Metric` objects for the state of a whole set.

- `segmentation`: mIoU, pixel accuracy and IoU of each class, from one confusion matrix over the set; boundary F1.
- `accuracy`: top-1, top-5 and the accuracy of each class of a classification.
- `image_quality`: SSIM, MSE on the 0..255 scale and PSNR.
- `colour`: the squared ab error of a colouring, CIE76 and CIEDE2000 colour differences, and the colourfulness ratio.
- `colour_accuracy`: the share of colours that are about right, of all pixels and of all colours alike.
- `colour_classes`: bins of ab, their frequencies and weights.
- `perceptual`: LPIPS, DISTS and KID over a network whose weights are a local file.
- `style`: Gram style loss, content loss and total variation; the same numbers serve as training loss and as metric.
- `per_image`: a mean over images, the base of most of the above, and the checks of their inputs.
- `extra_metrics`: metrics of torchmetrics in addition to those of a task.
- `names`: metrics of several objects as one mapping.
- `sequence`: skills relative to a baseline, backward and forward transfer, forgetting. Plain Python.

Every metric object has `update`, `compute` and `reset`. `compute` returns a `dict[str, float]` of plain floats, and raises
`InputError` before anything has been measured. Batches come from any device. Of several processes one measures a whole set, so
none of them sums over processes (`sync_on_compute=False`). It knows no tasks.

This package imports nothing but plain Python by itself. What tasks use of it stands here under its name too, and its module is
imported when it is first used: torchmetrics takes as long to import as torch, and who runs a task measures nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from img2img.metrics.accuracy import AccuracyMetrics
    from img2img.metrics.colour import ColourMetrics, LabMetrics
    from img2img.metrics.colour_accuracy import ColourAccuracy
    from img2img.metrics.image_quality import ImageQualityMetrics, LightMatchedMetrics
    from img2img.metrics.segmentation import SegmentationMetrics, majority_class
    from img2img.metrics.style import StyleMetrics, StyleWeights, gram, perceptual_distance, style_terms

__all__ = [
    "AccuracyMetrics",
    "ColourAccuracy",
    "ColourMetrics",
    "ImageQualityMetrics",
    "LabMetrics",
    "LightMatchedMetrics",
    "SegmentationMetrics",
    "StyleMetrics",
    "StyleWeights",
    "gram",
    "majority_class",
    "perceptual_distance",
    "style_terms",
]

_MODULES = {
    "accuracy": ("AccuracyMetrics",),
    "colour": ("ColourMetrics", "LabMetrics"),
    "colour_accuracy": ("ColourAccuracy",),
    "image_quality": ("ImageQualityMetrics", "LightMatchedMetrics"),
    "segmentation": ("SegmentationMetrics", "majority_class"),
    "style": ("StyleMetrics", "StyleWeights", "gram", "perceptual_distance", "style_terms"),
}
_ORIGINS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_ORIGINS[name]}"), name)
    return value
