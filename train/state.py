"""The state of a run, and how it is born in its layout."""

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
from train.optimizer import Params, make_optimizer

Leaf = TypeVar("Leaf")
State = TypeVar("State")

_HOST = "pinned_host"


class TrainState(NamedTuple, Generic[Leaf]):
    """Everything that a step changes: arrays, or the shape or sharding of each."""

    step: Leaf
    """Steps taken, int32."""
    params: Params
    """Parameters by module path, float32."""
    opt_state: optax.OptState
    """Moments, in the layout of their parameters or a finer one."""


class ModelShape(NamedTuple):
    """A model without its arrays: what turns parameters into a module again."""

    graph: nnx.GraphDef[LanguageModel]
    state: nnx.State

    def merge(self, params: Params) -> LanguageModel:
        """Returns the module with these parameters, inside a trace or outside."""
        state = jax.tree.map(lambda leaf: leaf, self.state)  # a copy: the next line fills it
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    @property
    def params(self) -> Params:
        """The shape of every parameter."""
        return nnx.to_pure_dict(self.state)

    def axes(self) -> Params:
        """Returns the logical axes that every parameter was made with."""
        return nested(
            {"/".join(map(str, path)): tuple(x.axes) for path, x in nnx.to_flat_state(self.state)}
        )

    def is_stacked(self) -> Params:
        """Returns for every parameter whether its first dim counts layers."""
        return jax.tree.map(
            lambda axes: axes[0] == "layers",
            self.axes(),
            is_leaf=lambda node: isinstance(node, tuple),
        )

    def layout(
        self, mesh: jax.sharding.Mesh, rules: Rules = RULES, *, memory: str | None = None
    ) -> Params:
        """Returns where every parameter lives under a table of rules."""
        return jax.tree.map(
            lambda axes: sharding(mesh, *axes, rules=rules, memory=memory),
            self.axes(),
            is_leaf=lambda node: isinstance(node, tuple),
        )


def shape_of(config: ModelConfig, pipeline: Pipeline | None = None) -> ModelShape:
    """Returns the model's structure and shapes; no array is made."""
    return ModelShape(
        *nnx.split(nnx.eval_shape(lambda: build_model(config, pipeline, rngs=nnx.Rngs(0))))
    )


def init_state(config: RunConfig, key: jax.Array, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the state at step 0, each leaf made where it will live."""
    tx = make_optimizer(config.optim)

    def build(key: jax.Array) -> TrainState:
        module = build_model(config.model, rngs=nnx.Rngs(params=key))
        params: Params = nnx.to_pure_dict(nnx.state(module))
        state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
        return _take_layers(state, _stage_order(config, mesh), config)

    with jax.set_mesh(mesh):
        state = jax.jit(build, out_shardings=on_devices(state_layout(config, mesh)))(key)
    return jax.device_put(state, state_layout(config, mesh))


def state_layout(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the sharding of every leaf of the state; moments lie as their parameters do.

    With mesh.sharded_state=optimizer the moments are cut as the table says and the parameters are
    not; with mesh.offload_optimizer the moments are in the memory of the host.
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
    """Returns where gradients are summed: cut as their moments are, on the devices."""
    return shape_of(config.model).layout(mesh)


def on_devices(layout: State) -> State:
    """Returns a layout with everything in the memory of the devices."""
    return jax.tree.map(lambda leaf: leaf.with_memory_kind(None), layout)


def _for_moments(config: RunConfig, shape: ModelShape, per_param: Params, other: Any) -> Any:
    """Returns the optimizer state with a value for each moment, that of its parameter."""
    tx = make_optimizer(config.optim)
    return optax.tree.map_params(
        tx,
        lambda _, value: value,
        jax.eval_shape(tx.init, shape.params),
        per_param,
        transform_non_params=lambda _: other,
    )


def abstract_state(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state; no array is made."""
    shapes = shape_of(config.model).params
    step = jax.ShapeDtypeStruct((), jnp.int32)
    tx = make_optimizer(config.optim)
    state = TrainState(step, shapes, jax.eval_shape(tx.init, shapes))
    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        state,
        state_layout(config, mesh),
    )


def in_stage_order(state: TrainState, config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns a state whose layers are in model order with those of each stage side by side."""
    return _reordered(state, _stage_order(config, mesh), config, mesh)


def in_model_order(state: TrainState, config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Undoes in_stage_order: checkpoints know no stages."""
    return _reordered(state, _stage_order(config, mesh).argsort(), config, mesh)


def params_in_stage_order(params: Params, config: RunConfig, mesh: jax.sharding.Mesh) -> Params:
    """Does for parameters alone what in_stage_order does; those that are given are given up."""
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
    """Returns the state in its layout with other layers in each place of its stacks."""
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
