"""Training: the loop and the step, evaluation, generation, checkpoints, records and health."""
