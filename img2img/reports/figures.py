"""Learning curves as inline SVG in the colours of the page around them."""

import io
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from img2img.fonts import complete_fonts
from img2img.reports.read import Curve

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# matplotlib writes colours as they are; these stand in for the page's own, which differ between light and dark.
_COLOURS = {"ink": "#010203", "soft": "#010204", "line": "#010205", "first": "#010206", "second": "#010207"}

_LOGARITHMIC = 20
"""A loss that falls by more than this factor is drawn on a logarithmic axis."""


def learning_curve(curve: Curve, other: Curve | None, *, metric: str, kept: int | None, key: str) -> Markup:
    """The loss and the primary metric over the steps, one above the other, as an `<svg>` element for an HTML page.

    The page defines the colours `--ink`, `--soft`, `--line`, `--first` (the task) and `--second` (`other`).

    Args:
        curve: the task's training.
        other: the decoder-only training, dashed.
        metric: the primary metric's name.
        kept: the step of `curve` whose weights were kept; it gets a ring.
        key: makes the element's ids unique in its page.
    """
    options = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9, "axes.unicode_minus": True}
    with matplotlib.rc_context(options):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.8, 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, name, dash in ((upper, "loss", "training loss"), (lower, "validation", f"{metric}, validation")):
            _style(axes, dash)
            for points, colour, line in ((getattr(other, name, []), "second", "--"), (getattr(curve, name), "first", "-")):
                marker = "o" if name == "validation" else ""
                axes.plot(*_xy(points), line, color=_COLOURS[colour], linewidth=1.6, marker=marker, markersize=4)
        losses = [value for part in (curve, other) if part is not None for _, value in part.loss]
        if losses and min(losses) > 0 and max(losses) > _LOGARITHMIC * min(losses):
            upper.set_yscale("log")
        ring = [(step, value) for step, value in curve.validation if step == kept]
        lower.plot(*_xy(ring), "o", markersize=10, fillstyle="none", color=_COLOURS["first"], markeredgewidth=1.4)
        lower.set_xlabel("step", color=_COLOURS["ink"])
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        complete_fonts(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), key, label=f"Learning curve: training loss and {metric} on the validation set, by step")


def _xy(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=_COLOURS["ink"], parse_math=False)
    axes.tick_params(colors=_COLOURS["soft"], which="both", length=3)
    axes.grid(color=_COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.03, y=0.12)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_COLOURS["line"])


def _inline(svg: str, key: str, *, label: str) -> Markup:
    """matplotlib's SVG file as an element of a page: no prologue or metadata, unique ids, the page's colours and font."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    referred = {value[1:] for e in root.iter() if (value := e.get(f"{{{_XLINK}}}href", "")).startswith("#")}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name is not None and (name in referred or element.tag == f"{{{_SVG}}}clipPath"):
            element.set("id", f"{key}-{name}")
        for attribute, value in element.attrib.items():
            value = value.replace("url(#", f"url(#{key}-")
            if attribute == f"{{{_XLINK}}}href":
                value = f"#{key}-{value[1:]}"
            if attribute == "style":
                for colour, stand_in in _COLOURS.items():
                    value = value.replace(stand_in, f"var(--{colour})")
            element.set(attribute, value)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", label)
    # Safe: the parser has read it as XML, and matplotlib escapes the text in it.
    return Markup(ElementTree.tostring(root, encoding="unicode"))
