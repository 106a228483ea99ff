"""Batches on their way to the devices: read ahead on the host, placed ahead on the devices."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from configs.data import DataConfig
from data.batch import Batch
from data.objectives.batch_maker import empty_row

_NUM_ON_DEVICE = 2  # the batch of this step, and that of the next


def rows_here(sharding: NamedSharding, batch_size: int, sequence_len: int) -> list[int]:
    """Returns the rows of a global batch that the devices of this process hold, in global order."""
    indices = sharding.addressable_devices_indices_map((batch_size, sequence_len)).values()
    return sorted({row for index in indices if index for row in range(batch_size)[index[0]]})


def place(local: Batch, rows: list[int], sharding: NamedSharding, batch_size: int) -> Batch:
    """Returns the global batch on the devices, made of the rows that this process has read."""
    if jax.process_count() == 1:
        return jax.device_put(local, sharding)
    place_of = {row: i for i, row in enumerate(rows)}

    def put(array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = [place_of[row] for row in range(batch_size)[index[0]]]
            return array[wanted][:, index[1]]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, local)


def abstract_batch(sharding: NamedSharding, batch_size: int, config: DataConfig) -> Batch:
    """Returns the shapes, dtypes and layout of every batch; no array of it is made."""

    def shape(array: np.ndarray) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype, sharding=sharding)

    return empty_row(config).map(shape)


class Feed:
    """Batches in order, each already on the devices when it is asked for."""

    def __init__(
        self,
        batches_of: Callable[[list[int]], grain.MapDataset[Batch]],
        config: DataConfig,
        *,
        sharding: NamedSharding,
        batch_size: int,
    ):
        """Begins to read.

        Args:
            batches_of: from the rows of the global batch that this process holds to a dataset of
                batches of just those.
        """
        self._shape = (batch_size, config.sequence_len)
        self._sharding = sharding
        self._rows = rows_here(sharding, *self._shape)
        options = grain.ReadOptions(
            num_threads=config.num_read_threads, prefetch_buffer_size=config.num_prefetch_batches
        )
        self._host = iter(batches_of(self._rows).to_iter_dataset(options))
        self._placed: deque[Batch] = deque()
        self.abstract_batch = abstract_batch(sharding, batch_size, config)
        """The shapes, dtypes and layout of every batch."""
        self.wait_sec = 0.0
        """Seconds that the last batch was waited for."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        while len(self._placed) < _NUM_ON_DEVICE:
            local = next(self._host, None)
            if local is None:
                break
            self._placed.append(place(local, self._rows, self._sharding, self._shape[0]))
        self.wait_sec = time.perf_counter() - started
        if not self._placed:
            raise StopIteration
        return self._placed.popleft()
