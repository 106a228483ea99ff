"""Reading small programs, written as XLA for CPU and for TPU writes them."""

import numpy as np
import pytest

from sharding.compiled.hlo import Array, parse_groups, parse_module, parse_pairs, parse_type
from sharding.compiled.program import Collective, matmul_flops, read_text

MESH = {"data": 2, "fsdp": 2, "tensor": 2}

LOOP_IN_A_LOOP = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (a: f32[8,4], b: f32[4,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (state.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %x.1 = f32[8,4]{1,0} get-tuple-element(%state.1), index=1
  %weights = f32[2,4]{1,0} constant({...})
  %gather.1 = f32[4,4]{1,0:T(8,128)} all-gather(%weights), replica_groups=[4,2]<=[8], \
dimensions={0}, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/dot_general"}
  %y.1 = f32[8,4]{1,0} fusion(%x.1, %gather.1), kind=kOutput, calls=%fused
  ROOT %next.1 = (s32[], f32[8,4]{1,0}) tuple(%i.1, %y.1)
}

%inner_condition (state.2: (s32[], f32[8,4])) -> pred[] {
  %state.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%state.2), index=0
  %bound = s32[] constant(5)
  ROOT %more = pred[] compare(%i.2, %bound), direction=LT
}

%body (state.3: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state.3 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %loop.1 = (s32[], f32[8,4]{1,0}) while(%state.3), condition=%inner_condition, \
body=%inner_body
}

%condition (state.4: (s32[], f32[8,4])) -> pred[] {
  %state.4 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main.9 (x.0: f32[8,4]) -> f32[8,4] {
  %x.0 = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %state.0 = (s32[], f32[8,4]{1,0}) tuple(%zero, %x.0)
  %loop = (s32[], f32[8,4]{1,0}) while(%state.0), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %x.9 = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %total = f32[8,4]{1,0} all-reduce(%x.9), channel_id=2, \
replica_groups=mesh['a'=2,'b'=4] {'a'}, use_global_device_ids=true, to_apply=%add
}
"""


def entry(*lines: str) -> str:
    """Returns a program of a few instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def collectives(*lines: str) -> tuple[Collective, ...]:
    return read_text(entry(*lines), MESH)[1]


def test_a_kernel_whose_configuration_has_lines_of_its_own_ends_no_computation():
    kernel = (
        '%k = f32[4] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"a": {'
    )
    dot = "%d = f32[4] dot(%m, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    matrix, x = "%m = f32[4,4] parameter(1)", "%x = f32[4] parameter(0)"
    text = entry(x, matrix, kernel, dot).replace('"a": {\n', '"a": {\n}}\n}, metadata={}\n')
    assert read_text(text, MESH)[0] == 2 * 4 * 4


def test_what_begins_a_reduce_scatter_names_its_operand_and_its_result():
    (found,) = collectives(
        "%x = f32[8,4] parameter(0)",
        "%s = ((f32[8,4]), f32[1,4]) reduce-scatter-start(%x), replica_groups=[1,8]<=[8], "
        "dimensions={0}, to_apply=%add",
    )
    assert (found.kind, found.num_bytes) == ("reduce-scatter", 8 * 4 * 4)


def test_what_a_loop_runs_counts_as_often_as_it_runs():
    flops, found, arrays = read_text(LOOP_IN_A_LOOP, MESH)
    # Of the outer loop XLA says that it runs 3 times; that the inner runs 5 is in its condition.
    assert flops == 3 * 5 * (2 * 8 * 4 * 4)
    gather, total = found
    assert gather == Collective(
        kind="all-gather",
        axes=("tensor",),
        arrays=(Array("f32", (4, 4)),),
        loops=(3, 5),
        is_backward=True,
    )
    assert (gather.num_times, gather.num_bytes) == (15, 64)
    assert (total.kind, total.axes, total.loops, total.is_backward) == (
        "all-reduce",
        ("data",),
        (),
        False,
    )
    assert Array("f32", (4, 4)) in arrays
    assert Array("f32", (2, 4)) in arrays


def test_the_arrays_of_nested_tuples_are_read_without_layouts_and_comments():
    first = "(bf16[4096,256]{0,1:T(8,128)(2,1)S(1)}, u32[]{:S(2)})"
    text = f"({first}, /*index=2*/(pred[3], f8e4m3fn[2,5]))"
    arrays = parse_type(text)
    assert [(array.dtype, array.dims) for array in arrays] == [
        ("bf16", (4096, 256)),
        ("u32", ()),
        ("pred", (3,)),
        ("f8e4m3fn", (2, 5)),
    ]
    assert [array.num_bytes for array in arrays] == [4096 * 256 * 2, 4, 3, 10]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("[4,2]<=[2,2,2]T(1,0,2)", [[0, 1], [4, 5], [2, 3], [6, 7]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups_are_read_in_each_way_of_writing_them(text, groups):
    attributes = f"channel_id=1, replica_groups={text}, use_global_device_ids=true"
    found = parse_groups(attributes, num_devices=8)
    assert found is not None
    assert {frozenset(group) for group in found.tolist()} == {frozenset(group) for group in groups}


def test_the_axes_of_a_permutation_are_those_along_which_it_moves():
    pairs = "source_target_pairs={{0,2},{2,0},{1,3},{3,1}}"
    np.testing.assert_array_equal(parse_pairs(pairs), [[0, 2], [2, 0], [1, 3], [3, 1]])
    (found,) = collectives(f"%moved = f32[4]{{0}} collective-permute(%x), channel_id=1, {pairs}")
    assert (found.kind, found.axes) == ("collective-permute", ("fsdp",))


def test_what_starts_and_ends_apart_counts_once_and_with_its_result_alone():
    gathered, moved = collectives(
        "%x = f32[2]{0} parameter(0)",
        "%start = (f32[2]{0}, f32[4]{0}) all-gather-start(%x), replica_groups=[4,2]<=[8]",
        "%done = f32[4]{0} all-gather-done(%start)",
        "%go = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%done), "
        "source_target_pairs={{0,4}}",
        "ROOT %gone = f32[4]{0} collective-permute-done(%go)",
    )
    assert (gathered.kind, gathered.arrays) == ("all-gather", (Array("f32", (4,)),))
    assert (moved.kind, moved.arrays) == ("collective-permute", (Array("f32", (4,)),))


ASYNCHRONOUS = """\
%wrapped (x.1: f32[8]) -> f32[4] {
  %x.1 = f32[8]{0} parameter(0)
  ROOT %part = f32[4]{0} reduce-scatter(%x.1), replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %start = ((f32[8]{0}), f32[4]{0}, u32[]) async-start(%x), calls=%wrapped
  ROOT %done = f32[4]{0} async-done(%start), calls=%wrapped
}
"""


def test_a_collective_inside_an_asynchronous_call_counts_once_with_what_is_scattered():
    (found,) = read_text(ASYNCHRONOUS, MESH)[1]
    assert (found.kind, found.axes) == ("reduce-scatter", ("tensor",))
    assert found.num_bytes == 8 * 4


FUSED = """\
%all-reduce-scatter.1 (input: bf16[64,16]) -> bf16[16,16] {
  %input = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[64,16]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups=[2,4]<=[8]
  %place = s32[] constant(0)
  ROOT %part = bf16[16,16]{1,0} dynamic-slice(%all-reduce.1, %place, %place), \
dynamic_slice_sizes={16,16}
}

ENTRY %main (x: bf16[64,16]) -> bf16[16,16] {
  %x = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %fusion = bf16[16,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_sum_of_which_each_device_takes_a_part_is_a_reduce_scatter():
    (found,) = read_text(FUSED, MESH)[1]
    assert (found.kind, found.axes) == ("reduce-scatter", ("fsdp", "tensor"))
    assert found.num_bytes == 64 * 16 * 2


def test_the_parts_of_an_exchange_of_all_with_all_are_one_array():
    (found,) = collectives(
        "%all = (f32[1,3]{1,0}, /*index=1*/f32[1,3]{1,0}) all-to-all(%x, %y), "
        "replica_groups={{0,1},{2,3},{4,5},{6,7}}"
    )
    assert found.arrays == (Array("f32", (2, 1, 3)),)


def test_a_device_exchanges_nothing_with_itself():
    line = "%same = f32[4]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}"
    assert collectives(line) == ()


BATCHED = "window={size=8x4 stride=7x1 pad=0_0x3_3 lhs_dilate=8x1 rhs_reversal=0x1}"


@pytest.mark.parametrize(
    ("result", "left", "right", "attributes", "flops"),
    [
        ("[32,64]", "[32,16]", "[16,64]", "dim_labels=bf_io->bf", 2 * 32 * 16 * 64),
        ("[16,64]", "[32,16]", "[32,64]", "dim_labels=fb_io->bf", 2 * 32 * 16 * 64),
        # Two out dims of a projection, of which one is made by moving over padding.
        (
            "[32,4,64]",
            "[32,16,1]",
            "[4,64,16]",
            "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_0oi->b0f",
            2 * 32 * 16 * (4 * 64),
        ),
        # Scores of 8 key heads, 4 query heads to each: batch dims of a matmul.
        (
            "[8,32,32,4]",
            "[32,8,16,1]",
            "[16,8,4,32]",
            f"{BATCHED}, dim_labels=b0f1_i01o->0bf1",
            2 * 8 * 4 * 32 * 32 * 16,
        ),
    ],
)
def test_a_matmul_written_as_a_convolution_costs_what_the_matmul_does(
    result, left, right, attributes, flops
):
    text = entry(
        f"%left = bf16{left} parameter(0)",
        f"%right = bf16{right} parameter(1)",
        f"ROOT %product = f32{result} convolution(%left, %right), {attributes}",
    )
    computations, name = parse_module(text)
    computation = computations[name]
    assert matmul_flops(computation["product"], computation) == flops
