"""What the training loop and its callbacks share: all that stays the same for a whole run."""

from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from configs.run import RunConfig
from data.batch import Batch
from data.batches import batch_digest, train_batches
from data.mixture import Data
from sharding.distributed.processes import Processes
from train.checkpoints.durable_storage import DurableTier
from train.checkpoints.init_from import InitFrom
from train.checkpoints.manifest import RunProgress
from train.record.console import logger
from train.record.events import LOGGED, MESSAGES
from train.record.run_folder import RunFolder
from train.record.spans import Spans


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Settings, data, devices and the run folder."""

    config: RunConfig
    folder: RunFolder
    data: Data
    mesh: jax.sharding.Mesh
    processes: Processes
    spans: Spans
    durable: DurableTier | None = None
    """Durable storage for copies of checkpoints; None except in the first process."""
    init_from: InitFrom | None = None
    """What a new run is initialized from; None is random weights."""

    def emit(self, event: str, **details: Any) -> None:
        """Writes an event; one of LOGGED is also logged as a warning."""
        self.folder.add_event(event, **details)
        if event in LOGGED:
            logger.warning(MESSAGES[event].format(**details))

    def has_had_checkpoints(self) -> bool:
        """Returns whether this run ever had a checkpoint: then it is never initialized again."""
        found = self.processes.is_first and self.folder.has_had_checkpoints()
        return self.processes.from_first("had checkpoints", found)

    def fixed_progress(self) -> dict[str, Any]:
        """Returns the fields of RunProgress that all checkpoints of this start share."""
        return {
            "data_folders": self.data.folders,
            "generator_key": describe_rng(self.config.train.seed),
        }

    def batches(self, start: RunProgress, rows: list[int] | None = None) -> grain.MapDataset[Batch]:
        """Returns the batches of the steps after `start`, or some rows of each."""
        steps = start.step_ranges[-1]
        return train_batches(self.data, self.config.data, steps, rows=rows)[start.step :]

    def next_batch_digest(self, start: RunProgress) -> str:
        batch = self.batches(start)[0]
        assert batch is not None  # the dataset is endless
        return batch_digest(batch)


def describe_rng(seed: int) -> str:
    """Returns the root PRNG key of a run and its implementation, as checkpoints hold it."""
    key = jax.random.key(seed)
    numbers = np.asarray(jax.random.key_data(key)).tolist()
    kind = "partitionable" if jax.config.values["jax_threefry_partitionable"] else "whole"
    return f"{jax.random.key_impl(key)} ({kind}) {' '.join(map(str, numbers))}"
