"""Packaging: what `pyproject.toml` cannot say. A wheel carries `configs/` and `bundles/`, so that it does without a checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFolders(build_py):
    """`build_py` that also copies folders beside the package into it; an editable install reads them where they are."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            for name in ("configs", "bundles"):
                target = Path(self.build_lib) / "img2img" / name
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(Path(__file__).parent / name, target)


setup(cmdclass={"build_py": BuildWithFolders})
