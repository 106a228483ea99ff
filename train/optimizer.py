"""The update rule, without its learning rate: the step multiplies by that."""

from collections.abc import Callable
from typing import Any, TypeAlias, assert_never

import jax
import optax

from configs.run import OptimConfig
from train.checkpoints.renamed_arrays import RENAMED_ARRAYS, renamed, with_first_names

Params: TypeAlias = dict[str, Any]
"""Arrays by module path, nested."""

_DECAYED_AXES = {"embed", "expert_embed", "router_embed", "sinks"}
"""Matrices and embeddings have one of these axes; norms and biases have none. Attention sinks are
decayed too."""


def make_optimizer(config: OptimConfig, axes: Params) -> optax.GradientTransformation:
    """Returns clipping and the direction of the update, which the step scales by -learning rate.

    The learning rate stays outside because it advances with every step, while the optimizer does
    not advance in a nonfinite step.
    Source: Loshchilov and Hutter 2017, Decoupled weight decay, arXiv:1711.05101, algorithm 2.
    """
    match config.optimizer:
        case "adamw":
            direction = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)
        case "sgd":
            direction = optax.trace(decay=config.b1)
        case unknown:
            assert_never(unknown)
    clip = optax.identity() if config.max_grad_norm is None else _clip(config.max_grad_norm)
    return optax.chain(
        clip, direction, optax.add_decayed_weights(config.weight_decay, mask=is_decayed(axes))
    )


def _clip(max_norm: float) -> optax.GradientTransformation:
    """Returns clipping by the global norm, whose sum runs in the order of the arrays' first names.

    So a run from before a rename of arrays resumes bit for bit.
    """
    clip = optax.clip_by_global_norm(max_norm)

    def update(grads: Any, params: Any) -> Any:
        clipped, _ = clip.update(with_first_names(grads), optax.EmptyState(), params)
        return renamed(clipped, RENAMED_ARRAYS)

    return optax.stateless(update)


def is_decayed(axes: Params) -> Params:
    """Returns True for each matrix and embedding, False for norms and biases, by logical axes."""
    return per_axes(lambda own: not _DECAYED_AXES.isdisjoint(own), axes)


def per_axes(function: Callable[[tuple[str | None, ...]], Any], axes: Params) -> Params:
    """Returns function(logical axes) for every parameter."""
    return jax.tree.map(function, axes, is_leaf=lambda node: isinstance(node, tuple))
