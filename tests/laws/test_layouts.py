"""The law of layouts: however a run is cut over devices, it is the run of one device."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT
from parts import slowly
from small_layouts import MODELS, Course, Cut, course, on_one_device, run_of

from configs.errors import SettingsError
from configs.run import AXES
from sharding.layout_check import check_fit

ALONE: list[Cut] = [((axis, size),) for axis in AXES for size in (2, 4, 8)]
PAIRS: list[Cut] = [((one, 2), (other, 4)) for one, other in itertools.combinations(AXES, 2)]
PRODUCTS: list[Cut] = [
    (("data", 2), ("fsdp", 2), ("tensor", 2)),
    (("fsdp", 2), ("context", 2), ("tensor", 2)),
    (("fsdp", 2), ("expert", 4)),
    (("data", 2), ("expert", 2), ("tensor", 2)),
    (("stage", 2), ("fsdp", 4)),
    (("stage", 2), ("data", 2), ("tensor", 2)),
]
FOUR_AXES: Cut = (("stage", 2), ("fsdp", 2), ("context", 2), ("tensor", 2))
QUICK: list[tuple[str, Cut]] = [
    ("dense", (("data", 2), ("fsdp", 2), ("tensor", 2))),
    ("packed", (("fsdp", 2), ("context", 2), ("tensor", 2))),
    ("packed", (("stage", 2), ("data", 2), ("tensor", 2))),
    ("moe", (("expert", 8),)),
    ("t5", (("tensor", 8),)),
    ("lstm", (("fsdp", 2), ("tensor", 2), ("stage", 2))),
]
"""The rows that always run: every axis, and one of each kind of stack."""
MIXED: list[tuple[str, Cut]] = [
    ("future", (("context", 2), ("tensor", 2), ("stage", 2))),
    ("gemma", (("context", 2), ("tensor", 2), ("stage", 2))),
    ("modernbert", (("context", 2), ("tensor", 2), ("stage", 2))),
    ("latent", (("expert", 2), ("tensor", 2), ("stage", 2))),
    ("moe_capacity", (("expert", 2), ("context", 2))),
]
"""Kinds with rules of their own about context and stage."""
TABLE = [*MIXED, *((name, cut) for name in MODELS for cut in (*ALONE, *PAIRS, *PRODUCTS))]


def refused_field(name: str, cut: Cut) -> str | None:
    """Returns the field that the refusal of a combination that cannot be names; None if it can."""
    model, axes = MODELS[name], dict(cut)
    in_order = model.architecture == "encoder_decoder" or model.is_recurrent
    num_layers = model.num_stacked_layers // axes.get("stage", 1)
    if "expert" in axes and model.num_experts is None:  # only experts can be cut into experts
        return "mesh.expert="
    if "context" in axes and in_order:
        return "mesh.context="
    if "stage" in axes and model.architecture == "encoder_decoder":
        return "mesh.stage="
    if num_layers % len(model.attention_pattern or (0,)):  # a stage has whole periods
        return "mesh.stage="
    return None


REFUSED = {(name, cut): field for name, cut in TABLE if (field := refused_field(name, cut))}
"""Combinations that cannot be, and the field that the refusal names."""


def name_of(value: object) -> str | None:
    """Returns the words of a layout or a change in the name of a test."""
    match value:
        case tuple():
            return "-".join(f"{axis}{size}" for axis, size in value)
        case dict():
            return ",".join(f"{field.partition('.')[2]}={x}" for field, x in value.items())
    return None


def assert_same(found: Course, expected: Course, *, params_tolerance: float = 1e-5) -> None:
    """Asserts that a course is that of one device: the same terms in another order, in float32.

    Parameters are compared by the norm of each leaf.
    """
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=1e-5)
    assert found.params.keys() == expected.params.keys()
    for path, leaf in expected.params.items():
        difference = np.linalg.norm(found.params[path] - leaf)
        assert difference <= params_tolerance * np.linalg.norm(leaf), path


@pytest.mark.parametrize(("name", "cut"), QUICK, ids=name_of)
def test_the_layout_does_not_change_the_run(name, cut):
    assert_same(course(name, cut), on_one_device(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cut"), TABLE, ids=name_of)
def test_no_layout_changes_the_run(name, cut):
    if (name, cut) in REFUSED:
        with pytest.raises(SettingsError, match=REFUSED[name, cut]):
            check_fit(run_of(name, cut), {axis: dict(cut).get(axis, 1) for axis in AXES})
        return
    assert_same(course(name, cut), on_one_device(name))


WAYS = [
    ("packed", (("fsdp", 4), ("data", 2)), {"mesh.sharded_state": "optimizer"}),
    ("packed", (("stage", 2),), {"mesh.num_stage_groups": 2, "mesh.num_stage_microbatches": 4}),
    ("packed", (("context", 4),), {"model.context_attention": "all_gather"}),
]
"""Ways of computing a layout that always run."""
SLOW_WAYS = [
    ("packed", (("data", 2), ("tensor", 2)), {"train.num_microbatches": 4}),
    ("moe", (("data", 2), ("expert", 2)), {"train.num_microbatches": 2}),
    ("moe", (("stage", 2), ("expert", 2)), {"mesh.num_stage_groups": 4}),
    (
        "packed",
        (("stage", 2), ("fsdp", 2)),
        {"mesh.num_stage_groups": 2, "train.num_microbatches": 2, "model.remat": "full"},
    ),
    ("packed", (("context", 2), ("tensor", 2)), {"model.num_kv_heads": 2}),
    ("window", (("context", 4),), {"model.context_attention": "all_gather"}),
    ("dense", (("data", 2), ("tensor", 4)), {"model.attention_dropout": 0.1}),
    (
        "packed",
        (("fsdp", 2), ("tensor", 2)),
        {"model.remat": "named", "model.remat_saved": ("query", "attention", "gate")},
    ),
]


@pytest.mark.parametrize(
    ("name", "cut", "changes"),
    [*WAYS, *slowly(*SLOW_WAYS)],
    ids=name_of,
)
def test_no_way_of_computing_a_layout_changes_the_run(name, cut, changes):
    model = {key: value for key, value in changes.items() if key.startswith("model.")}
    assert_same(course(name, cut, **changes), on_one_device(name, **model))


@pytest.mark.parametrize("cut", [PRODUCTS[0], pytest.param(ALONE[1], marks=pytest.mark.slow)])
def test_the_layout_does_not_change_a_run_of_adamw(cut):
    changes = {"optim.optimizer": "adamw", "optim.peak_lr": 0.003}
    # Adam divides by the root of the second moment, and so by rounding where a gradient is small.
    found, expected = course("packed", cut, **changes), on_one_device("packed", **changes)
    assert_same(found, expected, params_tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if refused_field(n, FOUR_AXES) is None])
def test_four_axes_at_once_change_nothing(name, tmp_path, environment):
    saved = tmp_path / "course.npz"
    subprocess.run(
        (sys.executable, ROOT / "tests/helpers/small_layouts.py", saved, name, repr(FOUR_AXES)),
        env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"},
        check=True,
    )
    with np.load(saved) as arrays:
        named = dict(arrays)
        found = Course(named.pop("losses"), named.pop("grad_norms"), named)
    assert_same(found, on_one_device(name))
