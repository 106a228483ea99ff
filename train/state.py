"""The training state, its layout, and its sharded initialization."""

import functools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from configs.model import ModelConfig
from configs.run import RunConfig
from model.build import build_model
from model.language_model import LanguageModel
from sharding.pipeline import Pipeline, pipeline_of
from sharding.rules import RULES, WHOLE_PARAMETERS, Rules, sharding
from sharding.tree_paths import nested
from train.optimizer import Params, make_optimizer, per_axes

Leaf = TypeVar("Leaf")
State = TypeVar("State")

_HOST = "pinned_host"


class TrainState(NamedTuple, Generic[Leaf]):
    """Everything that a step updates: arrays, or the shape or sharding of each."""

    step: Leaf
    """Steps taken, int32."""
    params: Params
    """Parameters by module path, float32."""
    opt_state: optax.OptState
    """Moments, in the layout of their parameters or sharded further."""


class ModelShape(NamedTuple):
    """A model without its arrays, which turns parameters into a module."""

    graph: nnx.GraphDef[LanguageModel]
    state: nnx.State

    def merge(self, params: Params) -> LanguageModel:
        """Returns the module with these parameters, inside a trace or outside."""
        state = jax.tree.map(lambda leaf: leaf, self.state)  # a copy, which the next line fills
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    @property
    def params(self) -> Params:
        return nnx.to_pure_dict(self.state)

    def axes(self) -> Params:
        return nested(
            {"/".join(map(str, path)): tuple(x.axes) for path, x in nnx.to_flat_state(self.state)}
        )

    def is_stacked(self) -> Params:
        """Returns for every parameter whether it is stacked over "layers"."""
        return per_axes(lambda axes: axes[0] == "layers", self.axes())

    def layout(
        self, mesh: jax.sharding.Mesh, rules: Rules = RULES, *, memory: str | None = None
    ) -> Params:
        return per_axes(lambda axes: sharding(mesh, *axes, rules=rules, memory=memory), self.axes())


@functools.lru_cache(maxsize=8)  # a run asks a dozen times, and each builds the whole model
def shape_of(config: ModelConfig, pipeline: Pipeline | None = None) -> ModelShape:
    """Returns the structure and shapes of a model, without any array."""
    return ModelShape(
        *nnx.split(nnx.eval_shape(lambda: build_model(config, pipeline, rngs=nnx.Rngs(0))))
    )


def init_state(config: RunConfig, key: jax.Array, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the state at step 0; every leaf is initialized sharded."""
    tx = make_optimizer(config.optim, shape_of(config.model).axes())

    def build(key: jax.Array) -> TrainState:
        module = build_model(config.model, rngs=nnx.Rngs(params=key))
        params: Params = nnx.to_pure_dict(nnx.state(module))
        state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
        return _take_layers(state, _stage_order(config, mesh), config)

    with jax.set_mesh(mesh):
        state = jax.jit(build, out_shardings=on_devices(state_layout(config, mesh)))(key)
    return jax.device_put(state, state_layout(config, mesh))


def state_layout(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the sharding of every leaf of the state; moments are sharded as their parameters.

    With mesh.sharded_state=optimizer the parameters are sharded by WHOLE_PARAMETERS instead; with
    mesh.offload_optimizer the moments are in host memory.
    """
    shape = shape_of(config.model)
    whole = config.mesh.sharded_state == "optimizer"
    params_layout = shape.layout(mesh, WHOLE_PARAMETERS if whole else RULES)
    memory = _HOST if config.mesh.offload_optimizer else None
    replicated = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        replicated,
        params_layout,
        _for_moments(config, shape, shape.layout(mesh, memory=memory), replicated),
    )


def gradient_layout(config: RunConfig, mesh: jax.sharding.Mesh) -> Params:
    """Returns the sharding of gradients: that of their moments, in device memory."""
    return shape_of(config.model).layout(mesh)


def on_devices(layout: State) -> State:
    """Returns a layout with everything in device memory."""
    return jax.tree.map(lambda leaf: leaf.with_memory_kind(None), layout)


def _for_moments(config: RunConfig, shape: ModelShape, per_param: Params, other: Any) -> Any:
    """Returns the optimizer state with the value of its parameter for each moment, else `other`."""
    tx = make_optimizer(config.optim, shape.axes())
    return optax.tree.map_params(
        tx,
        lambda _, value: value,
        jax.eval_shape(tx.init, shape.params),
        per_param,
        transform_non_params=lambda _: other,
    )


def abstract_state(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without any array."""
    shape = shape_of(config.model)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    tx = make_optimizer(config.optim, shape.axes())
    state = TrainState(step, shape.params, jax.eval_shape(tx.init, shape.params))
    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        state,
        state_layout(config, mesh),
    )


def in_stage_order(state: TrainState, config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns a state in model order with the layers of each pipeline stage side by side."""
    return _reordered(state, _stage_order(config, mesh), config, mesh)


def in_model_order(state: TrainState, config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns a state in stage order with its layers in model order, as checkpoints hold them."""
    return _reordered(state, _stage_order(config, mesh).argsort(), config, mesh)


def params_in_stage_order(params: Params, config: RunConfig, mesh: jax.sharding.Mesh) -> Params:
    """Returns parameters in stage order, as in_stage_order does; they are donated."""
    order_L = _stage_order(config, mesh)
    if np.array_equal(order_L, np.arange(len(order_L))):
        return params
    layout, is_stacked = state_layout(config, mesh).params, shape_of(config.model).is_stacked()
    take = jax.jit(lambda x: _take(x, order_L, is_stacked), out_shardings=layout, donate_argnums=0)
    return take(params)


def _stage_order(config: RunConfig, mesh: jax.sharding.Mesh) -> np.ndarray:
    return pipeline_of(config, mesh).layer_order(config.model.num_stacked_layers)


def _reordered(
    state: TrainState, order_L: np.ndarray, config: RunConfig, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns the state in its layout with the layers of its stacks in another order."""
    if np.array_equal(order_L, np.arange(len(order_L))):
        return state
    layout = state_layout(config, mesh)
    take = jax.jit(lambda x: _take_layers(x, order_L, config), out_shardings=on_devices(layout))
    return jax.device_put(take(jax.device_put(state, on_devices(layout))), layout)


def _take_layers(state: TrainState, order_L: np.ndarray, config: RunConfig) -> TrainState:
    shape = shape_of(config.model)
    is_stacked = shape.is_stacked()
    stacked = TrainState(False, is_stacked, _for_moments(config, shape, is_stacked, False))
    return _take(state, order_L, stacked)


def _take(tree: State, order_L: np.ndarray, is_stacked: Any) -> State:
    return jax.tree.map(lambda x, yes: x[order_L] if yes else x, tree, is_stacked)
