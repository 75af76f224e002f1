"""Sharing a bundle in the hub's conventions: a folder with the bundle and a model card, from a disk or from the Hub.

save_pretrained("runs/demo", "shared/demo", license="apache-2.0")
model = from_pretrained("shared/demo")                      # a folder: never touches the network
push_to_hub("shared/demo", "me/demo")                       # the only function that sends anything
model = from_pretrained("me/demo", revision="main")
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img.bundle import add_task_to_bundle, basis_path, bundle_folder, check_has_tasks, read_bundle, save_backbone, task_path
from img2img.errors import InputError, first_line
from img2img.extras import require
from img2img.files.atomic import clear_leftovers, sync_folder, temporary_beside
from img2img.files.json_files import read_json, write_json
from img2img.files.lock import NAME
from img2img.files.paths import expanded
from img2img.files.writable import check_writable
from img2img.hub.card import model_card
from img2img.masks import MaskedNetwork

if TYPE_CHECKING:
    from img2img.inference import Model

__all__ = ["FILES", "from_pretrained", "pretrained_folder", "push_to_hub", "save_pretrained"]

FILES = ("README.md", "config.json", "bundle.json", "backbone.safetensors", "tasks/*.safetensors", "bases/*.safetensors")
"""All that such a folder holds; nothing else is fetched or sent. The Hub counts downloads by `config.json`."""

_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")


def save_pretrained(
    source: str | os.PathLike[str] | MaskedNetwork,
    folder: str | os.PathLike[str],
    *,
    results: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a bundle with a model card into `folder`, which then is the new one whole, or as it was.

    Args:
        source: a bundle, or a run's folder, whose `results.json` and `config/` then enter the card; or a network whose
            tasks have the options of `tasks.build_task` in `state(name).info["task"]`, as loaded ones have; writing freezes them.
        folder: new, empty, or such a folder, which is replaced.
        results: a run's `results.json` or its contents, for the card; None takes that of the run's folder, if there is one.
        license: of the weights, as the Hub names licences ("apache-2.0"); None leaves it out.
        repo_id: the name that the card's example loads; None for the folder's name.

    Raises:
        InputError: no bundle there, a file of it is missing, results of another backbone, or a `folder` with other files.
    """
    require("huggingface_hub", extra="hub", what="a model card")
    folder = expanded(folder).absolute()
    _check_replaceable(folder)
    check_writable(folder.parent, "the folder's parent")
    clear_leftovers(folder.parent)
    temporary = temporary_beside(folder)
    try:
        run = None
        if isinstance(source, MaskedNetwork):
            _write_network(source, temporary)
        else:
            bundle = _bundle_in(expanded(source))
            run = bundle.parent if bundle.name == "bundle" and (bundle.parent / "results.json").is_file() else None
            _copy_bundle(bundle, temporary)
        description = read_bundle(temporary)
        check_has_tasks(expanded(source) if isinstance(source, str | os.PathLike) else temporary, description)
        found = results if results is not None or run is None else run / "results.json"
        values = dict(found) if isinstance(found, Mapping) else None if found is None else read_json(found)
        card = model_card(temporary, name=repo_id or folder.name, results=values, run=run, license=license)
        (temporary / "README.md").write_text(str(card), encoding="utf-8")
        config = {"library_name": "img2img", "backbone": description["spec"], "tasks": description["tasks"]}
        write_json(temporary / "config.json", config)
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def pretrained_folder(
    name_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a shared bundle: the one given, or the cache's copy of a repository, fetched if need be.

    Args:
        name_or_folder: a folder, which is taken as it is; else the name of a repository on the Hub, "owner/name".
        revision: a branch, tag or commit of the repository; None for its main branch.
        cache_dir: where copies are kept; None for the Hub's own cache.
        token: for private repositories; None for the one that `hf auth login` stored.
        local_files_only: take the cache's copy and ask nobody.

    Raises:
        InputError: no such folder or repository, no connection, or no bundle in it.
    """
    if expanded(name_or_folder).is_dir():
        return _bundle_in(expanded(name_or_folder))
    name = os.fspath(name_or_folder)
    if isinstance(name_or_folder, Path) or not _REPO.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"no folder {name}: expected a folder that save_pretrained wrote, a bundle or a run, or the name of a repository on "
            "the Hub such as owner/name; check the path"
        )
    hub = _hub()
    options = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    fetched = _asking(
        lambda: hub.snapshot_download(name, allow_patterns=list(FILES), **options),
        what=f"the repository {name!r} (there is no folder of that name)",
    )
    return _bundle_in(Path(fetched))


def from_pretrained(
    name_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Model:
    """Open a shared bundle; a folder without touching the network. Nothing in it is ever run or unpickled.

    Args:
        name_or_folder: see `pretrained_folder`.
        revision: see `pretrained_folder`.
        cache_dir: see `pretrained_folder`.
        token: see `pretrained_folder`.
        local_files_only: see `pretrained_folder`.
        options: of `img2img.load`, such as `device`.

    Raises:
        InputError: see `pretrained_folder` and `img2img.load`.
    """
    from img2img.inference import load

    folder = pretrained_folder(
        name_or_folder, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return load(folder, **options)


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload a bundle of img2img",
) -> str:
    """Send a folder that `save_pretrained` wrote to the Hub; returns the address of the commit.

    Args:
        folder: the folder; of its files only `FILES` are sent.
        repo_id: "owner/name"; the repository is made if there is none.
        private: of a new repository; an existing one stays as it is.
        token: with the right to write; None for the one that `hf auth login` stored.
        revision: the branch; None for the main one.
        message: of the commit.

    Raises:
        InputError: the folder has no bundle or no card, or the Hub refuses or cannot be reached.
    """
    folder = expanded(folder)
    read_bundle(folder)
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder} has no model card (README.md): write the folder with save_pretrained first")
    api = _hub().HfApi(token=token)

    def send() -> Any:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message, allow_patterns=list(FILES)
        )

    return str(getattr(_asking(send, what=f"the repository {repo_id!r}"), "commit_url", repo_id))


# ---------------------------------------------------------------------- the Hub


def _hub() -> Any:
    """`huggingface_hub`, told to report nothing about its use unless the user asked for it."""
    chosen = "HF_HUB_DISABLE_TELEMETRY" in os.environ
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    hub = require("huggingface_hub", extra="hub", what="the Hub")
    if not chosen:
        # Another package may have imported it before.
        require("huggingface_hub.constants", extra="hub", what="the Hub").HF_HUB_DISABLE_TELEMETRY = True
    return hub


def _asking(call: Callable[[], Any], *, what: str) -> Any:
    """Run `call`, with whatever the Hub or the network answers as one message."""
    import httpx
    from huggingface_hub import errors

    unresolved = getattr(errors, "RevisionResolutionError", OSError)  # since huggingface_hub 2
    try:
        return call()
    except (OSError, errors.HFValidationError, unresolved, httpx.HTTPError) as error:
        raise _unreachable(what, error) from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # what the client raises of a proxy that it cannot use
        proxies = sorted(key for key in os.environ if key.lower().endswith("_proxy"))
        if not proxies:
            raise
        raise InputError(
            f"{what} cannot be asked for through the proxy that the environment names ({', '.join(proxies)}; {error}): correct "
            "or unset the variable; a SOCKS proxy needs `pip install 'httpx[socks]'`"
        ) from error


def _unreachable(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} could not be reached ({type(error).__name__}: {first_line(error)}): expected a repository that you may use, and "
        "a connection or a copy in the cache. Check the name and the revision; `hf auth login` or token= for a private one; "
        "without a connection, give a folder"
    )


# ---------------------------------------------------------------------- folders


def _bundle_in(folder: Path) -> Path:
    folder = bundle_folder(folder)
    read_bundle(folder)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Raise `InputError` unless `folder` is new, empty, or holds a bundle and nothing else."""
    if not folder.exists():
        return
    known = {NAME, *(pattern.split("/")[0] for pattern in FILES)}  # a lock may lie there, of a process that was killed
    odd = sorted(entry.name for entry in folder.iterdir() if entry.name not in known) if folder.is_dir() else [folder.name]
    if odd or (any(folder.iterdir()) and not (folder / "bundle.json").is_file()):
        raise InputError(
            f"{folder} holds something else than a shared bundle ({', '.join(odd[:3]) or 'no bundle.json'}): expected a new or "
            "empty folder, or one that save_pretrained wrote; choose another"
        )


def _copy_bundle(bundle: Path, target: Path) -> None:
    description = read_bundle(bundle)
    files = [bundle / "bundle.json", bundle / "backbone.safetensors"]
    files += [task_path(bundle, task) for task in description["tasks"]]
    files += [basis_path(bundle, sha256) for sha256 in dict.fromkeys(description["bases"].values())]
    for file in files:
        name = file.relative_to(bundle)
        if not file.is_file():
            raise InputError(f"no {name.as_posix()} in {bundle}: copy the bundle again, whole")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)


def _write_network(network: MaskedNetwork, target: Path) -> None:
    spec = getattr(network.backbone, "spec", None)
    if spec is None:
        raise InputError(
            f"the network's backbone is a {type(network.backbone).__name__}: expected one of img2img.backbones, which a bundle "
            "can build again; save your own network's tasks with network.save_task"
        )
    infos = {name: network.state(name).info for name in network.tasks()}
    bare = [name for name, info in infos.items() if "task" not in info]
    if bare:
        raise InputError(
            f"the tasks {bare[:5]} do not say what they are: put build_task's options into network.state(name).info['task']"
        )
    save_backbone(target, network, spec, list(network.roles.masked))
    for name, info in infos.items():
        add_task_to_bundle(target, network, name, options=info["task"], info={})


def _replace(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`; at every moment one of the two is there, whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        if old.exists() and not folder.exists():  # it failed, or Ctrl-C came between the two
            os.replace(old, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
