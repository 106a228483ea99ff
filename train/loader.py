"""Loads batches: prefetched on the host, then on the devices."""

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

_NUM_ON_DEVICE = 2  # the batch of this step and that of the next one


def local_rows(sharding: NamedSharding, batch_size: int, sequence_len: int) -> list[int]:
    """Returns the rows of a global batch on the devices of this process, in global order."""
    indices = sharding.addressable_devices_indices_map((batch_size, sequence_len)).values()
    return sorted({row for index in indices if index for row in range(batch_size)[index[0]]})


def to_global(local: Batch, rows: list[int], sharding: NamedSharding, batch_size: int) -> Batch:
    """Returns the global batch on the devices, from the rows that each process has read."""
    if jax.process_count() == 1:
        return jax.device_put(local, sharding)
    index_of = {row: i for i, row in enumerate(rows)}

    def put(array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            local_index = [index_of[row] for row in range(batch_size)[index[0]]]
            return array[local_index][:, index[1]]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, local)


def abstract_batch(sharding: NamedSharding, batch_size: int, config: DataConfig) -> Batch:
    """Returns the shapes, dtypes and layout of every batch, without any array."""

    def shape(array: np.ndarray) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype, sharding=sharding)

    return empty_row(config).map(shape)


class Loader:
    """Iterates over batches in order, each already on the devices when it is returned."""

    def __init__(
        self,
        batches_of: Callable[[list[int]], grain.MapDataset[Batch]],
        config: DataConfig,
        *,
        sharding: NamedSharding,
        batch_size: int,
    ):
        """Starts to read the batches of the rows of the global batch on this process."""
        self._shape = (batch_size, config.sequence_len)
        self._sharding = sharding
        self._rows = local_rows(sharding, *self._shape)
        options = grain.ReadOptions(
            num_threads=config.num_read_threads, prefetch_buffer_size=config.num_prefetch_batches
        )
        self._host = iter(batches_of(self._rows).to_iter_dataset(options))
        self._placed: deque[Batch] = deque()
        self.wait_sec = 0.0
        """Seconds that the last call waited for its batch."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        while len(self._placed) < _NUM_ON_DEVICE:
            local = next(self._host, None)
            if local is None:
                break
            self._placed.append(to_global(local, self._rows, self._sharding, self._shape[0]))
        self.wait_sec = time.perf_counter() - started
        if not self._placed:
            raise StopIteration
        return self._placed.popleft()
