"""A step computed twice: the same run as without, and a device that computes wrongly is named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from parts import slowly
from small_model import small_batch, small_model, small_run

from configs.errors import Corrupted, SettingsError
from configs.run import GuardConfig
from launch.faults.run_with_fault import after_call, with_flipped_bit
from sharding.distributed.processes import ALONE
from sharding.rules import sharding
from sharding.tree_paths import by_path
from train.checkpoints.parameter_digest import params_digest
from train.health.replay import check_can_replay, digest_maker, digests, step_twice
from train.state import TrainState, init_state
from train.step import compile_train_step


@pytest.fixture
def run(mesh, rng):
    """A step, a maker of the state that it takes, and a batch."""
    config = small_run(small_model(dropout=0.1))
    batch = jax.device_put(small_batch(rng, 8), sharding(mesh, "act_batch", "act_len"))

    def fresh() -> TrainState:
        return init_state(config, jax.random.key(0), mesh)

    return compile_train_step(config, fresh(), batch), fresh, batch


def test_a_step_computed_twice_is_the_step(run):
    step, fresh, batch = run
    expected, metrics = step(fresh(), batch)
    state, again = step_twice(step, fresh(), batch, step=1, processes=ALONE)
    assert params_digest(state.params) == params_digest(expected.params)
    assert float(again.loss) == float(metrics.loss)
    jax.block_until_ready(step(state, batch))  # it can be given to the next step


@pytest.mark.parametrize("number", [1, 2])
def test_a_flipped_bit_names_the_device_and_the_array(run, number: int):
    step, fresh, batch = run
    flip = functools.partial(with_flipped_bit, device=jax.devices()[5])
    wrong = after_call(step, number, flip)
    events: list[tuple[str, dict]] = []
    with pytest.raises(Corrupted) as caught:
        step_twice(
            wrong,
            fresh(),
            batch,
            step=7,
            processes=ALONE,
            emit=lambda event, **details: events.append((event, details)),
        )
    ((event, details),) = events
    assert (event, details["step"]) == ("corrupted", 7)
    assert details["devices"] == [f"{jax.devices()[5]}"]
    assert all("norm" in array for array in details["arrays"])
    message = str(caught.value)
    assert "step 7" in message
    assert "norm" in message
    assert [i for i in range(8) if f"{jax.devices()[i]}" in message] == [5]


def test_what_is_not_finite_is_the_same_twice(run):
    step, fresh, batch = run
    state = fresh()
    broken = state._replace(params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params))
    _, metrics = step_twice(step, broken, batch, step=1, processes=ALONE)
    assert not metrics.finite


def test_a_gpu_needs_deterministic_kernels():
    config = dataclasses.replace(small_run(small_model()), guard=GuardConfig(replay_every_steps=5))
    check_can_replay(config, "cpu")
    with pytest.raises(SettingsError, match=r"guard\.replay_every_steps=5.*train\.deterministic"):
        check_can_replay(config, "gpu")


_KINDS = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool")


@pytest.mark.parametrize("kind", _KINDS)
def test_every_flipped_bit_changes_the_digests_of_its_devices_alone(mesh, kind: str):
    """The sign of a zero, the payload of a NaN and the last bit included; both words change."""
    layout = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    values = np.array([[0.0, -0.0, 1.0, -2.5], [3.0, np.nan, np.inf, 7.0]])
    with np.errstate(invalid="ignore"):
        values = values.astype(jnp.dtype(kind))
    word = np.dtype(f"uint{8 * values.itemsize}")

    def digests_of(flip: np.ndarray) -> dict[str, tuple[int, int]]:
        array = jax.device_put((values.view(word) ^ flip).view(values.dtype), layout)
        return {device: paths["x"] for device, paths in digests({"x": array}).items()}

    def place_mark(place: tuple[int, ...]) -> np.ndarray:
        mark = np.zeros(values.shape, bool)
        mark[place] = True
        return mark

    whole = digests_of(np.zeros(values.shape, word))
    for place in np.ndindex(values.shape):
        cuts = layout.devices_indices_map(values.shape)
        holders = {f"{device}" for device, cut in cuts.items() if place_mark(place)[cut].any()}
        for bit in range(1 if kind == "bool" else 8 * values.itemsize):
            found = digests_of(place_mark(place).astype(word) << word.type(bit))
            assert {device for device in whole if found[device] != whole[device]} == holders
            assert all(found[d][0] != whole[d][0] and found[d][1] != whole[d][1] for d in holders)


def test_words_that_change_places_change_the_digest(mesh, rng):
    layout = NamedSharding(mesh, PartitionSpec())
    values = rng.standard_normal((3, 4, 5), np.float32)
    found = {
        digests({"x": jax.device_put(array, layout)})[f"{jax.devices()[0]}"]["x"]
        for axis in (0, 1, 2)
        for array in (values, np.flip(values, axis), np.roll(values, 1, axis))
    }
    assert len(found) == 7
    assert digests({"x": jax.device_put(values, layout)}) == digests(
        {"x": jax.device_put(values.copy(), layout)}
    )


@pytest.mark.parametrize("memory", ["device", *slowly("pinned_host")])
def test_no_digest_hears_of_another_device_or_copies_what_it_reads(mesh, memory: str):
    """Wherever the state lies, what comes to the host is two words for an array and device."""
    state = init_state(small_run(small_model(embed_dim=256)), jax.random.key(0), mesh)
    layout = jax.tree.map(lambda x: x.sharding.with_memory_kind(memory), state.opt_state)
    kept = state._replace(opt_state=jax.device_put(state.opt_state, layout))
    assert digests(kept) == digests(state)
    arrays = list(by_path(kept).values())
    make = digest_maker(tuple(array.sharding for array in arrays))
    compiled = make.lower(arrays).compile()  # pyright: ignore[reportFunctionMemberAccess]
    for name in ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter"):
        assert name not in compiled.as_text()
    assert make(arrays).shape == (8, len(arrays), 2)
    memory_use = compiled.memory_analysis()
    assert memory_use.output_size_in_bytes == len(arrays) * 8
    num_bytes = sum(array.addressable_shards[0].data.nbytes for array in arrays)
    if memory == "device":
        assert memory_use.temp_size_in_bytes < num_bytes / 10
