"""`img2img demo` and `img2img train`: the scripts of `pipelines/`, from anywhere."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

Pipeline = Literal["image_to_image", "cifar100", "imagenet_to_sketch", "decathlon", "impresslearn"]

PIPELINE_VARIABLE = "IMG2IMG_PIPELINE"
"""The environment variable that says to further processes of a training which pipeline it is."""

_CHOOSES = re.compile(r"[+~]*experiment\b|--(config-name|cfg|hydra-help|info|version|shell-completion)|-(cn|c|i|sc)\b")
"""Arguments with which a training is of an experiment that was chosen, or none is started."""


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the config, such as out=DIR or train.steps=100."),
    ] = None,
) -> None:
    """Train six tasks on images that come with the libraries, in about 14 minutes on two CPU cores.

    Writes runs/demo: bundle/, report.html, images/ and the rest of a run's folder. The same command goes on after an
    interruption.

    Example: img2img demo out=runs/mine
    """
    run_pipeline("image_to_image", ["experiment=demo", *(overrides or [])])


def train(
    context: typer.Context,
    pipeline: Annotated[Pipeline, typer.Option(help="The script whose defaults it starts from.")] = "image_to_image",
) -> None:
    """Learn the tasks of an experiment, one after another: img2img train experiment=NAME KEY=VALUE...

    What follows the options is Hydra's: KEY=VALUE changes the config, +KEY=VALUE adds to it, --config-dir DIR looks for
    experiment/NAME.yaml and the like in a folder of your own as well, --multirun runs every combination of KEY=A,B, and
    --cfg job prints the config and runs nothing. The same command goes on after an interruption; a longer sequence adds
    tasks to a finished run.

    Examples:

        img2img train experiment=demo train.steps=200 out=runs/short

        img2img train --config-dir my_configs experiment=mine

        img2img train --pipeline cifar100 experiment=cifar100_reduced data_root=DATA
    """
    if pipeline == "image_to_image" and not any(_CHOOSES.match(argument) for argument in context.args):
        from img2img.training.config_files import config_folders, experiment_names
        from img2img.training.overrides import check_overrides

        check_overrides(context.args)  # a stray word may be the name of one
        known = ", ".join(experiment_names(config_folders(context.args)))
        context.fail(f"no experiment: expected experiment=NAME, NAME one of {known}, or of your own with --config-dir")
    run_pipeline(pipeline, context.args)


def run_pipeline(pipeline: str, arguments: list[str]) -> None:
    """Run a pipeline as its script would, with Hydra's own reading of the command line.

    With `devices=N` Fabric starts the further processes as `python sys.argv[0] ...`, or by the main module where that has a
    spec. Neither is this command, so the arguments name a script that is.
    """
    import hydra

    from img2img.cli import pipeline as pipelines
    from img2img.training.config_files import config_folder

    others = {"decathlon": pipelines.run_decathlon, "impresslearn": pipelines.run_study}
    run = others.get(pipeline, pipelines.run_config)
    # Hydra wants its options before or after all overrides, not among them.
    changes = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    script = str(Path(__file__).with_name("train_process.py"))
    main = sys.modules["__main__"]
    given, spec = sys.argv, main.__spec__
    os.environ[PIPELINE_VARIABLE] = pipeline
    sys.argv, main.__spec__ = [script, *(argument for argument in arguments if argument not in changes), *changes], None
    try:
        pipelines.start(
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=pipeline)(run),
            experiment=pipeline != "impresslearn",
        )
    finally:
        sys.argv, main.__spec__ = given, spec
