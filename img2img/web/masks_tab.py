"""What the tasks' masks look like, as HTML for the page: a table, and the figures of density and similarity."""

import io

from img2img import formatting
from img2img.formatting import escape
from img2img.inference import Model, TaskInfo
from img2img.masks.analysis import density_table, similarity


def task_table(tasks: dict[str, TaskInfo]) -> str:
    """The tasks as an HTML table: kind, mask method, primary metric, share of weights that it acts on, bytes."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("task", "kind", "mask", "test metric", "weights", "file"))
    rows = "".join(
        f'<tr><th scope="row">{escape(info.name)}</th><td>{escape(info.kind)}</td><td>{escape(_method(info))}</td>'
        f"<td>{escape(_metric(info))}</td><td>{escape(_weights(info))}</td>"
        f"<td>{'–' if info.bytes is None else escape(formatting.size(info.bytes))}</td></tr>"
        for info in tasks.values()
    )
    return f'<div class="wide"><table class="tasks"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def mask_figures(model: Model) -> str:
    """The figures as inline SVG, or a sentence where there is nothing to draw."""
    from img2img.masks.plots import density_figure, effect_words, similarity_figure

    rows = density_table(model.network)
    if all(row.affected is None for row in rows):
        return "<p>None of these tasks has a binary mask, so there are no densities or similarities to show.</p>"
    words = effect_words(row.effect for row in rows).capitalize()
    shown = [_svg(density_figure(rows), "density", f"{words} weights of each task's mask, by layer")]
    masked = tuple(dict.fromkeys(row.task for row in rows if row.density is not None))
    if len(masked) > 1:
        names, matrix = similarity(model.network, masked)
        shown.append(_svg(similarity_figure(names, matrix), "similarity", "Ratio of equal values of every two tasks' masks"))
    return f'<div class="figures">{"".join(shown)}</div>'


def _method(info: TaskInfo) -> str:
    return "none (the backbone itself)" if info.method == "identity" else info.method


def _weights(info: TaskInfo) -> str:
    return "–" if info.affected is None else f"{100 * info.affected:.1f} % {info.effect}"


def _metric(info: TaskInfo) -> str:
    value = info.metrics.get(info.primary_metric)
    return "–" if value is None else f"{info.primary_metric} {formatting.number(value)}"


def _svg(figure: object, key: str, label: str) -> str:
    """A matplotlib figure as an element of the page."""
    import matplotlib

    buffer = io.StringIO()
    # Text as outlines: the page shows the same on any machine, whatever fonts it has.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return f'<figure class="card">{svg}</figure>'
