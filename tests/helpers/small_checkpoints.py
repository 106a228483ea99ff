"""Checkpoints of a few numbers."""

import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
from small_model import small_model, small_run

from configs.flat_settings import flatten
from configs.run import CheckpointConfig
from train.checkpoints.context import CheckpointContext
from train.checkpoints.manifest import RunProgress
from train.checkpoints.save import Checkpoints
from train.state import TrainState

RUN = small_run(small_model(embed_dim=32))
CONFIG = CheckpointConfig(every_steps=1, num_last=10)


def progress(step: int, eval_loss: float | None = None) -> RunProgress:
    return RunProgress(step=step, tokens=128 * step, data_sha256="d" * 64, eval_loss=eval_loss)


def small_state(value: float = 1.0) -> TrainState:
    params = {"a": jnp.full(3, value, jnp.float32), "b": {"c": jnp.arange(5.0)}}
    return TrainState(jnp.int32(0), params, ())


def write_checkpoint(folder: Path, step: int, eval_loss: float | None = None) -> Path:
    """Saves a small state, other numbers at each step, and returns its checkpoint."""
    checkpoints = Checkpoints(CheckpointContext(folder, CONFIG), flatten(RUN))
    checkpoints.save(small_state(float(step)), progress(step, eval_loss))
    checkpoints.close()
    return folder / str(step)


def flip_byte(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(manifest: Path, **changes) -> None:
    """Changes a manifest as someone would who knows how it is digested."""
    said = json.loads(manifest.read_text())
    said.pop("sha256")
    said |= changes
    content = json.dumps(said, sort_keys=True).encode()
    manifest.write_text(json.dumps({**said, "sha256": hashlib.sha256(content).hexdigest()}))
