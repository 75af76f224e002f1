"""A further process of `img2img train devices=N`: Fabric starts this script, with the arguments of the first process."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # it is this folder, whose modules have common names
    from img2img.cli.train import PIPELINE_VARIABLE, run_pipeline

    run_pipeline(os.environ[PIPELINE_VARIABLE], sys.argv[1:])
