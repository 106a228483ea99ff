import dataclasses

import jax
import pytest
from jax.sharding import AxisType
from small_model import small_model, small_run

from configs.errors import SettingsError
from configs.run import EvalConfig, MeshConfig
from sharding.mesh import check_fit, make_mesh, mesh_sizes
from sharding.rules import num_shards, spec


def refusal(call, *arguments, **settings) -> str:
    with pytest.raises(SettingsError) as error:
        call(*arguments, **settings)
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"fsdp": 2, "tensor": 4}, (1, 2, 4)),
        ({"data": 2, "fsdp": "rest", "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "tensor": "rest"}, (1, 1, 8)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
    ids=str,
)
def test_rest_is_what_the_other_axes_leave_of_eight_devices(asked, sizes):
    got = mesh_sizes(MeshConfig(**asked), 8)
    assert list(got.items()) == list(zip(("data", "fsdp", "tensor"), sizes, strict=True))


def test_a_mesh_holds_every_device_once_and_leaves_layouts_to_the_compiler():
    mesh = make_mesh(MeshConfig(data=2, fsdp="rest", tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_a_product_that_is_not_the_number_of_devices_is_refused():
    message = refusal(mesh_sizes, MeshConfig(data=2, fsdp=2, tensor=1), 8)
    assert "mesh.data=2 x mesh.fsdp=2 x mesh.tensor=1" in message
    assert "a mesh of 4" in message
    assert "8 devices" in message
    assert "--virtual-devices" in message


def test_a_rest_that_is_not_whole_is_refused():
    message = refusal(mesh_sizes, MeshConfig(data="rest", fsdp=3, tensor=1), 8)
    assert "mesh.data=rest x mesh.fsdp=3 x mesh.tensor=1" in message
    assert "3 must divide" in message
    assert "8 devices" in message
    assert "--virtual-devices" in message


def test_a_mesh_larger_than_the_machine_is_refused():
    message = refusal(mesh_sizes, MeshConfig(data="rest", tensor=16), 8)
    assert "mesh.tensor=16" in message
    assert "8 devices" in message


def test_two_rests_are_refused():
    message = refusal(MeshConfig, data="rest", fsdp="rest")
    assert "mesh.data and mesh.fsdp" in message
    assert "give all but one of them a size" in message


def test_an_axis_of_size_zero_is_refused():
    assert refusal(MeshConfig, tensor=0) == "mesh.tensor=0 must be at least 1"


def sizes_of(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


def test_a_batch_must_divide_over_devices_and_microbatches():
    config = small_run(train={"batch_size": 8, "num_microbatches": 4})
    check_fit(config, sizes_of(data=2, tensor=2))
    message = refusal(check_fit, config, sizes_of(data=2, fsdp=2, tensor=2))
    assert "train.batch_size=8 must be a multiple of 16" in message
    assert "mesh.data=2 x mesh.fsdp=2 x train.num_microbatches=4" in message


def test_a_batch_must_divide_over_microbatches():
    message = refusal(small_run, train={"batch_size": 8, "num_microbatches": 3})
    expected = "train.batch_size=8 must be a multiple of train.num_microbatches=3"
    assert message == expected


def test_a_batch_of_evaluation_must_divide_over_devices():
    config = small_run(train={"batch_size": 8})
    config = dataclasses.replace(config, eval=EvalConfig(every_steps=None, batch_size=6))
    check_fit(config, sizes_of(data=2))
    message = refusal(check_fit, config, sizes_of(data=2, fsdp=2))
    assert "eval.batch_size=6 must be a multiple of 4" in message
    assert "mesh.data=2 x mesh.fsdp=2" in message


@pytest.mark.parametrize(
    ("changes", "sizes", "expected", "way_out"),
    [
        (
            {"num_heads": 6, "num_kv_heads": 6},
            sizes_of(tensor=4),
            "model.num_heads=6 must be a multiple of mesh.tensor=4",
            "mesh.tensor may be 1, 2",
        ),
        (
            {"num_heads": 8, "num_kv_heads": 2},
            sizes_of(tensor=4),
            "model.num_kv_heads=2 must be a multiple of mesh.tensor=4",
            "mesh.tensor may be 1, 2",
        ),
        (
            {"mlp_dim": 30, "num_kv_heads": 4},
            sizes_of(tensor=4),
            "model.mlp_dim=30 must be a multiple of mesh.tensor=4",
            "mesh.tensor may be 1, 2",
        ),
        (
            {"num_heads": 3, "num_kv_heads": 3, "mlp_dim": 3},
            sizes_of(tensor=3),
            "model.vocab_size (padded)=128 must be a multiple of mesh.tensor=3",
            "mesh.tensor may be 1, 2",
        ),
        (
            {"embed_dim": 20},
            sizes_of(fsdp=8),
            "model.embed_dim=20 must be a multiple of mesh.fsdp=8",
            "mesh.fsdp may be 1, 2",
        ),
    ],
    ids=["num_heads", "num_kv_heads", "mlp_dim", "vocab_size", "embed_dim"],
)
def test_a_shape_that_the_mesh_cannot_cut_is_refused(changes, sizes, expected, way_out):
    message = refusal(check_fit, small_run(small_model(**changes)), sizes)
    assert expected in message
    assert way_out in message


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"num_kv_heads": 4}, sizes_of(data=2, tensor=4)),
        ({}, sizes_of(fsdp=8)),
        (
            {"num_heads": 3, "num_kv_heads": 1, "mlp_dim": 5, "embed_dim": 7},
            sizes_of(data=8),
        ),
    ],
    ids=str,
)
def test_a_shape_that_the_mesh_can_cut_is_accepted(changes, sizes):
    check_fit(small_run(small_model(**changes)), sizes)


def test_an_unknown_axis_is_an_error():
    with pytest.raises(KeyError):
        spec("embed", "no_such_axis")


def test_the_batch_is_cut_by_data_and_fsdp_together(mesh):
    assert (num_shards("act_batch"), num_shards("mlp"), num_shards("act_len")) == (4, 2, 1)


def test_without_a_mesh_nothing_is_cut():
    assert num_shards("act_batch") == 1
