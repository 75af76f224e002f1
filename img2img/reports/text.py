"""What pages say: one sentence on each metric, kind of task and method; numbers; and the templates that show them."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from img2img.formatting import DASH, count, duration, gain, number, percent, signed, size, spelled

__all__ = [
    "ANY_COLUMNS", "COLUMNS", "COMPARISONS", "DASH", "METHODS", "METRICS", "count", "described", "duration", "gain", "number",
    "page_template", "percent", "signed", "size", "spelled",
]  # fmt: skip

METRICS = {
    "mIoU": (
        "↑",
        "how well the areas of the classes are found: for each class, the pixels that prediction and truth share, divided by "
        "those that either has (intersection over union); then the mean over the classes. 1 is perfect",
    ),
    "pixel accuracy": ("↑", "the fraction of pixels with the right class. 1 is perfect"),
    "boundary F1": (
        "↑",
        "how well the outlines of the classes are found: the share of outline pixels, of prediction and truth together (F1), "
        "that have a match within 0.75 % of the image's diagonal. 1 is perfect",
    ),
    "ab error": ("↓", "the squared error of the two colour channels (a and b of CIE Lab); lightness is given and does not count"),
    "AuC": (
        "↑",
        "how near the colours are to the true ones, all pixels counting alike: the share of pixels within a distance in a and b, "
        "averaged over distances from 0 to 150. 1 is perfect; a grey copy of photographs has about 0.9",
    ),
    "balanced AuC": (
        "↑",
        "likewise, each true colour counting alike, however rare. 1 is perfect; a grey copy has about 0.65",
    ),
    "delta E": ("↓", "the mean distance between the colours in CIE Lab; about 2 is just visible"),
    "CIEDE2000": ("↓", "the mean difference between the colours as eyes judge it, lightness included; about 1 is just visible"),
    "colourfulness ratio": (
        "",
        "how colourful the images are (Hasler and Süsstrunk), divided by how colourful the true ones are: 1 is as colourful, "
        "below 1 paler; a grey copy has 0",
    ),
    "LPIPS": (
        "↓",
        "how different two images look: the distance between the features of the network in brackets, weighted as people "
        "judged. 0 is the same image",
    ),
    "DISTS": ("↓", "likewise, tolerant of another sample of the same texture. 0 is the same image"),
    "KID": (
        "↓",
        "how far the set of images is from the set of true ones, by the features of the network in brackets: about 0 is as like "
        "photos as other photos are; values over different networks cannot be compared",
    ),
    "SSIM": (
        "↑",
        "structural similarity: compares local brightness, contrast and structure with the target's; for a style, with the "
        "photo's. 1 is the same image",
    ),
    "MSE": ("↓", "mean squared error of the pixel values on the scale 0 to 255"),
    "light-matched MSE": (
        "↓",
        "MSE after each prediction got the one gain and offset that fit its truth best: a wrong guess of the light is no error",
    ),
    "PSNR": ("↑", "peak signal-to-noise ratio in decibels: the mean squared error on a logarithmic scale"),
    "total style loss": (
        "↓",
        "how far an image is from having the style image's textures and colours while keeping the photo's content, as a "
        "perceptual network sees both",
    ),
    "style loss": ("↓", "the part of the total style loss for textures and colours"),
    "content loss": ("↓", "its part for the photo's content; an unchanged photo has none"),
    "total variation": ("↓", "the mean difference between neighbouring pixels, before its weight in the total style loss"),
}
"""By metric: the direction that is better, and what it measures; see `described`."""


def described(name: str) -> tuple[str, str] | None:
    """What `METRICS` says of a metric, whose name may end with its network: "LPIPS (vgg16)"; None for one that it lacks."""
    return METRICS.get(name.partition(" (")[0])


COLUMNS = {
    "segmentation": ("the image", "the class the network gives each pixel, in colours", "the true classes"),
    "colourisation": ("the lightness of a photo", "the photo as the network colours it", "the photo itself"),
    "style": ("a photo", "the photo as the network paints it", "the style image"),
    "edges": ("the edges of a photo", "the image the network makes of them", "the photo itself"),
    "super_resolution": ("a photo of fewer pixels, enlarged", "the photo with the network's detail", "the photo itself"),
    "denoising": ("a photo with noise added", "the photo as the network cleans it", "the photo itself"),
}
"""By kind of task: what its image's columns show."""

ANY_COLUMNS = ("the input of the network", "its output", "the target")

METHODS = {
    "piggyback": "one bit for each weight (or kernel), which keeps it or sets it to zero",
    "affine": "one bit for each weight and four numbers for each layer, which mix weight, constant, bit and their product",
    "ksm": "one bit for each kernel, and a scale for those that the bit would drop",
    "supsup": "one bit for each weight, set for a fixed fraction of them",
    "sparse_signs": "a sign or nothing for each weight, and one number for each output channel by which the signs move weights",
    "dense_signs": "a sign for each weight, and one number for each output channel by which all weights are moved",
    "impresslearn": "one number for each mask of a shared basis and each layer",
    "identity": "none at all: every weight is kept",
}
"""By mask method: what a mask is."""

COMPARISONS = {
    "scratch": "Each task trained an independent network, from random weights.",
    "finetune": "Each task trained a copy of the backbone, all of it.",
    "decoder_only": "The encoder is shared and frozen; each task trained its own decoder and last layer.",
    "head_only": "Everything but the last layer is shared and frozen; each task trained its last layer.",
    "sequential": "One network was fine-tuned from task to task, so later tasks change the outputs of earlier ones.",
    "lwf": "One network was fine-tuned from task to task; a penalty kept its earlier outputs on the new images (LwF).",
    "ewc": "One network was fine-tuned from task to task; a penalty kept the weights that earlier tasks need (EWC).",
    "packnet": "Each task kept a part of one network's weights; the rest was pruned and left to later tasks (PackNet).",
    "cpg": "As PackNet, and each task picked among the weights of earlier ones by a mask (CPG, without expansion).",
    "joint": "One network was trained on all tasks at once, each in turn.",
}
"""By comparison method: how the tasks were learned."""

_FILTERS = (number, signed, percent, gain, count, size, duration, spelled)


@cache
def page_template(package: str, folder: str) -> Template:
    """`page.html.jinja` of a folder of a package; everything that it shows is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {show.__name__: show for show in _FILTERS}
    return environment.get_template("page.html.jinja")
