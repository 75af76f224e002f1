"""Training: the loop, checkpoints, evaluation, and the sequence of tasks on one backbone."""
