"""How results are measured: pure functions for the maths, `torchmetrics.Metric` objects for the state of a whole set.

- `segmentation`: mIoU, pixel accuracy and IoU of each class, from one confusion matrix over the set.
- `accuracy`: top-1, top-5 and the accuracy of each class of a classification.
- `pictures`: SSIM, MSE on the 0..255 scale and PSNR.
- `lab`: the squared ab error of a colouring, and CIE76 delta E.
- `style`: Gram style loss, content loss and total variation; the same numbers serve as training loss and as metric.
- `sequence`: skills relative to a trivial baseline, backward and forward transfer, forgetting. Plain Python.
- `decathlon`: the score of the Visual Domain Decathlon, also exported here. Plain Python.
- `change`: the largest change of an output, for the bit-for-bit check of earlier tasks.

Every metric object has `update`, `compute` and `reset`. `compute` returns a `dict[str, float]` of plain floats, and raises
`InputError` before anything has been measured. Batches come from any device: the sums stay on the metric's own, the CPU
unless it is moved. Of several processes one measures a whole set, so none of them sums over processes (`sync_on_compute=False`).
This package imports nothing but plain Python by itself, so that `sequence` and `change` need neither torchmetrics nor kornia.
"""

from img2img.metrics.decathlon import FINETUNED, DecathlonScore, decathlon_score, score_per_parameter

__all__ = ["FINETUNED", "DecathlonScore", "decathlon_score", "score_per_parameter"]
