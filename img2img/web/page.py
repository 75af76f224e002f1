"""The page: an image, a task or all of them, input and output under one slider, and what the masks look like."""

import functools
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from img2img import formatting
from img2img.formatting import escape
from img2img.tasks.segmentation import palette
from img2img.web.api import png
from img2img.web.gradio_allowlist import Inputs
from img2img.web.limits import RefusedError
from img2img.web.masks_tab import mask_figures, task_table
from img2img.web.sample_images import sample_images
from img2img.web.service import Service
from img2img.web.temporary_images import TemporaryImages

ALL = "all tasks"
MAX_BUTTONS = 12
"""Up to this many tasks are shown as buttons, more as a list."""

CSS = """
#about p {color: color-mix(in srgb, var(--body-text-color) 75%, transparent); margin: 0}
#status {min-height: 1.6em}
#status .refused {border-left: 4px solid var(--error-icon-color, #b91c1c); padding-left: .6em}
#samples {display: grid; grid-template-columns: repeat(6, 1fr); gap: .4rem}
#samples button {flex-direction: column; min-width: 0; padding: 3px; gap: 2px; font-weight: 400; font-size: var(--text-xs);
  background: none; border: 1px solid var(--border-color-primary); overflow: hidden}
#samples button:hover, #samples button:focus-visible {border-color: var(--color-accent)}
#samples img {width: 100%; height: auto; aspect-ratio: 1; object-fit: cover; margin: 0; border-radius: 4px}
@media (max-width: 480px) {#samples {grid-template-columns: repeat(3, 1fr)}}
.legend {display: flex; flex-wrap: wrap; gap: .3em .9em; padding: 0 !important; margin: 0 !important; list-style: none !important;
  font-size: var(--text-sm)}
.legend li {display: flex; align-items: center; gap: .35em; margin: 0 !important}
.legend span {width: .9em; height: .9em; border-radius: 3px; border: 1px solid #0004}
.wide {overflow-x: auto}
table.tasks {border-collapse: collapse; width: 100%}
table.tasks, table.tasks * {border: 0 !important}
table.tasks th, table.tasks td {text-align: left; padding: .45em .8em; white-space: nowrap;
  border-bottom: 1px solid var(--border-color-primary) !important}
.figures {display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin-top: 1rem}
.figures .card {flex: 1 1 300px; max-width: 640px; margin: 0; padding: .75rem; background: #fff; border-radius: 8px;
  border: 1px solid var(--border-color-primary)}
.figures svg {width: 100%; height: auto; display: block}
"""


def theme() -> Any:
    """Gradio's own look, in the fonts that the machine has."""
    return gr.themes.Default(
        primary_hue="indigo", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"), text_size="md"
    )


def build_page(service: Service, folder: TemporaryImages) -> gr.Blocks:
    """The page as Gradio's `Blocks`; `server.build_app` mounts it."""
    tasks = service.tasks
    choices = [*tasks, *([ALL] if len(tasks) > 1 else [])]
    first = choices[0]
    chooser: Any = gr.Radio if len(choices) <= MAX_BUTTONS else gr.Dropdown
    # The choices stay as they are, whatever the task: Gradio refuses a value that was not among the choices of a moment ago.
    forms = list(dict.fromkeys(form for task in tasks if len(_forms(service, task)) > 1 for form in _forms(service, task)))
    samples = sample_images(folder)

    async def run(image: str | None, task: str, form: str | None, request: gr.Request) -> list[Any]:
        if image is None:
            return _refused("choose an image first: upload one, paste one, or take a sample")
        names = list(tasks) if task == ALL else [task]
        chosen = None if task == ALL else _form(service, task, form)
        disconnected = None if request.request is None else request.request.is_disconnected
        try:
            with service.admitted():
                answer = await service.run(names, Path(image), finish=finish, form=chosen, disconnected=disconnected)
        except RefusedError as refused:
            return _refused(refused.message)
        said = f"{task}: {answer.size[0]} × {answer.size[1]} pixels in {formatting.duration(answer.seconds)}"
        if task == ALL:
            return _outputs(said, gallery=list(answer.results.values()), captions=names)
        result = answer.results[task]
        if isinstance(result, dict):
            return _outputs(said, scores=result)
        legend = _legend(tasks[task].classes) if tasks[task].kind == "segmentation" else ""
        return _outputs(said, pair=(image, result), legend=legend)

    def finish(result: Any) -> Any:
        return str(folder.add(png(result), ".png")) if isinstance(result, Image.Image) else result

    with gr.Blocks(title="img2img", analytics_enabled=False) as page:
        _html(_about(service), elem_id="about")
        with gr.Tab("Images"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,  # the file as it is
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=280,
                    placeholder="# Drop an image here\nor click to choose one",
                    elem_id="image",
                    alt_text="the image that the task runs on",
                )
                with gr.Row(elem_id="samples"):
                    for name, path in samples.items():
                        sample = gr.Button(name, icon=path)
                        sample.click(functools.partial(str, path), None, image, **_QUICK)
                task = chooser(choices, value=first, label="Task", elem_id="task")
                form = gr.Radio(
                    forms, value=next(iter(forms), None), label="Form", visible=len(_forms(service, first)) > 1, elem_id="form"
                )
                button = gr.Button("Run", variant="primary", elem_id="run")
            with gr.Column(scale=3, min_width=300):
                slider = gr.ImageSlider(
                    label="Input | output", type="filepath", format="png", interactive=False, max_height=620, elem_id="slider"
                )
                gallery = gr.Gallery(
                    label="Outputs", format="png", columns=3, height="auto", object_fit="contain", visible=False,
                    interactive=False, buttons=["download", "fullscreen"], elem_id="gallery",
                )  # fmt: skip
                scores = gr.Label(label="Classes", num_top_classes=5, visible=False, elem_id="scores")
                status = _html(_status(""), elem_id="status")
                legend = _html("", elem_id="legend")
        with gr.Tab("Masks"):
            _html(task_table(tasks) + mask_figures(service.model), elem_id="masks")
        task.change(lambda task: gr.update(visible=len(_forms(service, task)) > 1), task, form, **_QUICK)
        outputs = [slider, gallery, scores, status, legend]
        button.click(run, [image, task, form], outputs, trigger_mode="once", show_progress="minimal", **_EVENT)
    return page


def page_inputs(page: gr.Blocks) -> Inputs:
    """What each function of the page takes, for `GradioAllowlist`."""
    return {number: [_values(block) for block in function.inputs] for number, function in page.fns.items()}


def _values(block: Any) -> frozenset[str] | None:
    if isinstance(block, gr.Image):
        return None
    return frozenset(value for _, value in block.choices)


_EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "queue": False}
"""Of every event: Gradio's own API does not show it, and how many run at once is for the service to say, not for Gradio's queue,
which keeps the results of whoever does not fetch them, and can lose the answer to an event that follows another closely."""

_QUICK: dict[str, Any] = {**_EVENT, "show_progress": "hidden"}
"""Of those beside the button."""


def _html(content: str, **options: Any) -> gr.Markdown:
    """HTML of our own, in which names from the bundle are escaped. `gr.HTML` would evaluate scripts, which the page forbids."""
    return gr.Markdown(content, sanitize_html=False, latex_delimiters=[], **options)


def _forms(service: Service, task: str) -> list[str]:
    """The forms a user may choose among; scores are always shown as such."""
    forms = list(service.tasks[task].forms) if task != ALL else ["image"]
    return ["scores"] if "scores" in forms else forms


def _form(service: Service, task: str, form: str | None) -> str:
    """`form`, or the task's first where it is one of other tasks."""
    forms = _forms(service, task)
    return form if form in forms else forms[0]


def _outputs(
    said: str,
    *,
    pair: tuple[str, Any] | None = None,
    gallery: list[Any] | None = None,
    captions: list[str] | None = None,
    scores: dict[str, float] | None = None,
    legend: str = "",
) -> list[Any]:
    """What the five outputs become, of which one is shown."""
    images = list(zip(gallery or [], captions or [], strict=True))
    return [
        gr.update(value=pair, visible=pair is not None),
        gr.update(value=images or None, visible=bool(images)),
        gr.update(value=scores, visible=scores is not None),
        _status(said),
        legend,
    ]


def _refused(message: str) -> list[Any]:
    """Why nothing ran, where the time would stand; what was shown before stays."""
    said = f"Not run. {message[:1].upper()}{message[1:]}."
    return [gr.update(), gr.update(), gr.update(), _status(said, kind="refused"), gr.update()]


def _status(said: str, *, kind: str = "") -> str:
    return f'<div role="status" aria-live="polite" class="{kind}">{escape(said)}</div>'


def _about(service: Service) -> str:
    count = len(service.tasks)
    what = "one frozen network, " + (f"{formatting.spelled(count)} tasks" if count > 1 else "one task")
    limit = f"Images of up to {min(service.pixels.values()) / 1e6:.2g} megapixels and {service.limits.upload_bytes / 1e6:g} MB."
    return f"<h1>img2img</h1><p>{escape(what[0].upper() + what[1:])}. {escape(limit)}</p>"


def _legend(classes: tuple[str, ...]) -> str:
    colours = palette(len(classes)).mul(255).round().int().tolist()
    items = "".join(
        f'<li><span style="background: rgb({r} {g} {b})"></span>{escape(name)}</li>'
        for name, (r, g, b) in zip(classes, colours, strict=False)
    )
    return f'<ul class="legend" aria-label="classes">{items}</ul>'
