"""One way to train: the task contract, the jitted step, the loop, its checkpoints, logs and reports."""
