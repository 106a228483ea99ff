import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from small_model import refusal

from configs.run import AXES, MeshConfig
from sharding.mesh import make_mesh, mesh_sizes, slices_along
from sharding.rules import num_shards, spec


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({}, {"data": 8}),
        ({"fsdp": 4}, {"data": 2, "fsdp": 4}),
        ({"stage": 2, "tensor": 4}, {"stage": 2, "tensor": 4}),
        ({"data": 1, "expert": 2, "context": "rest"}, {"expert": 2, "context": 4}),
        ({"data": 2, "fsdp": "rest", "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"data": 1, "tensor": "rest"}, {"tensor": 8}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_rest_is_what_the_other_axes_leave_of_eight_devices(asked, sizes):
    got = mesh_sizes(MeshConfig(**asked), 8)
    assert list(got) == list(AXES)
    assert got == {**dict.fromkeys(AXES, 1), **sizes}


def test_a_mesh_holds_every_device_once_and_leaves_layouts_to_the_compiler():
    mesh = make_mesh(MeshConfig(data=2, fsdp="rest", tensor=2))
    assert dict(mesh.shape) == {**dict.fromkeys(AXES, 1), "data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * len(AXES)


def test_a_product_that_is_not_the_number_of_devices_is_refused():
    message = refusal(mesh_sizes, MeshConfig(data=2, fsdp=2, tensor=1), 8)
    assert "mesh.data=2 x mesh.fsdp=2" in message
    assert "a mesh of 4" in message
    assert "8 devices" in message
    assert "--virtual-devices" in message


def test_a_rest_that_is_not_whole_is_refused():
    message = refusal(mesh_sizes, MeshConfig(data="rest", fsdp=3, tensor=1), 8)
    assert "mesh.data=rest x mesh.fsdp=3" in message
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


@pytest.mark.parametrize(
    ("asked", "across"),
    [
        ({"data": 4, "fsdp": 2}, {"data": 2}),
        ({"data": 1, "fsdp": 8}, {"fsdp": 2}),
        ({"data": 1, "stage": 2, "tensor": 4}, {"stage": 2}),
        ({"data": 1, "stage": 4, "fsdp": 2}, {"stage": 2}),
    ],
    ids=str,
)
def test_the_outermost_axis_that_can_crosses_the_slower_network(asked, across):
    sizes = mesh_sizes(MeshConfig(**asked), 8)
    assert {axis: n for axis, n in slices_along(sizes, 2).items() if n > 1} == across


@pytest.mark.parametrize("num_slices", [2, 4])
def test_neighbours_along_an_inner_axis_are_in_one_slice(num_slices):
    config = MeshConfig(data=2, fsdp=2, tensor=2, num_slices=num_slices)
    grid = make_mesh(config).devices.reshape(2, 2, 2)  # of 8 devices, numbered slice by slice
    slice_of = np.vectorize(lambda device: device.id // (8 // num_slices))(grid)
    assert np.all(slice_of[:, :, 0] == slice_of[:, :, 1])
    assert np.all(slice_of[0] < slice_of[1])
    # Two slices are two replicas; of four each holds one half of a sharded replica.
    assert np.all((slice_of[:, 0] == slice_of[:, 1]) == (num_slices == 2))
    assert set(grid.flat) == set(jax.devices())


def test_slices_that_the_outer_axes_cannot_cross_are_refused():
    message = refusal(make_mesh, MeshConfig(data=2, tensor=4, num_slices=4))
    assert "mesh.num_slices=4 must divide mesh.stage=1 x mesh.data=2 x mesh.fsdp=1" in message
    assert "may be 1, 2" in message


def test_slices_that_do_not_divide_the_devices_are_refused():
    message = refusal(make_mesh, MeshConfig(data=2, tensor=4, num_slices=3))
    assert "mesh.num_slices=3" in message


def test_an_unknown_axis_is_an_error():
    with pytest.raises(KeyError):
        spec("embed", "no_such_axis")


def test_the_batch_is_cut_by_data_and_fsdp_together(mesh):
    assert (num_shards("act_batch"), num_shards("mlp"), num_shards("act_len")) == (4, 2, 1)


def test_without_a_mesh_nothing_is_cut():
    assert num_shards("act_batch") == 1
