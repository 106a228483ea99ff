"""What a mesh asks of the settings is said in words, with what would do."""

import dataclasses

import pytest
from small_model import refusal, small_model, small_run

from configs.attention_backends import ATTENTION_BACKENDS
from configs.run import AXES, EvalConfig, MeshConfig
from sharding.layout_check import check_fit, check_platform


def sizes_of(**sizes: int) -> dict[str, int]:
    return {axis: sizes.get(axis, 1) for axis in AXES}


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
            {"num_layers": 3},
            sizes_of(stage=3),
            "model.vocab_size (padded)=128 must be a multiple of mesh.stage=3",
            "mesh.stage may be 1, 2",
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
    config = small_run(small_model(**changes), train={"batch_size": 24})
    message = refusal(check_fit, config, sizes)
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


def with_length(config, length):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_len=length))


def test_a_row_must_divide_over_context_and_tensor_and_into_the_two_halves_of_a_zigzag():
    config = with_length(small_run(), 24)
    check_fit(config, sizes_of(context=4))
    message = refusal(check_fit, config, sizes_of(context=8))
    assert "data.sequence_len=24 must be a multiple of 16" in message
    assert "mesh.context=8" in message
    assert "may be 16 or 32" in message


def test_layers_must_divide_over_stages_and_their_groups():
    config = small_run(small_model(num_layers=6))
    check_fit(config, sizes_of(stage=2))
    message = refusal(check_fit, config, sizes_of(stage=4))
    assert "model.num_layers=6 must be a multiple of mesh.stage=4" in message
    assert "may be 1, 2, 3, 6" in message
    grouped = dataclasses.replace(config, mesh=MeshConfig(num_stage_groups=2))
    message = refusal(check_fit, grouped, sizes_of(stage=2))
    assert "mesh.stage=2 x mesh.num_stage_groups=2" in message


def test_groups_of_layers_without_stages_are_refused():
    config = dataclasses.replace(small_run(), mesh=MeshConfig(num_stage_groups=2))
    assert "mesh.num_stage_groups=2 must be 1 with mesh.stage=1" in refusal(
        check_fit, config, sizes_of(data=8)
    )


def test_microbatches_must_divide_over_stages_and_the_batch_over_them():
    config = dataclasses.replace(
        small_run(train={"batch_size": 8}), mesh=MeshConfig(num_stage_microbatches=3)
    )
    message = refusal(check_fit, config, sizes_of(stage=2))
    assert "mesh.num_stage_microbatches=3 must be a multiple of mesh.stage=2" in message
    config = dataclasses.replace(config, mesh=MeshConfig(num_stage_microbatches=4))
    message = refusal(check_fit, config, sizes_of(stage=2, data=4))
    assert "train.batch_size=8 must be a multiple of 16" in message
    assert "mesh.data=4 x mesh.num_stage_microbatches=4" in message


def test_experts_must_divide_over_their_axis():
    moe = small_run(small_model(num_experts=6, num_active_experts=2, embed_dim=48))
    check_fit(moe, sizes_of(expert=2))
    message = refusal(check_fit, moe, sizes_of(expert=4))
    assert "model.num_experts=6 must be a multiple of mesh.expert=4" in message
    assert "may be 1, 2, 3" in message


def test_an_axis_of_experts_without_experts_is_refused():
    message = refusal(check_fit, small_run(), sizes_of(expert=2))
    assert "mesh.expert=2 must be 1 with model.num_experts=None" in message


def test_dropout_of_probabilities_is_refused_where_rows_are_cut():
    config = small_run(small_model(attention_dropout=0.1))
    check_fit(config, sizes_of(tensor=2))
    message = refusal(check_fit, config, sizes_of(context=2))
    assert "model.attention_dropout=0.1 must be 0 with mesh.context=2" in message


def test_a_backend_that_the_ring_does_not_run_over_is_refused_under_it():
    config = small_run(small_model(attention_backend="plain"))
    check_fit(config, sizes_of(tensor=2))
    message = refusal(check_fit, config, sizes_of(context=2))
    assert "model.attention_backend=plain must be auto or blockwise with" in message
    assert "model.context_attention=ring and mesh.context=2" in message
    gathering = small_model(attention_backend="plain", context_attention="all_gather")
    check_fit(small_run(gathering), sizes_of(context=2))
    check_fit(small_run(small_model(attention_backend="blockwise")), sizes_of(context=2))


def test_a_backend_is_refused_on_a_platform_that_it_does_not_run_on(monkeypatch):
    of_gpus = dataclasses.replace(ATTENTION_BACKENDS["blockwise"], platforms=("gpu",))
    monkeypatch.setitem(ATTENTION_BACKENDS, "blockwise", of_gpus)
    config = small_run(small_model(attention_backend="blockwise"))
    check_platform(config, "gpu")
    message = refusal(check_platform, config, "cpu")
    assert "model.attention_backend=blockwise does not run on cpu" in message
    assert message.endswith("model.attention_backend may be auto, plain")


@pytest.mark.parametrize(
    ("changes", "field", "way_out"),
    [
        ({"mesh": MeshConfig(offload_optimizer=True)}, "mesh.offload_optimizer=True", "False"),
        (
            {"model": small_model(remat="named", remat_offloaded=("gate",))},
            "model.remat_offloaded=gate",
            "model.remat_saved",
        ),
    ],
    ids=["optimizer", "activations"],
)
def test_offload_on_a_cpu_is_refused_and_on_a_gpu_is_not(changes, field, way_out):
    config = dataclasses.replace(small_run(), **changes)
    message = refusal(check_platform, config, "cpu")
    assert field in message
    assert "cpu" in message
    assert way_out in message
    check_platform(config, "gpu")
