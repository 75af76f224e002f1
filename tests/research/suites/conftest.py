"""The made suite and its page, once for all tests."""

from pathlib import Path

import pytest
from comparison_suite import make_suite

from img2img.research.suites.comparison_page import write_comparison


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The suite, and what was written for it."""
    folder = tmp_path_factory.mktemp("comparison")
    suite = make_suite(folder / "suite")
    assert write_comparison(suite, folder / "out") == folder / "out" / "index.html"
    return suite, folder / "out"
