"""A run as its loop sees it: what stays the same from its first step to its last."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from configs.run import RunConfig
from data.mixture import Data
from sharding.distributed.processes import Processes
from train.checkpoints.durable import DurableTier
from train.checkpoints.init_from import InitFrom
from train.health.spans import Spans
from train.record.console import logger
from train.record.run_folder import RunFolder

_TROUBLES = {
    "save_failed": "step {step} could not be saved, so training goes on unsaved: {cause}",
    "copy_failed": "the copy of step {step} failed: {cause}",
    "not_removed": "an older checkpoint could not be removed after the save of step {step}, which "
    "counts: {cause}",
    "quarantined": "the checkpoint of step {step} is damaged, and now in {path}: {cause}",
}
"""Events that a person should hear of at once."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings, data, devices, and where everything is told."""

    config: RunConfig
    folder: RunFolder
    data: Data
    mesh: jax.sharding.Mesh
    processes: Processes
    spans: Spans
    durable: DurableTier | None = None
    """Where copies of checkpoints are; given in the first process alone."""
    init_from: InitFrom | None = None
    """What a new run begins with; None is with random weights."""

    def say(self, event: str, **details: Any) -> None:
        """Writes an event, and warns where it is trouble."""
        self.folder.add_event(event, **details)
        if event in _TROUBLES:
            logger.warning(_TROUBLES[event].format(**details))

    def has_had_checkpoints(self) -> bool:
        """Says whether a checkpoint of this run was ever whole: such a run is not begun anew."""
        found = self.processes.is_first and self.folder.has_had_checkpoints()
        return self.processes.from_first("had checkpoints", found)

    def position(self) -> dict[str, Any]:
        """Returns what of a checkpoint's progress is the same all along."""
        return {
            "data_folders": self.data.folders,
            "generator_key": generator_key(self.config.train.seed),
        }


def generator_key(seed: int) -> str:
    """Returns the key that a run folds all randomness from, with the kind of its generator."""
    key = jax.random.key(seed)
    numbers = np.asarray(jax.random.key_data(key)).tolist()
    kind = "partitionable" if jax.config.values["jax_threefry_partitionable"] else "whole"
    return f"{jax.random.key_impl(key)} ({kind}) {' '.join(map(str, numbers))}"
