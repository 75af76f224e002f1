"""The command line: `img2img COMMAND`, one module a group of commands.

What a command does is imported inside it, so that `img2img --help`, completion and a mistyped command load none of it. `main`
turns a user's error into one line on stderr and exit code 1; the wrong use of a command is Typer's, with exit code 2.
"""

import sys
from typing import Annotated

try:
    import typer
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    # The mask core can be installed without it.
    sys.exit("error: the command line needs more than the mask core: pip install 'img2img[images,train]'")

from img2img.cli import add_task, evaluate, export, info, report, run, serve, share, tasks, train
from img2img.version import __version__

app = typer.Typer(
    name="img2img",
    help="One frozen network, many image tasks: train, run, export and serve them.",
    epilog="Exit codes: 0 done; 1 an error, stderr says which; 2 wrong use of a command; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"img2img {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module or .py file of your own that defines kinds of task and so on."),
    ] = None,
) -> None:
    if imports:
        from img2img.registry import import_explained

        import_explained(imports, "--import")


_HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True}
_TRAIN, _USE, _EXPORT = "Train", "Use", "Export and share"

app.command(rich_help_panel=_TRAIN)(train.demo)
app.command(rich_help_panel=_TRAIN, context_settings=_HYDRA)(train.train)
app.command(rich_help_panel=_TRAIN)(add_task.add_task)
app.command(rich_help_panel=_TRAIN)(add_task.absorb)
app.command(rich_help_panel=_TRAIN)(share.join)
app.command(rich_help_panel=_TRAIN)(share.import_adapter)
app.command(rich_help_panel=_TRAIN)(evaluate.evaluate)
app.command(rich_help_panel=_TRAIN)(report.report)
app.command(rich_help_panel=_USE)(run.run)
app.command(rich_help_panel=_USE)(serve.serve)
app.add_typer(tasks.app, name="tasks", rich_help_panel=_USE)
app.command(rich_help_panel=_USE)(info.info)
app.command(rich_help_panel=_EXPORT)(export.export)
app.command(rich_help_panel=_EXPORT)(share.export_adapter)
app.add_typer(share.app, name="share", rich_help_panel=_EXPORT)


def main() -> None:
    """Run the command of `sys.argv`; an error that the user can mend is one line on stderr and exit code 1."""
    from img2img.cli.output import one_message
    from img2img.cli.process import bound_spinning

    bound_spinning()
    with one_message():
        app(prog_name="img2img")
