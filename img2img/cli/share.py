"""`img2img share`: a bundle with a model card, and the hub."""

from pathlib import Path
from typing import Annotated

import typer

from img2img.cli.options import Bundle

app = typer.Typer(help="Share a bundle: a folder with a model card, sent to the hub only when told to.", no_args_is_help=True)


@app.command()
def save(
    bundle: Bundle,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or one that this command wrote.")],
    license: Annotated[str | None, typer.Option(help="Of the weights, as the hub names licences: apache-2.0.")] = None,
) -> None:
    """Write a bundle in the hub's conventions, with a model card made from its results. Nothing is sent.

    Example: img2img share save runs/demo shared/demo --license apache-2.0
    """
    from img2img.hub import save_pretrained

    typer.echo(str(save_pretrained(bundle, folder, license=license)))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `img2img share save` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The hub's repository; made if there is none.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository is private otherwise.")] = False,
) -> None:
    """Send a saved folder to the hub, under the account of `hf auth login`.

    Example: img2img share push shared/demo me/demo
    """
    from img2img.hub import push_to_hub

    typer.echo(push_to_hub(folder, repository, private=not public))
