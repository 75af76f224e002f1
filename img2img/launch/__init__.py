"""The tasks of experiments learned side by side, on one machine or many: `launcher=ray`, `launcher=slurm`.

Each task whose inputs are ready is a job of its own, in a run folder of its own. A last job puts the tasks together into the run
folder, as if one run had learned them all.
"""
