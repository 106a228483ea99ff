"""Cross entropy of tokens without all of their logits, and its gradients, computed beside it.

Letters: M tokens of a device, C tokens of a chunk; V is here the vocabulary's shard of a device.
"""

import functools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from configs.model import ModelConfig
from data.batch import Batch
from model.language_model import LanguageModel, finish_logits
from model.matmul import in_float32
from sharding.rules import mesh_axes, spec

CHUNK_LEN = 4096
"""Tokens of a device whose logits are held at a time, at most."""


Leaf = TypeVar("Leaf")


class Head(NamedTuple, Generic[Leaf]):
    """What turns hidden states into logits: arrays, or the partition of each."""

    kernel_DV: Leaf
    bias_V: Leaf | None


class Tokens(NamedTuple, Generic[Leaf]):
    """What is predicted, of all tokens [B, T] or of a chunk of them."""

    targets: Leaf
    weights: Leaf


def cross_entropy(model: LanguageModel, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
    """Returns the sum over the batch of weight * -log p(target), in nats, float32.

    A sum and not a mean, so that microbatches add up to the batch whatever their padding. Logits
    are float32, and their gradients have the dtype of the hidden states. A vocabulary that is
    sharded stays so: every device adds its part. Source: Shoeybi et al. 2019, Megatron-LM,
    arXiv:1909.08053, section 3.
    """
    x_BTD, (kernel_DV, bias_V) = model.before_head(hidden_BTD), model.head_arrays()
    head = Head(kernel_DV.astype(x_BTD.dtype), bias_V)
    tokens = Tokens(batch.targets_BT, batch.weights_BT)
    return _cross_entropy(model.config, head, x_BTD, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    config: ModelConfig, head: Head[jax.Array], x_BTD: jax.Array, tokens_BT: Tokens[jax.Array]
) -> jax.Array:
    return _on_each_device(config, head, x_BTD, tokens_BT, with_gradients=False)[0]


def _forward(
    config: ModelConfig, head: Head[jax.Array], x_BTD: jax.Array, tokens_BT: Tokens[jax.Array]
) -> tuple[jax.Array, tuple[Head[jax.Array], jax.Array] | None]:
    return _on_each_device(config, head, x_BTD, tokens_BT, with_gradients=True)


def _backward(
    config: ModelConfig, gradients: tuple[Head[jax.Array], jax.Array], d_nats: jax.Array
) -> tuple[Head[jax.Array], jax.Array, None]:
    head, dx_BTD = gradients
    kernel_DV, bias_V = (part if part is None else jnp.sum(part, axis=0) * d_nats for part in head)
    assert kernel_DV is not None
    return (
        Head(kernel_DV.astype(dx_BTD.dtype), bias_V),
        (dx_BTD * d_nats).astype(dx_BTD.dtype),
        None,
    )


_cross_entropy.defvjp(_forward, _backward)


def _on_each_device(
    config: ModelConfig,
    head: Head[jax.Array],
    x_BTD: jax.Array,
    tokens_BT: Tokens[jax.Array],
    *,
    with_gradients: bool,
) -> tuple[jax.Array, tuple[Head[jax.Array], jax.Array] | None]:
    """Returns the loss and its gradients; those of the head are of each device, [devices, ...].

    So they are summed over devices once, and not for each chunk.
    """
    run = functools.partial(_in_chunks, config, with_gradients=with_gradients)
    if jax.sharding.get_abstract_mesh().empty:
        return run(head, x_BTD, tokens_BT, data_axes=(), vocab_axes=())
    data_axes = (*mesh_axes("act_batch"), *mesh_axes("act_len"))
    kernel, vocab = spec(None, "act_vocab"), spec("act_vocab")
    x, tokens = spec("act_batch", "act_len", None), spec("act_batch", "act_len")
    head_specs = Head(kernel, None if head.bias_V is None else vocab)
    summed = jax.tree.map(lambda own: PartitionSpec(data_axes, *own), head_specs)
    return jax.shard_map(
        functools.partial(run, data_axes=data_axes, vocab_axes=mesh_axes("act_vocab")),
        in_specs=(head_specs, x, Tokens(tokens, tokens)),
        out_specs=(PartitionSpec(), (summed, x) if with_gradients else None),
        check_vma=False,
    )(head, x_BTD, tokens_BT)


def _in_chunks(
    config: ModelConfig,
    head: Head[jax.Array],
    x_BTD: jax.Array,
    tokens_BT: Tokens[jax.Array],
    *,
    data_axes: tuple[str, ...],
    vocab_axes: tuple[str, ...],
    with_gradients: bool,
) -> tuple[jax.Array, tuple[Head[jax.Array], jax.Array] | None]:
    """Returns what _on_each_device does, on one device."""
    chunk = functools.partial(_chunk, config, head, vocab_axes, with_gradients=with_gradients)
    D, M = x_BTD.shape[-1], tokens_BT.targets.size
    num_chunks = next(n for n in range(-(-M // CHUNK_LEN), M + 1) if M % n == 0)

    def add(sums: Any, part: tuple[jax.Array, Tokens[jax.Array]]) -> tuple[Any, jax.Array | None]:
        more, dx_CD = chunk(*part)
        return jax.tree.map(jnp.add, sums, more), dx_CD

    x_MD, tokens_M = x_BTD.reshape(M, D), jax.tree.map(jnp.ravel, tokens_BT)
    if num_chunks == 1:
        sums, dx_CD = chunk(x_MD, tokens_M)
    else:
        parts = jax.tree.map(lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), (x_MD, tokens_M))
        shapes, _ = jax.eval_shape(chunk, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        sums, dx_CD = jax.lax.scan(add, zeros, parts)
    nats, head_grads = sums
    nats = _psum(nats, data_axes)
    if dx_CD is None:
        return nats, None
    dx_BTD = _psum(dx_CD.reshape(x_BTD.shape), vocab_axes)
    return nats, (jax.tree.map(lambda x: x[None], head_grads), dx_BTD)


def _chunk(
    config: ModelConfig,
    head: Head[jax.Array],
    vocab_axes: tuple[str, ...],
    x_CD: jax.Array,
    tokens_C: Tokens[jax.Array],
    *,
    with_gradients: bool,
) -> tuple[tuple[jax.Array, Head[jax.Array] | None], jax.Array | None]:
    """Returns the loss of a chunk of tokens, and what it adds to the gradients."""
    V = head.kernel_DV.shape[1]
    first = jax.lax.axis_index(vocab_axes) * V if vocab_axes else 0
    is_token_V = first + jnp.arange(V) < config.num_tokens
    product_CV = in_float32(jnp.matmul, x_CD, head.kernel_DV)
    logits_CV = finish_logits(config, product_CV, head.bias_V, is_token_V)

    max_C = _pmax(jnp.max(logits_CV, axis=-1), vocab_axes)
    exp_CV = jnp.exp(logits_CV - max_C[:, None])
    sum_C = _psum(jnp.sum(exp_CV, axis=-1), vocab_axes)
    own_C = tokens_C.targets - first  # negative, or V and above, where another device has it
    found_C1 = jnp.take_along_axis(logits_CV, jnp.clip(own_C, 0, V - 1)[:, None], axis=-1)
    is_here_C = (own_C >= 0) & (own_C < V)
    chosen_C = _psum(jnp.where(is_here_C, found_C1[:, 0], 0), vocab_axes)
    nats = jnp.sum((jnp.log(sum_C) + max_C - chosen_C) * tokens_C.weights)
    if not with_gradients:
        return (nats, None), None

    d_logits_CV = exp_CV / sum_C[:, None] - (own_C[:, None] == jnp.arange(V)[None])
    d_logits_CV = d_logits_CV * tokens_C.weights[:, None]
    if config.logit_softcap is not None:  # the derivative of tanh
        slope_CV = 1 - jnp.square(logits_CV / config.logit_softcap)
        d_logits_CV *= jnp.where(is_token_V[None], slope_CV, 0)
    narrow_CV = d_logits_CV.astype(x_CD.dtype)
    dx_CD = jnp.matmul(narrow_CV, head.kernel_DV.T)
    d_kernel_DV = jnp.matmul(x_CD.T, narrow_CV, preferred_element_type=jnp.float32)
    d_bias_V = None if head.bias_V is None else jnp.sum(d_logits_CV, axis=0)
    return (nats, Head(d_kernel_DV, d_bias_V)), dx_CD


def _psum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _pmax(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.pmax(x, axes) if axes else x
