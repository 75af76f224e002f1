"""What goes between bundles and elsewhere: `join`, adapters of PEFT and LyCORIS, and `share`, a model card and the Hub."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from img2img.cli.options import Bundle, BundleOption, Json, Overwrite, TaskName, check_folder_name, check_new, read_text
from img2img.cli.output import print_facts
from img2img.errors import InputError
from img2img.files.paths import expanded

app = typer.Typer(help="Share a bundle: write it with a model card, or send it to the Hub.", no_args_is_help=True)

License = Annotated[str | None, typer.Option(help="Of the weights, as the Hub names licences: apache-2.0.")]


@app.command()
def save(
    bundle: Bundle,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for it.")],
    license: License = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there; its card is written anew.")
    ] = False,
    notes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Markdown for the end of the card, such as the terms of images.", show_default=False),
    ] = None,
) -> None:
    """Write a bundle in the Hub's conventions, with a model card made from its results. Nothing is sent.

    Example: img2img share save runs/demo shared/demo --license apache-2.0
    """
    from img2img.hub import save_pretrained

    if not overwrite and (there := expanded(folder)).is_dir() and any(there.iterdir()):
        raise InputError(
            f"{folder} is there already, and its README.md may be edited: give another folder, or --overwrite to replace it"
        )
    text = None if notes is None else read_text(notes, "--notes", "Markdown")
    typer.echo(str(save_pretrained(bundle, folder, license=license, notes=text)))


@app.command()
def push(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle's or run's folder, or one that `img2img share save` wrote.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The Hub's repository; made if there is none.")],
    license: License = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository is private otherwise.")] = False,
) -> None:
    """Send a bundle with its model card to the Hub, under the account of `hf auth login`.

    Example: img2img share push runs/demo me/demo --license apache-2.0
    """
    from img2img.hub import push_to_hub

    typer.echo(push_to_hub(bundle, repository, license=license, private=not public))


def join(
    into: Annotated[Path, typer.Argument(metavar="INTO", help="The bundle to be; one that is there is extended.")],
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCES...", help="Bundles or runs on the same backbone.")],
    as_json: Json = False,
) -> None:
    """Put the tasks of several runs on one backbone into one bundle, as if one run had learned them all.

    Example: img2img join runs/joined runs/first runs/colour runs/edges
    """
    from img2img.bundle.join import join_bundles

    names = join_bundles(into, sources)
    typer.echo(json.dumps(names) if as_json else f"{into} has the tasks {', '.join(names)}")


def import_adapter(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="PEFT's folder, or a .safetensors file.", show_default=False)
    ],
    bundle: BundleOption,
    name: Annotated[str, typer.Option(metavar="TASK", help="What the new task is called.", show_default=False)],
    head_of: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task whose kind and head it has; may be left out where there is one.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="The kind of task, as `task` in an experiment's config; not --head-of.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add an adapter of PEFT or LyCORIS to a bundle: LoRA, DoRA, LoKr or (IA)³ of a network with the bundle's names of weights.

    The other tasks stay as they are, bit for bit. The adapter's head and normalisation layers are used where its file has them
    (modules_to_save); else the head is that of another task, and normalisation is the backbone's.

    Example: img2img import-adapter adapters/night --bundle runs/demo --name night --head-of landscape
    """
    from img2img.bundle.join import import_adapter as add_to_bundle
    from img2img.files.yaml import read_yaml

    options = None
    if config is not None:
        options = read_yaml(config, "the config of a task").get("task")
        if not isinstance(options, dict):
            raise InputError(f"{config} has no `task`: expected its kind and options, such as task: {{kind: colourisation}}")
    made = add_to_bundle(adapter, bundle, name, head_of=head_of, options=options)
    found = made.adapter
    facts: dict[str, Any] = {
        "task": made.task,
        "form": found.form,
        "method": found.method.name,
        "weights changed": len(found.values),
        "head": "the file's" if found.head else f"of {made.head_of}",
        "normalisation": "the file's" if found.norm else "the backbone's",
        "rounding": made.rounding,
        "backbone": "the one that the file names" if found.proven else "not known",
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    print_facts(facts | {"rounding": f"{made.rounding:.2%} of a weight's change at most"})
    if not found.proven:
        typer.echo(
            "Names and shapes fit. Whether the adapter was trained on this very backbone is in no file of PEFT or LyCORIS: look "
            f"at results (img2img run {made.task} ...) or metrics before you rely on it."
        )


def export_adapter(
    task: TaskName,
    bundle: BundleOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder for the files.", show_default=False)],
    form: Annotated[Literal["peft", "lycoris"], typer.Option(help="The library that reads them.")] = "peft",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a task of the method lora, dora, lokr or ia3 as an adapter that PEFT or LyCORIS loads onto the plain backbone.

    Head and normalisation go with it: as modules that PEFT saves whole, or for LyCORIS in modules.safetensors.

    Example: img2img export-adapter night --bundle runs/demo --out adapters/night
    """
    from img2img.bundle import bundle_folder, check_outside, load_bundle
    from img2img.masks.adapter_files import CONFIG, LYCORIS_FILE, MODULES_FILE, PEFT_FILE
    from img2img.masks.adapter_tasks import write_adapter

    check_outside(bundle, out)
    check_folder_name(out, ".safetensors")
    names = (PEFT_FILE, CONFIG) if form == "peft" else (LYCORIS_FILE, MODULES_FILE)
    check_new((out / name for name in names), overwrite=overwrite)
    network, _ = load_bundle(bundle_folder(bundle))
    paths = [str(path) for path in write_adapter(network, task, out, form)]
    typer.echo(json.dumps(paths) if as_json else "\n".join(paths))
