"""Attention over a row that is cut: keys and values go around the devices of the context axis.

Every device keeps its queries. At each hop it attends to the keys and values that it holds while
they are sent on to the next device, until all have passed by. The backward pass goes around once
more, the gradients of keys and values travelling with them. Source: Liu et al. 2023, Ring attention
with blockwise transformers, arXiv:2310.01889.

In the order of zigzag_order the first and the last half of a device's blocks are two distant chunks
of the row, and all devices compute equally many pairs of blocks at each hop. Source: Brandon et al.
2023, Striped attention, arXiv:2311.09431; by halves as in Llama 3, arXiv:2407.21783, 3.3.2.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.blockwise import (
    LOWEST,
    Asked,
    Keys,
    Queries,
    Rule,
    Softmax,
    add_gradients,
    add_keys,
    add_sinks,
    blocks,
    cut,
    grouped,
    sees_any,
    whole,
)
from model.attention.mask import Mask, Scoring
from sharding.rules import mesh_axes, num_shards, spec

Tree = TypeVar("Tree")

_HEADS = ("act_batch", "act_len", "act_heads", "act_head_dim")
_KV_HEADS = ("act_batch", "act_len", "act_kv_heads", "act_head_dim")
_TOKENS = ("act_batch", "act_len")
_INPUTS = (_HEADS, _KV_HEADS, _KV_HEADS, _TOKENS, _TOKENS, ("act_len",), ("act_heads",))
_OUTPUTS = (_HEADS, ("act_batch", "act_len", "act_heads"))


def ring_attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring | None = None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(score(q k)) v as [B, T, N, H] in the dtype of q, the softmax in float32.

    Query head n reads key/value head n // (N / K); a query that sees no key gets zeros. For
    jax.checkpoint the result is named "attention", and so is what the backward pass needs beside
    it, a float32 for each query and head.

    Needs a mesh set by jax.set_mesh. Its context axis cuts T, a multiple of twice its size; batch
    and heads are cut as the rules say.

    Args:
        scoring: None scales by one over the root of H.
        sinks_N: a score of each head that takes part in the softmax and has no value.
    """
    places_T = jnp.arange(q_BTNH.shape[1]) if mask.places_T is None else mask.places_T
    rule = Rule(
        replace(mask, segments_BT=None, prefix_BT=None, places_T=None),
        scoring or Scoring(q_BTNH.shape[-1] ** -0.5),
    )
    # Tied to the queries, or else JAX would find the mask to be the same in every layer, compute
    # all of it before the first, going around once more, and keep it for the backward pass.
    q_BTNH, segments_BT, prefix_BT, places_T = jax.lax.optimization_barrier(
        (q_BTNH, mask.segments_BT, mask.prefix_BT, places_T)
    )
    return _attend(rule, q_BTNH, k_BTKH, v_BTKH, segments_BT, prefix_BT, places_T, sinks_N)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, *inputs: jax.Array | None) -> jax.Array:
    return _attend_forward(rule, *inputs)[0]


def _attend_forward(rule: Rule, *inputs: jax.Array | None) -> tuple[jax.Array, tuple]:
    outputs = _on_devices(partial(_forward, rule), _INPUTS, _OUTPUTS)(*inputs)
    outputs = tuple(checkpoint_name(output, "attention") for output in outputs)
    return outputs[0], (*inputs, *outputs)


def _attend_backward(rule: Rule, saved: tuple, dy_BTNH: jax.Array) -> tuple:
    inputs = (*_INPUTS, *_OUTPUTS, _HEADS)
    gradients = _on_devices(partial(_backward, rule), inputs, (_HEADS, _KV_HEADS, _KV_HEADS))
    *_, sinks_N, y_BTNH, log_sum_BTN = saved
    dsinks_N = None
    if sinks_N is not None:
        weight_BTN = jnp.exp(sinks_N[None, None].astype(jnp.float32) - log_sum_BTN)
        delta_BTN = jnp.einsum(
            "BTNH,BTNH->BTN", dy_BTNH, y_BTNH, preferred_element_type=jnp.float32
        )
        dsinks_N = -jnp.sum(weight_BTN * delta_BTN, axis=(0, 1)).astype(sinks_N.dtype)
    return *gradients(*saved, dy_BTNH), None, None, None, dsinks_N


_attend.defvjp(_attend_forward, _attend_backward)


def _on_devices(run: Callable, inputs: tuple, outputs: tuple) -> Callable:
    """Returns run, which knows the part of one device, for whole arrays of these logical axes."""
    in_specs = tuple(spec(*axes) for axes in inputs)
    out_specs = tuple(spec(*axes) for axes in outputs)
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _forward(
    rule: Rule,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    prefix_BT: jax.Array | None,
    places_T: jax.Array,
    sinks_N: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns what the queries of this device gather, and their log of the sum of exp(score)."""
    queries_P, keys_P = cut(q_BTNH, k_BTKH, v_BTKH, segments_BT, prefix_BT, places_T)
    q_PBKGTH = queries_P.q_BKGTH
    nothing_PBKGT = jnp.zeros(q_PBKGTH.shape[:-1], jnp.float32)
    softmax_P = Softmax(
        nothing_PBKGT + LOWEST, nothing_PBKGT, jnp.zeros(q_PBKGTH.shape, jnp.float32)
    )

    def visit(softmax_P: Softmax, keys_P: Keys) -> Softmax:
        """Shows every block of queries every block of keys."""

        def gather(_: None, block: tuple[Queries, Softmax]) -> tuple[None, Softmax]:
            queries, softmax = block

            def add(softmax: Softmax, keys: Keys) -> tuple[Softmax, None]:
                seen = sees_any(rule, queries, keys)
                add_these = partial(add_keys, rule, queries, keys)
                return jax.lax.cond(seen, add_these, lambda softmax: softmax, softmax), None

            return None, jax.lax.scan(add, softmax, keys_P)[0]

        return jax.lax.scan(gather, None, (queries_P, softmax_P))[1]

    def hop(carry: tuple[Softmax, Keys], _: None) -> tuple[tuple[Softmax, Keys], None]:
        softmax_P, keys_P = carry
        return (visit(softmax_P, keys_P), _send_on(keys_P)), None

    num_hops = num_shards("act_len") - 1
    (softmax_P, keys_P), _ = jax.lax.scan(hop, (softmax_P, keys_P), length=num_hops)
    softmax_P = visit(softmax_P, keys_P)
    if sinks_N is not None:
        softmax_P = add_sinks(softmax_P, grouped(sinks_N[None, None], k_BTKH.shape[2])[0, 0])
    sum_PBKGT = jnp.where(softmax_P.sum_BKGT > 0, softmax_P.sum_BKGT, 1)
    y_PBKGTH = softmax_P.gathered_BKGTH / sum_PBKGT[..., None]
    y_BTNH = whole(y_PBKGTH, -2).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    log_sum_PBKGT = softmax_P.max_BKGT + jnp.log(sum_PBKGT)
    return y_BTNH, whole(log_sum_PBKGT, -1).reshape(q_BTNH.shape[:-1])


def _backward(
    rule: Rule,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    prefix_BT: jax.Array | None,
    places_T: jax.Array,
    sinks_N: jax.Array | None,
    y_BTNH: jax.Array,
    log_sum_BTN: jax.Array,
    dy_BTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns d/dq, d/dk and d/dv of what this device holds of q, k and v.

    The weights are computed again from the log of their sum. Source: Dao 2023, FlashAttention-2,
    arXiv:2307.08691, algorithm 2.
    """
    del sinks_N  # they are in the sum
    K = k_BTKH.shape[2]
    queries_P, keys_P = cut(q_BTNH, k_BTKH, v_BTKH, segments_BT, prefix_BT, places_T)
    delta_BTN = jnp.einsum("BTNH,BTNH->BTN", dy_BTNH, y_BTNH, preferred_element_type=jnp.float32)
    asked_P = Asked(
        queries_P,
        blocks(grouped(dy_BTNH, K), -2),
        blocks(grouped(log_sum_BTN, K), -1),
        blocks(grouped(delta_BTN, K), -1),
    )

    def visit(dq_PBKGTH: jax.Array, keys_P: Keys) -> tuple[jax.Array, jax.Array]:
        """Returns dq with the part of these keys, and theirs from these queries [P, 2, ...]."""

        def ask(dq_PBKGTH: jax.Array, keys: Keys) -> tuple[jax.Array, jax.Array]:
            def add(
                dkv_2BKSH: jax.Array, block: tuple[Asked, jax.Array]
            ) -> tuple[jax.Array, jax.Array]:
                asked, dq_BKGTH = block
                seen = sees_any(rule, asked.queries, keys)
                add_these = partial(add_gradients, rule, asked, keys)
                return jax.lax.cond(seen, add_these, lambda *sums: sums, dkv_2BKSH, dq_BKGTH)

            dkv_2BKSH = jnp.zeros((2, *keys.k_BKSH.shape), jnp.float32)
            dkv_2BKSH, dq_PBKGTH = jax.lax.scan(add, dkv_2BKSH, (asked_P, dq_PBKGTH))
            return dq_PBKGTH, dkv_2BKSH

        return jax.lax.scan(ask, dq_PBKGTH, keys_P)

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        dq_PBKGTH, dkv_P2BKSH, keys_P = carry
        dq_PBKGTH, part_P2BKSH = visit(dq_PBKGTH, keys_P)
        # The sums that belong to these keys arrive only now: nothing above waits for them. They go
        # as one array because TPUs keep no more than five sends on their way, and four are keys'.
        return (dq_PBKGTH, _send_on(dkv_P2BKSH) + part_P2BKSH, _send_on(keys_P)), None

    dq_PBKGTH, dkv_P2BKSH = visit(jnp.zeros(queries_P.q_BKGTH.shape, jnp.float32), keys_P)
    carry = (dq_PBKGTH, dkv_P2BKSH, _send_on(keys_P))
    (dq_PBKGTH, dkv_P2BKSH, _), _ = jax.lax.scan(hop, carry, length=num_shards("act_len") - 1)
    dkv_P2BKSH = _send_on(dkv_P2BKSH)  # home
    dq_BTNH = whole(dq_PBKGTH, -2).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    dk_BTKH, dv_BTKH = whole(dkv_P2BKSH[:, 0], -2), whole(dkv_P2BKSH[:, 1], -2)
    return dq_BTNH, dk_BTKH.astype(k_BTKH.dtype), dv_BTKH.astype(v_BTKH.dtype)


def _send_on(tree: Tree) -> Tree:
    """Returns what the device before had; the last hands on to the first."""
    size = num_shards("act_len")
    return jax.lax.ppermute(tree, mesh_axes("act_len"), [(i, (i + 1) % size) for i in range(size)])
