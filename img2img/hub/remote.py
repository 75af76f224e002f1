"""The Hub: bundles fetched from it by name, and sent to it."""

import importlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from img2img import validation
from img2img.bundle import bundle_folder, check_bundle, read_bundle
from img2img.bundle.packaged import near_packaged
from img2img.errors import InputError, first_line
from img2img.extras import require
from img2img.hub.folder import FILES, bundle_in, check_card, files_of, save_pretrained
from img2img.inference import Model, load
from img2img.masks import MaskedNetwork
from img2img.validation.arguments import shown

_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")


def pretrained_folder(
    name_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a shared bundle: the one given, one that comes with img2img, or the cache's copy of a repository, fetched if
    need be.

    Args:
        name_or_folder: a folder, which is taken as it is; else the name of a bundle that comes with img2img, such as "starter",
            or of a repository on the Hub, "owner/name".
        revision: a branch, tag or commit of the repository; None for its main branch.
        cache_dir: where copies are kept; None for the Hub's own cache.
        token: for private repositories; None for the one that `hf auth login` stored.
        local_files_only: take the cache's copy, without a connection.

    Raises:
        InputError: no such folder or repository, no connection, no bundle in it, or a revision of a folder.
    """
    folder = bundle_folder(name_or_folder)
    if folder.is_dir():
        if revision is not None:
            raise InputError(
                f"revision={shown(revision)}: {folder} is a folder on this machine, which has no revisions: leave revision out "
                "to open the folder; to fetch the repository of that name, work in another directory, or rename the folder"
            )
        return bundle_in(folder)
    name = os.fspath(name_or_folder)
    if isinstance(name_or_folder, Path) or not _REPO.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"no folder {name}: expected a folder that save_pretrained wrote, a bundle or a run, or the name of a repository on "
            "the Hub such as owner/name; check the path"
        )
    if near := near_packaged(name):
        raise InputError(
            f"no folder {name}: {near}expected a folder, a bundle that comes with img2img, or a repository such as owner/{name}"
        )
    hub = _hub()
    options = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    fetched = _asking(
        lambda: hub.snapshot_download(name, allow_patterns=list(FILES), **options),
        what=f"the repository {name!r} (there is no folder of that name)",
    )
    return bundle_in(Path(fetched))


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
    folder = pretrained_folder(
        name_or_folder, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return load(folder, **options)


def push_to_hub(
    source: str | os.PathLike[str] | MaskedNetwork,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Send a bundle with a model card to the Hub; returns the address of the commit.

    Args:
        source: what `save_pretrained` takes, a model card is then written first; or a folder that `save_pretrained` wrote, which
            is sent as it is. Only its card, its `config.json` and the files that the bundle lists are sent. Files of tasks and
            bases that the repository has and the bundle has not are deleted there in the same commit; its history keeps them.
        repo_id: "owner/name"; the repository is made if there is none.
        private: of a new repository; an existing one stays as it is.
        license: see `save_pretrained`.
        token: with the right to write; None for the one that `hf auth login` stored.

    Raises:
        InputError: no bundle there, or a damaged one, a license for a folder that has its card already, a card of other tasks
            than the bundle has, a name that no repository can have, or the Hub refuses or cannot be reached.
    """
    validation.text("repo_id", repo_id, "owner/name")
    _check_name(repo_id)
    validation.flag("private", private)
    folder = None if isinstance(source, MaskedNetwork) else bundle_in(validation.path("source", source))
    if folder is not None and (folder / "README.md").is_file():
        if license is not None:
            raise InputError(
                f"license={license!r}: {folder} has a model card (README.md) already: expected a license only where a card is to "
                "be written. Leave it out, or write the folder anew with save_pretrained(..., license=...)"
            )
        check_card(folder)
        check_bundle(folder)
        return _send(folder, repo_id, private=private, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(source, Path(temporary) / "bundle", license=license, repo_id=repo_id)
        return _send(folder, repo_id, private=private, token=token)


def _send(folder: Path, repo_id: str, *, private: bool, token: str | bool | None) -> str:
    """Send a folder with a model card; returns the address of the commit."""
    api = _hub().HfApi(token=token)
    sent = ["README.md", "config.json", *(name.as_posix() for name in files_of(read_bundle(folder)))]

    def send() -> Any:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload a bundle of img2img", allow_patterns=sent,
            delete_patterns=[pattern for pattern in FILES if "*" in pattern],
        )  # fmt: skip

    return str(getattr(_asking(send, what=f"the repository {repo_id!r}"), "commit_url", repo_id))


def _check_name(repo_id: str) -> None:
    """Refuse a name that no repository can have, before anything is asked for or written."""
    _hub()
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"repo_id={shown(repo_id)} is no name of a repository ({first_line(error)}): expected owner/name, of letters, "
            "digits, '-', '_' and '.'; correct it"
        ) from error


def _hub() -> Any:
    """`huggingface_hub` with its telemetry switched off, unless the user's environment switches it on."""
    chosen = "HF_HUB_DISABLE_TELEMETRY" in os.environ
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    hub = require("huggingface_hub", extra="hub", what="the Hub")
    if not chosen:
        # Another package may have imported it before.
        require("huggingface_hub.constants", extra="hub", what="the Hub").HF_HUB_DISABLE_TELEMETRY = True
    return hub


def _asking(call: Callable[[], Any], *, what: str) -> Any:
    """Run `call`, with whatever the Hub or the network answers as one message."""
    from huggingface_hub import errors

    # The HTTP client's own exceptions: its client is httpx before huggingface_hub 2, httpx2 since.
    client = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    unresolved = getattr(errors, "RevisionResolutionError", OSError)  # since huggingface_hub 2
    try:
        return call()
    except (OSError, errors.HFValidationError, unresolved, client.HTTPError) as error:
        raise _unreachable(what, error) from error
    except (ImportError, ValueError, client.InvalidURL) as error:  # what the client raises of a proxy that it cannot use
        proxies = sorted(key for key in os.environ if key.lower().endswith("_proxy"))
        if not proxies:
            raise
        raise InputError(
            f"{what} cannot be asked for through the proxy that the environment names ({', '.join(proxies)}; {error}): correct "
            f"or unset the variable; a SOCKS proxy needs `pip install '{client.__name__}[socks]'`"
        ) from error


def _unreachable(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} could not be reached ({type(error).__name__}: {first_line(error)}): expected a repository that you may use, and "
        "a connection or a copy in the cache. Check the name and the revision; `hf auth login` or token= for a private one; "
        "without a connection, give a folder"
    )
