"""The script that users call: what a mistake on its command line says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_data_folder_that_was_not_given_is_one_message(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines" / "image_to_image.py"), "experiment=poster", f"out={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: the config has no value for data_root: give it on the command line, such as data_root=DATA"
    )
