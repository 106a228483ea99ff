"""The embedding of tokens, from a table that may be sharded, and of their positions."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sharding.rules import RULES, mesh_axes, num_shards, spec


def look_up(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Returns the row of the table for each token, [B, T, D].

    Where the vocabulary is sharded, every device looks up what it holds and the results are added,
    each device receiving its shard of the sequence: the table is never gathered. Source: Shoeybi et
    al. 2019, Megatron-LM, arXiv:1909.08053, section 3; Korthikanti et al. 2022, arXiv:2205.05198,
    section 4.2.2.
    """
    if num_shards("vocab") == 1:
        return table_VD[tokens_BT]
    vocab_axes = mesh_axes("vocab")
    # Axes that shard the sequence between blocks take their part of the sum at once.
    along_row = tuple(axis for axis in mesh_axes("act_block_len") if axis in vocab_axes)
    others = tuple(axis for axis in vocab_axes if axis not in along_row)

    def look_up_here(part_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        first = jax.lax.axis_index(vocab_axes) * len(part_VD)
        is_here_BT = (tokens_BT >= first) & (tokens_BT < first + len(part_VD))
        row_BT = jnp.where(is_here_BT, tokens_BT - first, 0)
        x_BTD = jnp.where(is_here_BT[..., None], part_VD[row_BT], 0)
        x_BTD = jax.lax.psum_scatter(x_BTD, along_row, scatter_dimension=1, tiled=True)
        return jax.lax.psum(x_BTD, others)

    length = None if tokens_BT.shape[1] == 1 else "act_len"
    return jax.shard_map(
        look_up_here,
        in_specs=(PartitionSpec(RULES["vocab"], None), spec("act_batch", length)),
        out_specs=spec("act_batch", "act_block_len", "act_embed"),
    )(table_VD, tokens_BT)


def sinusoids(positions_BT: jax.Array, dim: int) -> jax.Array:
    """Returns sines and then cosines of each position times 10000^(-2j/dim), float32 [B, T, dim].

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, where the two take turns; in halves
    as in its code.
    """
    half = dim // 2
    frequency_J = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BTJ = positions_BT[..., None] * frequency_J[None, None]
    return jnp.concatenate((jnp.sin(angle_BTJ), jnp.cos(angle_BTJ)), axis=-1)
