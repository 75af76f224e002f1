"""Where the YAML files of configs are: img2img's own, and the folders that a command names."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from img2img.files.paths import shipped_folder


def config_folder() -> Path:
    """The folder that holds `base.yaml`, `experiment/` and so on: see `shipped_folder`."""
    return shipped_folder("configs")


def config_folders(arguments: Sequence[str] = ()) -> list[Path]:
    """That folder, and those that the arguments of a command name by Hydra's `--config-dir` and `hydra.searchpath`."""
    found = [config_folder()]
    for argument, after in zip(arguments, (*arguments[1:], ""), strict=False):
        option, equals, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            found.append(Path(value if equals else after))
        elif option == "hydra.searchpath":
            found += [Path(path) for path in re.findall(r"file://([^,\]'\"]+)", value)]
    return found


def experiment_names(folders: Iterable[Path]) -> list[str]:
    """The experiments that YAML files in folders of configs describe."""
    return sorted({path.stem for folder in folders for path in (folder / "experiment").glob("*.yaml")})


def config_groups(folders: Iterable[Path]) -> list[str]:
    """The groups of YAML files, such as "experiment", those in groups among them ("a/b")."""
    found = [path.relative_to(folder).as_posix() for folder in folders for path in folder.glob("**/") if path != folder]
    return list(dict.fromkeys(sorted(found)))
