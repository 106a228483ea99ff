"""Flax NNX modules. They know letters and logical axes, not meshes, objectives or losses."""
