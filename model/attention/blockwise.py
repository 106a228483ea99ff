"""Attention of blocks of queries to blocks of keys, a pair at a time, and its gradients.

Letter: P blocks of a sequence, or of a device's shard of it: an even number where its length is. A
pair of blocks is computed only where the mask lets some query attend to some key.

To the ring it offers itself as sums that keys are added to hop by hop (`split`, `initial_sums`,
`add_keys`, `finish`; `with_gradients`, `initial_gradient`, `add_gradients`, `finish_gradients`,
`sinks_gradient`), and not as `forward` and `backward`, which are made of the same: to merge the
results of hops by their logsumexp would divide at each hop, and round otherwise.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.block_attention import (
    LOWEST,
    BackwardQueries,
    Keys,
    Queries,
    Softmax,
    add_block,
    add_block_gradients,
    add_sinks,
    may_attend,
)
from model.attention.mask import Mask, Scoring

BLOCK_LEN = 2048
"""Tokens of a block at most: only the scores of one pair of blocks are held at a time."""


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring,
    bias_BNTS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    dropout_rng_BT: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Returns what plain.attend does, but zeros for a query that attends to no key.

    For jax.checkpoint the result is named "attention", and so is what the backward pass needs
    beside it, a float32 for each query and head.
    """
    assert bias_BNTS is None
    assert mask.key_segments_BS is None
    assert dropout_rng_BT is None or dropout_rate == 0
    return _attend(scoring, q_BTNH, k_BTKH, v_BTKH, mask, sinks_N)


def forward(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    scoring: Scoring,
    bias_BNTS: None = None,
    sinks_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns y [B, T, N, H] and the logsumexp of the scores of each query, float32 [B, T, N]."""
    del bias_BNTS
    queries_P, keys_P = split(q_BTNH, k_BTKH, v_BTKH, mask)
    sums_P = add_keys(mask, scoring, queries_P, keys_P, initial_sums(queries_P))
    return finish(q_BTNH, sums_P, sinks_N)


def backward(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    scoring: Scoring,
    bias_BNTS: None,
    sinks_N: jax.Array | None,
    y_BTNH: jax.Array,
    logsumexp_BTN: jax.Array,
    dy_BTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    """Returns the gradients of q, k, v, of the bias (None) and of the sinks where there are any.

    The weights are computed again from the logsumexp. Source: Dao 2023, FlashAttention-2,
    arXiv:2307.08691, algorithm 2.
    """
    del bias_BNTS
    queries_P, keys_P = split(q_BTNH, k_BTKH, v_BTKH, mask)
    queries_P = with_gradients(queries_P, y_BTNH, logsumexp_BTN, dy_BTNH)
    dq_P, dkv_P = add_gradients(mask, scoring, queries_P, keys_P, initial_gradient(queries_P))
    gradients = finish_gradients(q_BTNH, k_BTKH, v_BTKH, dq_P, dkv_P)
    return *gradients, None, sinks_gradient(sinks_N, y_BTNH, logsumexp_BTN, dy_BTNH)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scoring: Scoring, *inputs: Any) -> jax.Array:
    return _attend_forward(scoring, *inputs)[0]


def _attend_forward(scoring: Scoring, *inputs: Any) -> tuple[jax.Array, tuple]:
    q, k, v, mask, sinks_N = inputs
    outputs = forward(q, k, v, mask, scoring, None, sinks_N)
    outputs = tuple(checkpoint_name(output, "attention") for output in outputs)
    return outputs[0], (*inputs, *outputs)


def _attend_backward(scoring: Scoring, saved: tuple, dy_BTNH: jax.Array) -> tuple:
    q, k, v, mask, sinks_N, y, logsumexp = saved
    dq, dk, dv, _, dsinks = backward(q, k, v, mask, scoring, None, sinks_N, y, logsumexp, dy_BTNH)
    return dq, dk, dv, None, dsinks


_attend.defvjp(_attend_forward, _attend_backward)


def split(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
) -> tuple[Queries, Keys]:
    """Returns the queries and the keys of this device in blocks, every array with a first dim P."""
    row_index_T = jnp.arange(q_BTNH.shape[1]) if mask.row_index_T is None else mask.row_index_T
    segments_PBT = None if mask.segments_BT is None else _blocks(mask.segments_BT, -1)
    prefix_PBT = None if mask.prefix_BT is None else _blocks(mask.prefix_BT, -1)
    row_index_PT = _blocks(row_index_T[None], -1)[:, 0]
    q_PBKGTH = _blocks(_grouped(q_BTNH, k_BTKH.shape[2]), -2)
    k_PBKSH, v_PBKSH = _blocks(k_BTKH, -2), _blocks(v_BTKH, -2)
    queries_P = Queries(q_PBKGTH, segments_PBT, row_index_PT)
    return queries_P, Keys(k_PBKSH, v_PBKSH, segments_PBT, prefix_PBT, row_index_PT)


def initial_sums(queries_P: Queries) -> Softmax:
    """Returns the softmax over no key."""
    q_PBKGTH = queries_P.q_BKGTH
    zeros_PBKGT = jnp.zeros(q_PBKGTH.shape[:-1], jnp.float32)
    return Softmax(zeros_PBKGT + LOWEST, zeros_PBKGT, jnp.zeros(q_PBKGTH.shape, jnp.float32))


def add_keys(
    mask: Mask, scoring: Scoring, queries_P: Queries, keys_P: Keys, sums_P: Softmax
) -> Softmax:
    """Returns the softmax of every block of queries over every block of these keys too.

    Of the mask only kind and window are read, here and in add_gradients: the blocks have the rest.
    """

    def add_all(_: None, block: tuple[Queries, Softmax]) -> tuple[None, Softmax]:
        queries, sums = block

        def add(sums: Softmax, keys: Keys) -> tuple[Softmax, None]:
            is_needed = may_attend(mask, queries, keys)
            add_these = partial(add_block, mask, scoring, queries, keys)
            return jax.lax.cond(is_needed, add_these, lambda sums: sums, sums), None

        return None, jax.lax.scan(add, sums, keys_P)[0]

    return jax.lax.scan(add_all, None, (queries_P, sums_P))[1]


def finish(
    q_BTNH: jax.Array, sums_P: Softmax, sinks_N: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns y [B, T, N, H] and the logsumexp of the scores of each query, float32 [B, T, N]."""
    if sinks_N is not None:
        sums_P = add_sinks(sums_P, _grouped(sinks_N[None, None], sums_P.max_BKGT.shape[2])[0, 0])
    sum_PBKGT = jnp.where(sums_P.sum_BKGT > 0, sums_P.sum_BKGT, 1)
    y_PBKGTH = sums_P.values_BKGTH / sum_PBKGT[..., None]
    y_BTNH = _whole(y_PBKGTH, -2).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    logsumexp_PBKGT = sums_P.max_BKGT + jnp.log(sum_PBKGT)
    return y_BTNH, _whole(logsumexp_PBKGT, -1).reshape(q_BTNH.shape[:-1])


def with_gradients(
    queries_P: Queries, y_BTNH: jax.Array, logsumexp_BTN: jax.Array, dy_BTNH: jax.Array
) -> BackwardQueries:
    """Returns the queries with what their gradients are computed from."""
    K = queries_P.q_BKGTH.shape[2]
    delta_BTN = _delta(y_BTNH, dy_BTNH)
    return BackwardQueries(
        queries_P,
        _blocks(_grouped(dy_BTNH, K), -2),
        _blocks(_grouped(logsumexp_BTN, K), -1),
        _blocks(_grouped(delta_BTN, K), -1),
    )


def initial_gradient(queries_P: BackwardQueries) -> jax.Array:
    """Returns the gradient of queries that attend to no key."""
    return jnp.zeros(queries_P.queries.q_BKGTH.shape, jnp.float32)


def add_gradients(
    mask: Mask, scoring: Scoring, queries_P: BackwardQueries, keys_P: Keys, dq_PBKGTH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns d/dq with the part of these keys, and their d/dk beside d/dv [P, 2, ...]."""

    def add_all(dq_PBKGTH: jax.Array, keys: Keys) -> tuple[jax.Array, jax.Array]:
        def add(
            dkv_2BKSH: jax.Array, block: tuple[BackwardQueries, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            queries, dq_BKGTH = block
            is_needed = may_attend(mask, queries.queries, keys)
            add_these = partial(add_block_gradients, mask, scoring, queries, keys)
            return jax.lax.cond(is_needed, add_these, lambda *sums: sums, dkv_2BKSH, dq_BKGTH)

        dkv_2BKSH = jnp.zeros((2, *keys.k_BKSH.shape), jnp.float32)
        dkv_2BKSH, dq_PBKGTH = jax.lax.scan(add, dkv_2BKSH, (queries_P, dq_PBKGTH))
        return dq_PBKGTH, dkv_2BKSH

    return jax.lax.scan(add_all, dq_PBKGTH, keys_P)


def finish_gradients(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    dq_PBKGTH: jax.Array,
    dkv_P2BKSH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns d/dq, d/dk and d/dv in the shapes and dtypes of q, k and v."""
    dq_BTNH = _whole(dq_PBKGTH, -2).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    dk_BTKH, dv_BTKH = _whole(dkv_P2BKSH[:, 0], -2), _whole(dkv_P2BKSH[:, 1], -2)
    return dq_BTNH, dk_BTKH.astype(k_BTKH.dtype), dv_BTKH.astype(v_BTKH.dtype)


def sinks_gradient(
    sinks_N: jax.Array | None, y_BTNH: jax.Array, logsumexp_BTN: jax.Array, dy_BTNH: jax.Array
) -> jax.Array | None:
    if sinks_N is None:
        return None
    weight_BTN = jnp.exp(sinks_N[None, None].astype(jnp.float32) - logsumexp_BTN)
    return -jnp.sum(weight_BTN * _delta(y_BTNH, dy_BTNH), axis=(0, 1)).astype(sinks_N.dtype)


def _delta(y_BTNH: jax.Array, dy_BTNH: jax.Array) -> jax.Array:
    return jnp.einsum("BTNH,BTNH->BTN", dy_BTNH, y_BTNH, preferred_element_type=jnp.float32)


def _grouped(x_BTN: jax.Array, K: int) -> jax.Array:
    """Returns [B, T, K, G, ...]: the query heads of each key/value head."""
    return x_BTN.reshape(*x_BTN.shape[:2], K, -1, *x_BTN.shape[3:])


def _blocks(x_BT: jax.Array, axis: int) -> jax.Array:
    """Returns [P, B, ..., T / P, ...] of an array [B, T, ...], the T / P at an axis."""
    length = x_BT.shape[1]
    nums = range(2 - length % 2, length + 1, 2)
    fitting = (n for n in nums if length % n == 0 and length <= n * BLOCK_LEN)
    x_BPT = x_BT.reshape(x_BT.shape[0], next(fitting), -1, *x_BT.shape[2:])
    return jnp.moveaxis(x_BPT.swapaxes(0, 1), 2, axis)


def _whole(x_P: jax.Array, axis: int) -> jax.Array:
    """Returns [B, T, ...] of the blocks that _blocks makes."""
    x_BPT = jnp.moveaxis(x_P, axis, 2).swapaxes(0, 1)
    return x_BPT.reshape(x_BPT.shape[0], -1, *x_BPT.shape[3:])
