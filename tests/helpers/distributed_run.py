"""Runs experiments in each of several processes, as torchrun starts them: `torchrun --nproc_per_node 2 distributed_run.py JOBS`.

JOBS is a JSON file of `{"config": ..., "kill_at": step or null, "report": whether images and a page are made}`.
"""

import json
import sys
from pathlib import Path

from killing import killed_at

from img2img.api import run
from img2img.training.config import read_experiment
from img2img.training.sequence import SequenceRunner

for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    if job["report"]:
        run(job["config"])
    elif job["kill_at"] is None:
        SequenceRunner(read_experiment(job["config"])).run()
    else:
        with killed_at(job["kill_at"]):  # in every process at once
            SequenceRunner(read_experiment(job["config"])).run()
