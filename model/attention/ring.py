"""Attention under context parallelism: keys and values go around the shards of a sequence.

Every device keeps its queries. At each hop it attends to the keys and values that it holds while
they are sent on to the next device of the context axis, until it has attended to all of them. The
backward pass sends them around once more, with their gradients. Source: Liu et al. 2023, Ring
attention with blockwise transformers, arXiv:2310.01889.

In the order of zigzag_order the first and the last half of a device's blocks are two distant chunks
of the row, and all devices compute equally many pairs of blocks at each hop. Source: Brandon et al.
2023, Striped attention, arXiv:2311.09431; by halves as in Llama 3, arXiv:2407.21783, 3.3.2.

The ring runs over any backend that offers its sums (see blockwise.py for what they are).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.mask import Mask, Scoring
from sharding.rules import mesh_axes, num_shards, spec

Tree = TypeVar("Tree")

_HEADS = spec("act_batch", "act_len", "act_heads", "act_head_dim")
_KV_HEADS = spec("act_batch", "act_len", "act_kv_heads", "act_head_dim")
_OUTPUTS = (_HEADS, spec("act_batch", "act_len", "act_heads"))


def ring_attend(
    backend: ModuleType,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """Returns what the backend's attend does, of a sequence that is sharded over the context axis.

    For jax.checkpoint the result is named "attention", and so is what the backward pass needs
    beside it, a float32 for each query and head.

    Needs a mesh set by jax.set_mesh. Its context axis shards T, a multiple of twice its size; batch
    and heads are sharded as the rules say. The backend is one that has ring=True in the table.
    """
    if mask.row_index_T is None:
        mask = replace(mask, row_index_T=jnp.arange(q_BTNH.shape[1]))
    # Tied to the queries, or else JAX would find the mask to be the same in every layer, compute
    # all of it before the first, with a ring of its own, and keep it for the backward pass.
    q_BTNH, mask = jax.lax.optimization_barrier((q_BTNH, mask))
    return _attend(backend, scoring, q_BTNH, k_BTKH, v_BTKH, mask, sinks_N)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(backend: ModuleType, scoring: Scoring, *inputs: Any) -> jax.Array:
    return _attend_forward(backend, scoring, *inputs)[0]


def _attend_forward(backend: ModuleType, scoring: Scoring, *inputs: Any) -> tuple[jax.Array, tuple]:
    forward = partial(_forward, backend, scoring)
    outputs = _on_devices(forward, _input_specs(*inputs), _OUTPUTS)(*inputs)
    outputs = tuple(checkpoint_name(output, "attention") for output in outputs)
    return outputs[0], (*inputs, *outputs)


def _attend_backward(
    backend: ModuleType, scoring: Scoring, saved: tuple, dy_BTNH: jax.Array
) -> tuple:
    *inputs, y_BTNH, logsumexp_BTN = saved
    in_specs = (*_input_specs(*inputs), *_OUTPUTS, _HEADS)
    backward = partial(_backward, backend, scoring)
    gradients = _on_devices(backward, in_specs, (_HEADS, _KV_HEADS, _KV_HEADS))
    dsinks_N = backend.sinks_gradient(inputs[-1], y_BTNH, logsumexp_BTN, dy_BTNH)
    return *gradients(*saved, dy_BTNH), None, dsinks_N


_attend.defvjp(_attend_forward, _attend_backward)


def _input_specs(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, sinks_N: jax.Array | None
) -> tuple:
    """Returns the partition of what ring_attend is given."""
    tokens: Any = spec("act_batch", "act_len")
    columns: Any = spec("act_len")
    masks = replace(mask, segments_BT=tokens, prefix_BT=tokens, row_index_T=columns)
    return _HEADS, _KV_HEADS, _KV_HEADS, masks, spec("act_heads")


def _on_devices(run: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """Returns a function of one device's shards as one of whole arrays."""
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _forward(
    backend: ModuleType,
    scoring: Scoring,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    sinks_N: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the result for the queries of this device, and the logsumexp of their scores."""
    queries, keys = backend.split(q_BTNH, k_BTKH, v_BTKH, mask)

    def hop(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        sums, keys = carry
        return (backend.add_keys(mask, scoring, queries, keys, sums), _send_on(keys)), None

    carry = (backend.initial_sums(queries), keys)
    (sums, keys), _ = jax.lax.scan(hop, carry, length=num_shards("act_len") - 1)
    sums = backend.add_keys(mask, scoring, queries, keys, sums)
    return backend.finish(q_BTNH, sums, sinks_N)


def _backward(
    backend: ModuleType,
    scoring: Scoring,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    sinks_N: jax.Array | None,
    y_BTNH: jax.Array,
    logsumexp_BTN: jax.Array,
    dy_BTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns d/dq, d/dk and d/dv of this device's shards of q, k and v."""
    del sinks_N  # they are in the logsumexp
    queries, keys = backend.split(q_BTNH, k_BTKH, v_BTKH, mask)
    queries = backend.with_gradients(queries, y_BTNH, logsumexp_BTN, dy_BTNH)
    add_gradients = partial(backend.add_gradients, mask, scoring, queries)

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        dq, dkv, keys = carry
        dq, more_dkv = add_gradients(keys, dq)
        # The sums that belong to these keys arrive only now: nothing above waits for them. They go
        # as one array because TPUs keep no more than five sends on their way, and four are keys'.
        return (dq, _send_on(dkv) + more_dkv, _send_on(keys)), None

    dq, dkv = add_gradients(keys, backend.initial_gradient(queries))
    carry = (dq, dkv, _send_on(keys))
    (dq, dkv, _), _ = jax.lax.scan(hop, carry, length=num_shards("act_len") - 1)
    dkv = _send_on(dkv)  # to the device that holds these keys
    return backend.finish_gradients(q_BTNH, k_BTKH, v_BTKH, dq, dkv)


def _send_on(tree: Tree) -> Tree:
    """Returns what the device before had; the last sends to the first."""
    size = num_shards("act_len")
    return jax.lax.ppermute(tree, mesh_axes("act_len"), [(i, (i + 1) % size) for i in range(size)])
