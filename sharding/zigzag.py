"""Zigzag order of positions: causal attention costs every sequence shard the same."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sharding.rules import constrain, num_shards

Tree = TypeVar("Tree")


def zigzag_order(length: int, num_parts: int) -> np.ndarray:
    """Returns the position in the sequence that each column holds, [T], for num_parts shards.

    The sequence is cut into 2 num_parts chunks; shard i holds chunk i and 2 num_parts - 1 - i, one
    that attends to few keys and one that attends to many. Source: Brandon et al. 2023, Striped
    attention, arXiv:2311.09431, here by halves as in Llama 3, arXiv:2407.21783, 3.3.2.
    """
    chunks = np.arange(length).reshape(2 * num_parts, -1)
    order = [chunk for i in range(num_parts) for chunk in (i, 2 * num_parts - 1 - i)]
    return chunks[order].reshape(-1)


def along_context(rows: Tree) -> tuple[Tree, jax.Array | None]:
    """Returns a tree of arrays [B, T] with columns in zigzag order, and that order.

    The order is the position in the sequence of each column, [T]; None without context
    parallelism, where columns stay as they are.
    """
    num_parts = num_shards("act_len")
    if num_parts == 1:
        return rows, None
    length = jax.tree.leaves(rows)[0].shape[1]
    order_T = zigzag_order(length, num_parts)
    arranged = jax.tree.map(lambda x_BT: constrain(x_BT[:, order_T], "act_batch", "act_len"), rows)
    return arranged, jnp.asarray(order_T)
