"""What the tasks' masks look like: the figures of density and similarity, as SVG."""

import io

from img2img.inference import Model
from img2img.masks.analysis import density_table, similarity

FIGURES = ("density", "similarity")


def mask_figures(model: Model) -> dict[str, tuple[str, bytes]]:
    """What each figure shows, in a sentence, and its SVG, by `FIGURES`; none where no task has a binary mask."""
    from img2img.masks.plots import density_figure, effect_words, similarity_figure

    rows = density_table(model.network)
    if all(row.affected is None for row in rows):
        return {}
    words = effect_words(row.effect for row in rows).capitalize()
    shown = {"density": (f"{words} weights of each task's mask, by layer", _svg(density_figure(rows), "density"))}
    masked = tuple(dict.fromkeys(row.task for row in rows if row.density is not None))
    if len(masked) > 1:
        names, matrix = similarity(model.network, masked)
        label = "Ratio of equal values of every two tasks' masks"
        shown["similarity"] = (label, _svg(similarity_figure(names, matrix), "similarity"))
    return shown


def _svg(figure: object, key: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Text as outlines: the page shows the same on any machine, whatever fonts it has.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    return buffer.getvalue()
