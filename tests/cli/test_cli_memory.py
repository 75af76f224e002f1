"""How commands that train allocate memory."""

import subprocess
import sys

import pytest

# What a step does: blocks of some megabytes that are written, freed and made again.
PROGRAM = """
import resource
import numpy as np
from img2img.cli.memory import keep_freed_memory

keep_freed_memory()

def use():
    blocks = [np.ones(2 ** 21) for _ in range(8)]

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc alone")
def test_freed_blocks_are_used_again_unless_the_user_has_set_malloc_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_pages() -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)

    assert new_pages() < 1000
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert new_pages() > 20_000
