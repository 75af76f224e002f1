"""`img2img share`: a bundle with a model card, and the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from img2img.cli.options import Bundle

app = typer.Typer(help="Share a bundle: write it with a model card, or send it to the Hub.", no_args_is_help=True)

License = Annotated[str | None, typer.Option(help="Of the weights, as the Hub names licences: apache-2.0.")]


@app.command()
def save(
    bundle: Bundle,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or one that this command wrote.")],
    license: License = None,
) -> None:
    """Write a bundle in the Hub's conventions, with a model card made from its results. Nothing is sent.

    Example: img2img share save runs/demo shared/demo --license apache-2.0
    """
    from img2img.hub import save_pretrained

    typer.echo(str(save_pretrained(bundle, folder, license=license)))


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
