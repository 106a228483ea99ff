"""The state of a run, and how it is born in its layout."""

from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from configs.model import ModelConfig
from model.decoder import Decoder
from sharding.rules import sharding
from train.optimizer import Params

Leaf = TypeVar("Leaf")


class TrainState(NamedTuple, Generic[Leaf]):
    """Everything that a step changes: arrays, or the shape or sharding of each."""

    step: Leaf
    """Steps taken, int32."""
    params: Params
    """Parameters by module path, float32."""
    opt_state: optax.OptState
    """Moments, in the layout of their parameters."""


class ModelShape(NamedTuple):
    """A model without its arrays: what turns parameters into a module again."""

    graph: nnx.GraphDef[Decoder]
    state: nnx.State

    def merge(self, params: Params) -> Decoder:
        """Returns the module with these parameters, inside a trace or outside."""
        state = jax.tree.map(lambda leaf: leaf, self.state)  # a copy: the next line fills it
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def layout(self, mesh: jax.sharding.Mesh) -> Params:
        """Returns the sharding of every parameter, from the logical axes it was made with."""
        variables = nnx.to_flat_state(self.state)
        return _nest({path: sharding(mesh, *leaf.axes) for path, leaf in variables})


def _nest(flat: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path
        folder = nested
        for key in folders:
            folder = folder.setdefault(key, {})
        folder[name] = leaf
    return nested


def shape_of(config: ModelConfig) -> ModelShape:
    """Returns the model's structure and shapes; no array is made."""
    return ModelShape(*nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))))


def init_state(
    config: ModelConfig, tx: optax.GradientTransformation, key: jax.Array, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns the state at step 0, each leaf made where it will live."""

    def build(key: jax.Array) -> TrainState:
        module = Decoder(config, rngs=nnx.Rngs(params=key))
        params: Params = nnx.to_pure_dict(nnx.state(module))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    return jax.jit(build, out_shardings=state_layout(config, tx, mesh))(key)


def state_layout(
    config: ModelConfig, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns the sharding of every leaf of the state; moments lie as their parameters do."""
    shape = shape_of(config)
    params_layout = shape.layout(mesh)
    replicated = NamedSharding(mesh, jax.sharding.PartitionSpec())
    opt_shapes = jax.eval_shape(tx.init, nnx.to_pure_dict(shape.state))
    opt_layout = optax.tree.map_params(
        tx,
        lambda _, layout: layout,
        opt_shapes,
        params_layout,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, params_layout, opt_layout)


def abstract_state(
    config: ModelConfig, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state; no array is made."""
    shapes = nnx.to_pure_dict(shape_of(config).state)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, shapes, jax.eval_shape(tx.init, shapes))
    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        state,
        state_layout(config, tx, mesh),
    )
