"""A package that is not installed and one that is and cannot be imported are two messages."""

from pathlib import Path

import pytest

from img2img.errors import InputError
from img2img.extras import require


def test_a_package_that_is_missing_is_said_with_its_extra() -> None:
    with pytest.raises(InputError, match=r"img2img\[export\]"):
        require("no_such_package_at_all", extra="export", what="a graph")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import no_such_package_at_all", "no_such_package_at_all"),
        ("from os import no_such_name", "no_such_name"),
        ("raise ImportError('needs a newer part')", "needs a newer part"),
    ],
)
def test_a_package_that_is_there_and_broken_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    (tmp_path / "broken_package.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"{reason}.*--force-reinstall broken_package") as refused:
        require("broken_package", extra="export", what="a graph")
    assert "img2img[export]" not in str(refused.value)
