"""The loss, the optimizer, the compiled step, the loop, and what a run leaves in its folder."""
