"""Attention over a row that is cut: keys and values go around the devices of the context axis.

Every device keeps its queries. At each hop it attends to the keys and values that it holds while
they are sent on to the next device, until all have passed by. The backward pass goes around once
more, the gradients of keys and values travelling with them. Source: Liu et al. 2023, Ring attention
with blockwise transformers, arXiv:2310.01889.

Letter: P blocks, an even number of pieces into which a device cuts what it has of a row. A pair of
blocks is computed only where the mask lets some query see some key. In the order of zigzag_order
the first and the last half of a device's blocks are two distant chunks of the row, and all devices
compute equally many pairs at each hop. Source: Brandon et al. 2023, Striped attention,
arXiv:2311.09431; by halves as in Llama 3, arXiv:2407.21783, 3.3.2.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.mask import Mask, Scoring
from sharding.rules import mesh_axes, num_shards, spec

Tree = TypeVar("Tree")

BLOCK_LEN = 2048
"""Tokens of a block at most: the scores of one pair of blocks are all that is ever held."""

_MASKED = -1e30
_LOWEST = -1e20
"""Below every true score and far above _MASKED: with it as the maximum masked weights are zero."""

_HEADS = ("act_batch", "act_len", "act_heads", "act_head_dim")
_KV_HEADS = ("act_batch", "act_len", "act_kv_heads", "act_head_dim")
_TOKENS = ("act_batch", "act_len")
_INPUTS = (_HEADS, _KV_HEADS, _KV_HEADS, _TOKENS, _TOKENS, ("act_len",), ("act_heads",))
_OUTPUTS = (_HEADS, ("act_batch", "act_len", "act_heads"))


class _Rule(NamedTuple):
    """What is the same for all blocks and known when the step is compiled."""

    mask: Mask
    """Without arrays."""
    scoring: Scoring


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
    rule = _Rule(
        replace(mask, segments_BT=None, prefix_BT=None, places_T=None),
        scoring or Scoring(q_BTNH.shape[-1] ** -0.5),
    )
    # Tied to the queries, or else JAX would find the mask to be the same in every layer, compute
    # all of it before the first, going around once more, and keep it for the backward pass.
    q_BTNH, segments_BT, prefix_BT, places_T = jax.lax.optimization_barrier(
        (q_BTNH, mask.segments_BT, mask.prefix_BT, places_T)
    )
    return _attend(rule, q_BTNH, k_BTKH, v_BTKH, segments_BT, prefix_BT, places_T, sinks_N)


def any_seen(
    mask: Mask, query_places_T: jax.Array, key_places_S: jax.Array, *, has_prefix: bool = False
) -> jax.Array:
    """Returns False only where no query sees a key, judged by the extremes of their places.

    Segments are left out, and every key may be in a prefix: they differ between rows, and this must
    be one boolean for all of them.
    """
    seen = jnp.bool_(True)
    looks_ahead = mask.kind == "full" or has_prefix
    if not looks_ahead:
        seen &= jnp.max(query_places_T) >= jnp.min(key_places_S)
    if mask.window is not None:
        seen &= jnp.min(query_places_T) - jnp.max(key_places_S) < mask.window
        if looks_ahead:
            seen &= jnp.min(key_places_S) - jnp.max(query_places_T) < mask.window
    return seen


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: _Rule, *inputs: jax.Array | None) -> jax.Array:
    return _attend_forward(rule, *inputs)[0]


def _attend_forward(rule: _Rule, *inputs: jax.Array | None) -> tuple[jax.Array, tuple]:
    outputs = _on_devices(partial(_forward, rule), _INPUTS, _OUTPUTS)(*inputs)
    outputs = tuple(checkpoint_name(output, "attention") for output in outputs)
    return outputs[0], (*inputs, *outputs)


def _attend_backward(rule: _Rule, saved: tuple, dy_BTNH: jax.Array) -> tuple:
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


class _Queries(NamedTuple):
    q_BKGTH: jax.Array
    segments_BT: jax.Array | None
    places_T: jax.Array


class _Keys(NamedTuple):
    """What goes around."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    segments_BS: jax.Array | None
    prefix_BS: jax.Array | None
    places_S: jax.Array


class _Softmax(NamedTuple):
    """What queries have gathered from the keys that have passed by; float32.

    Source: Milakov and Gimelshein 2018, Online normalizer calculation for softmax,
    arXiv:1805.02867, algorithm 3.
    """

    max_BKGT: jax.Array
    sum_BKGT: jax.Array
    """Of the weights exp(score - max)."""
    gathered_BKGTH: jax.Array
    """The sum of weight * value."""


class _Asked(NamedTuple):
    """What the backward pass knows of queries."""

    queries: _Queries
    dy_BKGTH: jax.Array
    log_sum_BKGT: jax.Array
    """log(sum of exp(score)) over all keys."""
    delta_BKGT: jax.Array
    """The product of dy and y."""


def _forward(
    rule: _Rule,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    prefix_BT: jax.Array | None,
    places_T: jax.Array,
    sinks_N: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns what the queries of this device gather, and their log of the sum of exp(score)."""
    queries_P, keys_P = _cut(q_BTNH, k_BTKH, v_BTKH, segments_BT, prefix_BT, places_T)
    q_PBKGTH = queries_P.q_BKGTH
    nothing_PBKGT = jnp.zeros(q_PBKGTH.shape[:-1], jnp.float32)
    softmax_P = _Softmax(
        nothing_PBKGT + _LOWEST, nothing_PBKGT, jnp.zeros(q_PBKGTH.shape, jnp.float32)
    )

    def visit(softmax_P: _Softmax, keys_P: _Keys) -> _Softmax:
        """Shows every block of queries every block of keys."""

        def gather(_: None, block: tuple[_Queries, _Softmax]) -> tuple[None, _Softmax]:
            queries, softmax = block

            def add(softmax: _Softmax, keys: _Keys) -> tuple[_Softmax, None]:
                seen = _any_seen(rule, queries, keys)
                add_keys = partial(_add_keys, rule, queries, keys)
                return jax.lax.cond(seen, add_keys, lambda softmax: softmax, softmax), None

            return None, jax.lax.scan(add, softmax, keys_P)[0]

        return jax.lax.scan(gather, None, (queries_P, softmax_P))[1]

    def hop(carry: tuple[_Softmax, _Keys], _: None) -> tuple[tuple[_Softmax, _Keys], None]:
        softmax_P, keys_P = carry
        return (visit(softmax_P, keys_P), _send_on(keys_P)), None

    num_hops = num_shards("act_len") - 1
    (softmax_P, keys_P), _ = jax.lax.scan(hop, (softmax_P, keys_P), length=num_hops)
    softmax_P = visit(softmax_P, keys_P)
    if sinks_N is not None:
        softmax_P = _add_sinks(softmax_P, _grouped(sinks_N[None, None], k_BTKH.shape[2])[0, 0])
    sum_PBKGT = jnp.where(softmax_P.sum_BKGT > 0, softmax_P.sum_BKGT, 1)
    y_PBKGTH = softmax_P.gathered_BKGTH / sum_PBKGT[..., None]
    y_BTNH = _whole(y_PBKGTH, -2).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    log_sum_PBKGT = softmax_P.max_BKGT + jnp.log(sum_PBKGT)
    return y_BTNH, _whole(log_sum_PBKGT, -1).reshape(q_BTNH.shape[:-1])


def _backward(
    rule: _Rule,
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
    queries_P, keys_P = _cut(q_BTNH, k_BTKH, v_BTKH, segments_BT, prefix_BT, places_T)
    delta_BTN = jnp.einsum("BTNH,BTNH->BTN", dy_BTNH, y_BTNH, preferred_element_type=jnp.float32)
    asked_P = _Asked(
        queries_P,
        _blocks(_grouped(dy_BTNH, K), -2),
        _blocks(_grouped(log_sum_BTN, K), -1),
        _blocks(_grouped(delta_BTN, K), -1),
    )

    def visit(dq_PBKGTH: jax.Array, keys_P: _Keys) -> tuple[jax.Array, jax.Array]:
        """Returns dq with the part of these keys, and theirs from these queries [P, 2, ...]."""

        def ask(dq_PBKGTH: jax.Array, keys: _Keys) -> tuple[jax.Array, jax.Array]:
            def add(
                dkv_2BKSH: jax.Array, block: tuple[_Asked, jax.Array]
            ) -> tuple[jax.Array, jax.Array]:
                asked, dq_BKGTH = block
                seen = _any_seen(rule, asked.queries, keys)
                add_gradients = partial(_add_gradients, rule, asked, keys)
                return jax.lax.cond(seen, add_gradients, lambda *sums: sums, dkv_2BKSH, dq_BKGTH)

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
    dq_BTNH = _whole(dq_PBKGTH, -2).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    dk_BTKH, dv_BTKH = _whole(dkv_P2BKSH[:, 0], -2), _whole(dkv_P2BKSH[:, 1], -2)
    return dq_BTNH, dk_BTKH.astype(k_BTKH.dtype), dv_BTKH.astype(v_BTKH.dtype)


def _any_seen(rule: _Rule, queries: _Queries, keys: _Keys) -> jax.Array:
    has_prefix = keys.prefix_BS is not None
    return any_seen(rule.mask, queries.places_T, keys.places_S, has_prefix=has_prefix)


def _add_sinks(softmax_P: _Softmax, sinks_KG: jax.Array) -> _Softmax:
    """Returns the softmax of all blocks over the sinks too, which have no value."""
    sinks_PBKGT = sinks_KG[None, None, :, :, None].astype(jnp.float32)
    max_PBKGT = jnp.maximum(softmax_P.max_BKGT, sinks_PBKGT)
    scale_PBKGT = jnp.exp(softmax_P.max_BKGT - max_PBKGT)
    return _Softmax(
        max_PBKGT,
        softmax_P.sum_BKGT * scale_PBKGT + jnp.exp(sinks_PBKGT - max_PBKGT),
        softmax_P.gathered_BKGTH * scale_PBKGT[..., None],
    )


def _add_keys(rule: _Rule, queries: _Queries, keys: _Keys, softmax: _Softmax) -> _Softmax:
    """Returns the softmax over these keys too."""
    score_BKGTS = _masked(rule, _scores(rule, queries, keys), queries, keys)
    max_BKGT = jnp.maximum(softmax.max_BKGT, jnp.max(score_BKGTS, axis=-1))
    weight_BKGTS = jnp.exp(score_BKGTS - max_BKGT[..., None])
    scale_BKGT = jnp.exp(softmax.max_BKGT - max_BKGT)
    more_BKGTH = _matmul("BKGTS,BKSH->BKGTH", weight_BKGTS.astype(keys.v_BKSH.dtype), keys.v_BKSH)
    return _Softmax(
        max_BKGT,
        softmax.sum_BKGT * scale_BKGT + jnp.sum(weight_BKGTS, axis=-1),
        softmax.gathered_BKGTH * scale_BKGT[..., None] + more_BKGTH,
    )


def _add_gradients(
    rule: _Rule, asked: _Asked, keys: _Keys, dkv_2BKSH: jax.Array, dq_BKGTH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns d/dk beside d/dv, and d/dq, with what these queries and keys add."""
    q_BKGTH, dy_BKGTH = asked.queries.q_BKGTH, asked.dy_BKGTH
    score_BKGTS = _scores(rule, asked.queries, keys)
    masked_BKGTS = _masked(rule, score_BKGTS, asked.queries, keys)
    weight_BKGTS = jnp.exp(masked_BKGTS - asked.log_sum_BKGT[..., None])
    d_weight_BKGTS = _matmul("BKGTH,BKSH->BKGTS", dy_BKGTH, keys.v_BKSH)
    d_score_BKGTS = weight_BKGTS * (d_weight_BKGTS - asked.delta_BKGT[..., None])
    if rule.scoring.softcap is not None:  # the derivative of tanh
        d_score_BKGTS *= 1 - jnp.square(score_BKGTS / rule.scoring.softcap)
    d_score_BKGTS = (d_score_BKGTS * rule.scoring.scale).astype(q_BKGTH.dtype)
    weight_BKGTS = weight_BKGTS.astype(dy_BKGTH.dtype)
    dk_BKSH = _matmul("BKGTS,BKGTH->BKSH", d_score_BKGTS, q_BKGTH)
    dv_BKSH = _matmul("BKGTS,BKGTH->BKSH", weight_BKGTS, dy_BKGTH)
    more_BKGTH = _matmul("BKGTS,BKSH->BKGTH", d_score_BKGTS, keys.k_BKSH)
    return dkv_2BKSH + jnp.stack([dk_BKSH, dv_BKSH]), dq_BKGTH + more_BKGTH


def _scores(rule: _Rule, queries: _Queries, keys: _Keys) -> jax.Array:
    """Returns the scores of all queries and keys in float32, as if all were seen."""
    return rule.scoring(_matmul("BKGTH,BKSH->BKGTS", queries.q_BKGTH, keys.k_BKSH))


def _masked(rule: _Rule, score_BKGTS: jax.Array, queries: _Queries, keys: _Keys) -> jax.Array:
    """Returns scores, _MASKED where a query does not see a key."""
    allowed_BTS = rule.mask.between(
        queries.places_T, keys.places_S, queries.segments_BT, keys.segments_BS, keys.prefix_BS
    )
    return jnp.where(allowed_BTS[:, None, None], score_BKGTS, _MASKED)


def _matmul(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32)


def _send_on(tree: Tree) -> Tree:
    """Returns what the device before had; the last hands on to the first."""
    size = num_shards("act_len")
    return jax.lax.ppermute(tree, mesh_axes("act_len"), [(i, (i + 1) % size) for i in range(size)])


def _cut(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    prefix_BT: jax.Array | None,
    places_T: jax.Array,
) -> tuple[_Queries, _Keys]:
    """Returns the queries and the keys of this device in blocks, every array with a first dim P."""
    segments_PBT = None if segments_BT is None else _blocks(segments_BT, -1)
    prefix_PBT = None if prefix_BT is None else _blocks(prefix_BT, -1)
    places_PT = _blocks(places_T[None], -1)[:, 0]
    q_PBKGTH = _blocks(_grouped(q_BTNH, k_BTKH.shape[2]), -2)
    k_PBKSH, v_PBKSH = _blocks(k_BTKH, -2), _blocks(v_BTKH, -2)
    queries_P = _Queries(q_PBKGTH, segments_PBT, places_PT)
    return queries_P, _Keys(k_PBKSH, v_PBKSH, segments_PBT, prefix_PBT, places_PT)


def _grouped(x_BTN: jax.Array, K: int) -> jax.Array:
    """Returns [B, T, K, G, ...]: the query heads of each key/value head."""
    return x_BTN.reshape(*x_BTN.shape[:2], K, -1, *x_BTN.shape[3:])


def _blocks(x_BT: jax.Array, axis: int) -> jax.Array:
    """Returns [P, B, ..., T / P, ...] of an array [B, T, ...], the T / P at an axis."""
    length = x_BT.shape[1]
    assert length % 2 == 0, length
    fitting = (n for n in range(2, length + 1, 2) if length % n == 0 and length <= n * BLOCK_LEN)
    x_BPT = x_BT.reshape(x_BT.shape[0], next(fitting), -1, *x_BT.shape[2:])
    return jnp.moveaxis(x_BPT.swapaxes(0, 1), 2, axis)


def _whole(x_P: jax.Array, axis: int) -> jax.Array:
    """Returns [B, T, ...] of the blocks that _blocks makes."""
    x_BPT = jnp.moveaxis(x_P, axis, 2).swapaxes(0, 1)
    return x_BPT.reshape(x_BPT.shape[0], -1, *x_BPT.shape[3:])
