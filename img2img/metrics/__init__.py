"""How results are measured: pure functions for the maths, `torchmetrics.Metric` objects for the state of a whole set.

- `segmentation`: mIoU, pixel accuracy and IoU of each class, from one confusion matrix over the set; boundary F1.
- `accuracy`: top-1, top-5 and the accuracy of each class of a classification.
- `image_quality`: SSIM, MSE on the 0..255 scale and PSNR.
- `colour`: the squared ab error of a colouring, CIE76 and CIEDE2000 colour differences, and the colourfulness ratio.
- `perceptual`: LPIPS, DISTS and KID over a network whose weights are a local file.
- `style`: Gram style loss, content loss and total variation; the same numbers serve as training loss and as metric.
- `per_image`: a mean over images, the base of most of the above, and the checks of their inputs.
- `extra_metrics`: metrics of torchmetrics in addition to those of a task.
- `sequence`: skills relative to a baseline, backward and forward transfer, forgetting. Plain Python.
- `decathlon`: the score of the Visual Domain Decathlon, also exported here. Plain Python.

Every metric object has `update`, `compute` and `reset`. `compute` returns a `dict[str, float]` of plain floats, and raises
`InputError` before anything has been measured. Batches come from any device. Of several processes one measures a whole set, so
none of them sums over processes (`sync_on_compute=False`). This package imports nothing but plain Python by itself, so that
`sequence` needs neither torchmetrics nor kornia. It knows no tasks.
"""

from img2img.metrics.decathlon import FINETUNED, DecathlonScore, decathlon_score, score_per_parameter

__all__ = ["FINETUNED", "DecathlonScore", "decathlon_score", "score_per_parameter"]
