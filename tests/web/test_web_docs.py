"""The examples of docs/guides/serve.md, against a service."""

import io
import json
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from web_bundles import encoded, photo, same
from web_service import ROOT


@pytest.fixture
def page(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page, of this service and its tasks, in a folder with a photo."""
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(encoded(photo(), "JPEG"))
    text = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    return text.replace("http://127.0.0.1:7860", url).replace("run/landscape", "run/disks")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
def test_with_curl(page: str, reference: Any) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    said = [
        subprocess.run([*shlex.split(line), "-sS", "--fail", "--noproxy", "*"], check=True, capture_output=True).stdout
        for line in block.splitlines()
    ]
    assert [task["name"] for task in json.loads(said[0])["tasks"]] == list(reference.tasks)
    assert same(Image.open("coloured.png"), reference.run("colour", "photo.jpg"))
    assert same(Image.open("overlay.png"), reference.run("disks", "photo.jpg", form="overlay", side=256))
    with zipfile.ZipFile("all.zip") as archive:
        assert same(Image.open(io.BytesIO(archive.read("edges.png"))), reference.run("edges", "photo.jpg"))


def test_with_python(page: str, reference: Any) -> None:
    (block,) = [found for found in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "httpx" in found]
    names: dict[str, Any] = {}
    exec(compile(block, "serve.md", "exec"), names)
    assert same(names["labels"], reference.run("disks", "photo.jpg", form="labels"))
