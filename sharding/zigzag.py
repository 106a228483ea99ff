"""The order of tokens that balances causal attention over the shards of a sequence."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sharding.rules import constrain, num_shards

Tree = TypeVar("Tree")


def zigzag_order(length: int, num_parts: int) -> np.ndarray:
    """Returns the index in the row of the token in each column, [T], for num_parts sequence shards.

    Of 2 num_parts chunks of the row shard i holds chunk i and chunk 2 num_parts - 1 - i, one with
    few keys to attend to and one with many. Source: Brandon et al. 2023, Striped attention,
    arXiv:2311.09431, of which this is the variant by halves (Llama 3, arXiv:2407.21783, 3.3.2).

    Args:
        length: a multiple of 2 num_parts.
    """
    chunks = np.arange(length).reshape(2 * num_parts, -1)
    order = [chunk for i in range(num_parts) for chunk in (i, 2 * num_parts - 1 - i)]
    return chunks[order].reshape(-1)


def along_context(rows: Tree) -> tuple[Tree, jax.Array | None]:
    """Returns a tree of arrays [B, T] with their columns in the order that suits the mesh.

    The second is the index in the row of the token in each column then, [T], or None without
    context parallelism, where they are in order.
    """
    num_parts = num_shards("act_len")
    if num_parts == 1:
        return rows, None
    length = jax.tree.leaves(rows)[0].shape[1]
    order_T = zigzag_order(length, num_parts)
    arranged = jax.tree.map(lambda x_BT: constrain(x_BT[:, order_T], "act_batch", "act_len"), rows)
    return arranged, jnp.asarray(order_T)
