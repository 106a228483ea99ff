import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_model import mesh_of, quick_jit, small_model

from configs.model import ModelConfig
from model.moe.moe import MoE, likeliest
from sharding.rules import sharding, spec
from sharding.zigzag import zigzag_order

B, T, D = 8, 16, 16
ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "swiglu": lambda u: u / (1 + np.exp(-u)),
    "gelu": lambda u: u * (1 + ERF(u / np.sqrt(2))) / 2,
    "gelu_tanh": lambda u: u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) / 2,
    "relu2": lambda u: np.maximum(u, 0) ** 2,
}
by_dispatch = pytest.mark.parametrize("dispatch", ["dropless", "capacity"])


def experts_of(num: int, active: int, **changes) -> ModelConfig:
    return small_model(num_layers=1, num_experts=num, num_active_experts=active, **changes)


def counts(config: ModelConfig) -> tuple[int, int]:
    """Returns E and A."""
    assert config.num_experts is not None
    assert config.num_active_experts is not None
    return config.num_experts, config.num_active_experts


def random_weights(config: ModelConfig, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: MoE(config, rngs=nnx.Rngs(0)))))
    return {name: 0.3 * rng.standard_normal(x.shape, np.float32) for name, x in state.items()}


class Rows:
    """Tokens, some of which are padding, and what the loss makes of their output and balance."""

    def __init__(self, rng: np.random.Generator):
        self.x = rng.standard_normal((B, T, D), np.float32)
        self.is_token = np.arange(T) < rng.integers(T // 2, T + 1, B)[:, None]
        self.slope = rng.standard_normal((B, T, D), np.float32)
        self.balance_slope = rng.standard_normal(B, np.float32)


@pytest.fixture
def rows(rng) -> Rows:
    return Rows(rng)


def apply(config, weights, x, is_token, places=None):
    moe = nnx.eval_shape(lambda: MoE(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(moe)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)(x, is_token_BT=is_token, row_index_T=places)


def loss(weights, x, is_token, slope, balance_slope, places, *, config):
    y, record = apply(config, weights, x, is_token, places)
    return jnp.sum(y * slope) + jnp.sum(record.balance_B * balance_slope), (y, record)


def on_one_device(config: ModelConfig, weights, rows: Rows):
    """Returns ((gradients of the weights, of x), (y, record))."""
    both = quick_jit(jax.grad(functools.partial(loss, config=config), (0, 1), has_aux=True))
    return both(weights, rows.x, rows.is_token, rows.slope, rows.balance_slope, None)


def choices(config: ModelConfig, weights, rows: Rows) -> np.ndarray:
    """Returns the experts of each token, [B, T, A], the likeliest first."""
    logits = rows.x.astype(np.float64) @ weights["router"]
    return np.argsort(-logits, axis=-1)[..., : counts(config)[1]]


def places_found(config: ModelConfig, chosen: np.ndarray, is_token: np.ndarray) -> np.ndarray:
    """Returns which choices an expert has a place for, booleans [B, T, A]: the rule, as a loop."""
    E, A = counts(config)
    C = math.ceil(config.expert_capacity_factor * A * T / E)
    found = np.zeros(chosen.shape, bool)
    for b in range(B):
        taken = [0] * E
        for a in range(A):
            for t in range(T):
                if is_token[b, t]:
                    found[b, t, a] = taken[chosen[b, t, a]] < C
                    taken[chosen[b, t, a]] += 1
    return found


def reference(config: ModelConfig, weights, rows: Rows, found: np.ndarray):
    """Every expert computes every token; then what was not chosen, or found no place, is left out.

    Returns ((gradients of the weights, of x), (y, balance)), by hand.
    """
    (E, A), h = counts(config), 1e-5
    act = ACTIVATIONS[config.mlp]
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    x, dy = rows.x.astype(np.float64), rows.slope
    logits = x @ weights["router"]
    chosen = choices(config, weights, rows)
    is_chosen, is_found = np.zeros((2, B, T, E))
    np.put_along_axis(is_chosen, chosen, 1, axis=-1)
    np.put_along_axis(is_found, chosen, found, axis=-1)
    share = np.exp(logits) * is_chosen
    share /= share.sum(-1, keepdims=True)
    y, dx, dshare = np.zeros(x.shape), np.zeros(x.shape), np.zeros(logits.shape)
    grads = {name: np.zeros(weight.shape) for name, weight in weights.items()}
    for e in range(E):
        into = weights["gate" if config.mlp == "swiglu" else "up"][e]
        inner = x @ into
        factor = x @ weights["up"][e] if config.mlp == "swiglu" else 1
        hidden = act(inner) * factor
        out = hidden @ weights["down"][e]
        part = (is_found * share)[..., e, None]
        y += part * out
        dshare[..., e] = is_found[..., e] * (dy * out).sum(-1)
        grads["down"][e] = np.einsum("btf,btd->fd", hidden, part * dy)
        dhidden = (part * dy) @ weights["down"][e].T
        dinner = dhidden * factor * (act(inner + h) - act(inner - h)) / (2 * h)
        dx += dinner @ into.T
        name = "gate" if config.mlp == "swiglu" else "up"
        grads[name][e] = np.einsum("btd,btf->df", x, dinner)
        if config.mlp == "swiglu":
            dfactor = dhidden * act(inner)
            dx += dfactor @ weights["up"][e].T
            grads["up"][e] = np.einsum("btd,btf->df", x, dfactor)
    mass = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    is_token = rows.is_token[..., None]
    num_tokens = rows.is_token.sum(1)
    load = (is_chosen * is_token).sum(1) / (A * num_tokens)[:, None]
    balance = num_tokens * E * (load * (mass * is_token).sum(1) / num_tokens[:, None]).sum(-1)
    dmass = (rows.balance_slope[:, None] * E * load)[:, None] * is_token
    dlogits = share * (dshare - (share * dshare).sum(-1, keepdims=True))
    dlogits += mass * (dmass - (mass * dmass).sum(-1, keepdims=True))
    grads["router"] = np.einsum("btd,bte->de", x, dlogits)
    return (grads, dx + dlogits @ weights["router"].T), (y, balance)


def assert_close(actual, expected, tolerance=1e-5):
    """Each array by its norm: float32 sums of a few hundred products stay well below 1e-5."""
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(wanted)


QUICK = {(8, 2, "swiglu"), (4, 3, "gelu"), (4, 1, "gelu_tanh"), (8, 3, "relu2")}


@pytest.mark.parametrize(
    ("num", "active", "mlp"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in ((E, A, mlp) for E in (4, 8) for A in (1, 2, 3) for mlp in ACTIVATIONS)
    ],
)
def test_dropless_is_the_weighted_sum_of_what_the_chosen_experts_make_of_a_token(
    rows, num, active, mlp
):
    config = experts_of(num, active, mlp=mlp)
    weights = random_weights(config)
    found = np.repeat(rows.is_token[..., None], active, axis=-1)
    gradients, (y, record) = on_one_device(config, weights, rows)
    assert_close((gradients, (y, record.balance_B)), reference(config, weights, rows, found))
    assert not np.any(record.dropped_B)


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_with_capacity_first_choices_take_the_places_first_and_what_finds_none_is_dropped(
    rows, factor
):
    config = experts_of(4, 2, expert_dispatch="capacity", expert_capacity_factor=factor)
    weights = random_weights(config)
    found = places_found(config, choices(config, weights, rows), rows.is_token)
    gradients, (y, record) = on_one_device(config, weights, rows)
    assert_close((gradients, (y, record.balance_B)), reference(config, weights, rows, found))
    dropped_B = (rows.is_token[..., None] & ~found).sum((1, 2))
    assert dropped_B.any()
    np.testing.assert_array_equal(record.dropped_B, dropped_B)


@by_dispatch
def test_padding_is_routed_nowhere_and_changes_nothing(rows, dispatch):
    config = experts_of(4, 2, expert_dispatch=dispatch, expert_capacity_factor=0.5)
    weights = random_weights(config)
    compute = quick_jit(functools.partial(apply, config))
    y, record = compute(weights, rows.x, rows.is_token)
    assert not np.any(y[~rows.is_token])
    x = np.where(rows.is_token[..., None], rows.x, 7)
    jax.tree.map(np.testing.assert_array_equal, compute(weights, x, rows.is_token), (y, record))


def balance_of(x: np.ndarray, is_token: np.ndarray, scale: float) -> float:
    """Returns the balance of a row's tokens where expert e is for what has its e-th channel on."""
    config = experts_of(4, 1)
    weights = {**random_weights(config), "router": scale * np.eye(D, 4, dtype=np.float32)}
    _, record = quick_jit(functools.partial(apply, config))(weights, x[None], is_token[None])
    return float(record.balance_B[0]) / is_token.sum()


def test_balance_is_one_where_experts_are_chosen_evenly_and_their_number_where_one_always_is():
    even = np.eye(D, dtype=np.float32)[np.arange(T) % 4]
    # A sum of exponentials in float32; exp(-100) is nothing beside 1.
    assert balance_of(even, np.arange(T) < 12, 1.0) == pytest.approx(1, rel=1e-6)
    assert balance_of(even[[0] * T], np.arange(T) < 11, 100.0) == pytest.approx(4, rel=1e-6)


def test_the_router_of_bfloat16_computes_in_float32():
    # Logits 256 and 257: one number in bfloat16, where the first would be chosen.
    config = experts_of(2, 1, mlp="relu2", dtype="bfloat16")
    weights = {name: np.zeros_like(weight) for name, weight in random_weights(config).items()}
    weights["router"][0] = 256, 257
    weights["up"][:, 0, 0] = 1
    weights["down"][:, 0, 0] = 1, 2
    x = jnp.zeros((1, 1, D), jnp.bfloat16).at[..., 0].set(1)
    y, _ = quick_jit(functools.partial(apply, config))(weights, x, np.ones((1, 1), bool))
    assert y.dtype == jnp.bfloat16
    assert y[0, 0, 0] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_token_has_different_experts_even_where_its_logits_are_not_finite(value):
    logits = jnp.array([[[value] * 5, [value, 1, value, 2, 0]]])
    for token in np.asarray(likeliest(logits, 4))[0]:
        assert len({*token}) == 4


def placed(config: ModelConfig, weights, rows: Rows, mesh: jax.sharding.Mesh):
    """Returns the arguments of the loss on a mesh, columns as its context wants them, and those."""
    context = mesh.shape["context"]
    order = zigzag_order(T, context) if context > 1 else np.arange(T)
    _, state = nnx.split(nnx.eval_shape(lambda: MoE(config, rngs=nnx.Rngs(0))))
    axes = {path[0]: leaf.axes for path, leaf in nnx.to_flat_state(state)}
    weights = {k: jax.device_put(v, sharding(mesh, *axes[k])) for k, v in weights.items()}
    layout = sharding(mesh, "act_batch", "act_len")
    columns = [jax.device_put(x[:, order], layout) for x in (rows.x, rows.is_token, rows.slope)]
    balance_slope = jax.device_put(rows.balance_slope, sharding(mesh, "act_batch"))
    places = jnp.asarray(order) if context > 1 else None
    return (weights, *columns, balance_slope, places), order


def on_mesh(config: ModelConfig, weights, rows: Rows, cut: dict[str, int]):
    """Returns what on_one_device does, and the compiled program."""
    mesh = mesh_of(**cut)
    with jax.set_mesh(mesh):
        arguments, order = placed(config, weights, rows, mesh)
        both = jax.grad(functools.partial(loss, config=config), (0, 1), has_aux=True)
        program = quick_jit(both).lower(*arguments).compile()
        (dweights, dx), (y, record) = program(*arguments)
    in_order = np.argsort(order)
    columns = [np.asarray(x)[:, in_order] for x in (dx, y)]
    return ((dweights, columns[0]), (columns[1], record)), program


CUTS = {
    "expert 2": {"expert": 2},
    "expert 4": {"expert": 4},
    "expert 8": {"expert": 8},
    "expert 4 x tensor 2": {"expert": 4, "tensor": 2},
    "expert 4 x fsdp 2": {"expert": 4, "fsdp": 2},
    "expert 2 x context 4": {"expert": 2, "context": 4},
    "expert 2 x context 2 x tensor 2": {"expert": 2, "context": 2, "tensor": 2},
    "data 2 x expert 2 x tensor 2": {"data": 2, "expert": 2, "tensor": 2},
    "fsdp 2 x tensor 4": {"fsdp": 2, "tensor": 4},
}
QUICK_CUTS = {"expert 8", "expert 2 x context 2 x tensor 2", "data 2 x expert 2 x tensor 2"}


@by_dispatch
@pytest.mark.parametrize(
    "cut",
    [pytest.param(c, marks=() if c in QUICK_CUTS else pytest.mark.slow) for c in CUTS],
)
def test_the_layout_changes_neither_the_output_nor_a_gradient(rows, dispatch, cut):
    config = experts_of(8, 2, expert_dispatch=dispatch, expert_capacity_factor=0.7)
    weights = random_weights(config)
    expected = on_one_device(config, weights, rows)
    assert dispatch == "dropless" or np.any(expected[1][1].dropped_B)
    actual, _ = on_mesh(config, weights, rows, CUTS[cut])
    # What is dropped does not depend on the layout at all; an empty sum has no relative error.
    np.testing.assert_array_equal(actual[1][1].dropped_B, expected[1][1].dropped_B)
    assert_close(actual, expected, tolerance=2e-6)  # the same terms in another order


@pytest.mark.parametrize("cut", [{"expert": 8}, {"expert": 2, "tensor": 2}], ids=str)
def test_every_token_may_be_sent_to_one_device(rows, cut):
    config = experts_of(8, 2)
    weights = random_weights(config)
    weights["router"][0] = [0, 0, 0, 0, 0, 9, 8, 0]
    rows.x[..., 0] = 5
    rows.is_token[...] = True
    chosen = choices(config, weights, rows)
    assert np.all(chosen == [5, 6])
    actual, _ = on_mesh(config, weights, rows, cut)
    expected = reference(config, weights, rows, np.ones_like(chosen, bool))
    assert_close((actual[0], (actual[1][0], actual[1][1].balance_B)), expected)


def gathered(program) -> list[int]:
    """Returns how many numbers each all-gather of a program gives a device."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program.as_text())
    return [math.prod(int(size) for size in shape.split(",")) for shape in shapes]


@by_dispatch
def test_no_device_has_the_weights_of_all_experts_nor_the_tokens_of_others(rows, dispatch):
    config = experts_of(8, 2, expert_dispatch=dispatch)
    weights = random_weights(config)
    _, program = on_mesh(config, weights, rows, {"expert": 8})
    layouts = program.input_shardings[0][0]
    for name in ("gate", "up", "down"):
        whole = weights[name].shape
        assert layouts[name].shard_shape(whole) == (1, *whole[1:])
    # All that is gathered is how many rows each device has for each expert.
    assert max(gathered(program), default=0) <= 8 * 8
    _, program = on_mesh(config, weights, rows, {"expert": 4, "fsdp": 2})
    assert max(gathered(program)) == weights["up"].size // 4


@by_dispatch
def test_stages_of_a_pipeline_compute_what_each_does_alone(rows, dispatch):
    config = experts_of(4, 2, expert_dispatch=dispatch, expert_capacity_factor=0.8)
    weights_S = [random_weights(config, seed=seed) for seed in range(2)]
    mesh = mesh_of(stage=2, expert=2, tensor=2)
    tokens = (rows.x, rows.is_token, rows.slope, rows.balance_slope)
    one = jax.grad(functools.partial(loss, places=None, config=config), (0, 1), has_aux=True)
    with jax.set_mesh(mesh):
        layout = NamedSharding(mesh, P("stage", *spec("act_batch")))
        tokens_S = [jax.device_put(np.stack([x, x]), layout) for x in tokens]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *weights_S)
        stages = quick_jit(jax.vmap(one, spmd_axis_name="stage"))
        together = jax.tree.map(np.asarray, stages(stacked, *tokens_S))
    for stage, weights in enumerate(weights_S):
        (dweights, dx), (y, _) = jax.tree.map(lambda x, stage=stage: x[stage], together)
        (expected_dweights, expected_dx), (expected_y, _) = on_one_device(config, weights, rows)
        assert_close((dweights, dx, y), (expected_dweights, expected_dx, expected_y), 2e-6)


def test_rows_travel_ragged_where_there_is_such_a_collective_and_padded_on_cpu(rows):
    config = experts_of(8, 2)
    mesh = mesh_of(expert=4, tensor=2)
    with jax.set_mesh(mesh):
        arguments, _ = placed(config, random_weights(config), rows, mesh)
        both = jax.jit(jax.grad(functools.partial(loss, config=config), (0, 1), has_aux=True))
        traced = both.trace(*arguments)
        texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("tpu", "cuda", "cpu")}
    # There and back, forward and backward.
    ragged = {platform: text.count("@ragged_all_to_all") for platform, text in texts.items()}
    assert ragged == {"tpu": 4, "cuda": 4, "cpu": 0}
    assert "stablehlo.all_to_all" not in texts["tpu"] + texts["cuda"]
