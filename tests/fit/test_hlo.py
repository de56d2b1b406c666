"""What is counted in HLO: by hand in small texts, and against arithmetic in a real program."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.fit import costs, hlo
from undo_jax.fit.chips import CHIPS
from undo_jax.fit.costs import Cost
from undo_jax.fit.hlo import Array
from undo_jax.fit.roofline import serial

LOOP = """HloModule loop, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,16], f32[5,16,16])) -> (s32[], f32[8,16], f32[5,16,16]) {
  %state = (s32[], f32[8,16]{1,0}, /*index=2*/f32[5,16,16]{2,1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %all = f32[5,16,16]{2,1,0} get-tuple-element(%state), index=2
  %zero = s32[] constant(0)
  %one = s32[] constant(1)
  %slice = f32[1,16,16]{2,1,0} dynamic-slice(%all, %step, %zero, %zero)
  %w = f32[16,16]{1,0} bitcast(%slice)
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[8,16]{1,0} all-reduce(%y), replica_groups=GROUPS, to_apply=%add
  %next = s32[] add(%step, %one)
  ROOT %out = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%next, %z, %all)
}

%condition (state.1: (s32[], f32[8,16], f32[5,16,16])) -> pred[] {
  %state.1 = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %step.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%step.1, %limit), direction=LT
}

ENTRY %main (p0: f32[8,16], p1: f32[5,16,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[5,16,16]{2,1,0} parameter(1)
  %start = s32[] constant(0)
  %first = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%start, %p0, %p1)
  %loop = (s32[], f32[8,16], f32[5,16,16]) while(%first), condition=%condition, body=%bodyKNOWN
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""
ONE = "HloModule one, num_partitions=4\n\nENTRY %main (p: f32[2]) -> f32[2] {{\n{}\n}}\n"


def _loop(known="", groups="{{0,1,2,3},{4,5,6,7}}", **changes):
    text = LOOP.replace("KNOWN", known).replace("GROUPS", groups)
    for before, after in changes.items():
        text = text.replace(before, after)
    return costs.cost(text)


def test_a_loop_counts_as_often_as_its_condition_lets_it():
    """Per turn: a product of 8×16×16; reads x, w and y and writes the slice, y, z and the index."""
    found = _loop()
    assert found.flops == 5 * 2 * 8 * 16 * 16
    x, w = 8 * 16 * 4, 16 * 16 * 4
    scalars = 4 + 3 * 4 + 2 * 4  # step + one = next; step, zero, zero index the slice
    assert found.memory == 5 * ((w + w) + (x + w + x) + (x + x) + scalars)
    assert found.collectives == {"all-reduce": 5 * 2 * x * 3 / 4}


def test_instructions_one_after_another_each_at_its_peak():
    """The product by its FLOPs; copying the slice, the all-reduce and the sum by their bytes."""
    text = LOOP.replace("KNOWN", "").replace("GROUPS", "{{0,1,2,3},{4,5,6,7}}")
    flops, x, w = 2 * 8 * 16 * 16, 8 * 16 * 4, 16 * 16 * 4
    chip = replace(CHIPS["v5e"], flops=flops / 3, memory=float(x))  # the product: 3 s, and 4 s
    others = (w + w) / x + 2 + (4 + 3 * 4 + 2 * 4) / x
    assert serial(text, chip) == pytest.approx(5 * (4 + others))
    assert serial(text, replace(chip, flops=flops / 9)) == pytest.approx(5 * (9 + others))
    often = {one.opcode: times for times, one, _ in costs.parts(costs.entry_frame(text))}
    assert (often["dot"], often["all-reduce"], often["tuple"]) == (5, 5, 5)
    assert not {"while", "conditional", "call"} & set(often)


def test_a_known_trip_count_wins_over_the_condition():
    known = ', backend_config={"known_trip_count":{"n":"7"},"other":{}}'
    assert _loop(known).flops == 7 * 2 * 8 * 16 * 16


def test_less_or_equal_runs_once_more():
    assert _loop(**{"direction=LT": "direction=LE"}).flops == 6 * 2 * 8 * 16 * 16


def test_a_loop_that_does_not_tell_is_an_error():
    with pytest.raises(ValueError, match="loop loop does not tell"):
        _loop(**{"%limit = s32[]{:T(128)} constant(5)": "%limit = s32[] custom-call()"})


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([4,2]T(1,0)) {'b','c'}", 8),
        ("{}", 8),
    ],
)
def test_the_group_of_a_collective_however_it_is_written(groups, size):
    sent = 8 * 16 * 4
    assert _loop(groups=groups).collectives == {"all-reduce": 5 * 2 * sent * (size - 1) / size}


@pytest.mark.parametrize(
    ("line", "kind", "received"),
    [
        ("all-gather(%p), dimensions={0}", "all-gather", 3 * 8),
        ("reduce-scatter(%p), dimensions={0}", "reduce-scatter", 8 * 3 / 4),
        ("all-to-all(%p), dimensions={0}", "all-to-all", 8 * 3 / 4),
        ("collective-permute(%p), source_target_pairs={{0,1}}", "collective-permute", 8),
        ("all-gather-start(%p), dimensions={0}", "all-gather", 3 * 8),
        ("all-gather-done(%p)", None, 0),
    ],
)
def test_what_a_device_receives(line, kind, received):
    text = ONE.format(f"  %p = f32[2]{{0}} parameter(0)\n  ROOT %r = f32[2]{{0}} {line}")
    assert costs.cost(text).collectives == ({kind: received} if kind else {})


@pytest.mark.parametrize(
    ("line", "multiplications"),
    [
        # [16,64,8] × [8,32] as TPU writes it, a batch of 16 products, a sum over 16 positions,
        # and heads taken from an input of one position
        ("f32[16,64,32] convolution(f32[16,64,8], f32[8,32,1]), window={size=1}, "
         "dim_labels=0bf_io0->0bf", 16 * 64 * 8 * 32),
        ("f32[16,4,64,32] convolution(f32[16,4,64,8], f32[16,32,4,8]), "
         "window={size=16x4 stride=15x3 lhs_dilate=16x4}, dim_labels=01bf_0o1i->01bf",
         16 * 4 * 64 * 8 * 32),
        ("f32[8,32,1] convolution(f32[16,8,64], f32[16,64,32]), window={size=16}, "
         "dim_labels=0bf_0io->bf0", 16 * 64 * 8 * 32),
        ("f32[16,64,4,32] convolution(f32[16,64,8,1], f32[4,32,8,1]), "
         "window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
         16 * 64 * 8 * 4 * 32),
        ("f32[1,10,3] convolution(f32[1,10,2], f32[3,2,3]), window={size=3 pad=1_1}, "
         "dim_labels=b0f_0io->b0f", (10 * 3 - 2) * 2 * 3),
        # every other position: the outer two of three find padding twice
        ("f32[1,10,3] convolution(f32[1,10,2], f32[3,2,3]), window={size=3 pad=2_2 rhs_dilate=2}, "
         "dim_labels=b0f_0io->b0f", (8 + 10 + 8) * 2 * 3),
    ],
)  # fmt: skip
def test_a_matrix_product_written_as_a_convolution(line, multiplications):
    made, rest = line.split(" ", 1)
    left, right = (shape.dims for shape in hlo.arrays(rest.split("window")[0])[:2])
    text = ONE.format(
        f"  %p = f32[{','.join(map(str, left))}] parameter(0)\n"
        f"  %q = f32[{','.join(map(str, right))}] parameter(1)\n"
        f"  ROOT %r = {made} convolution(%p, %q), window" + rest.split("window")[1]
    )
    assert costs.cost(text).flops == 2 * multiplications


def test_a_product_without_a_sum():
    """Of every element of one with every element of the other."""
    text = ONE.format(
        "  %p = f32[4] parameter(0)\n  %q = f32[5] parameter(1)\n  ROOT %r = f32[4,5] dot(%p, %q)"
    )
    assert costs.cost(text).flops == 2 * 4 * 5


def test_a_fusion_reads_what_it_looks_at_and_writes_what_is_new():
    """One of ten rows is read and replaced in place; what is in VMEM does not count."""
    text = """HloModule fused

%fused (rows: f32[10,4], at: s32[], x: f32[1,4]) -> f32[10,4] {
  %rows = f32[10,4]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %x = f32[1,4]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,4]{1,0} dynamic-slice(%rows, %at, %zero), dynamic_slice_sizes={1,4}
  %sum = f32[1,4]{1,0} add(%row, %x)
  ROOT %new = f32[10,4]{1,0} dynamic-update-slice(%rows, %sum, %at, %zero)
}

ENTRY %main (p0: f32[10,4], p1: s32[], p2: f32[1,4]) -> f32[10,4] {
  %p0 = f32[10,4]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %p2 = f32[1,4]{1,0:T(1,128)S(1)} parameter(2)
  ROOT %r = f32[10,4]{1,0:T(8,128)} fusion(%p0, %p1, %p2), kind=kLoop, calls=%fused
}
"""
    assert costs.cost(text).memory == 16 + 16
    both = "(f32[10,4]{1,0:T(8,128)}, f32[1,4]{1,0:T(8,128)})"  # the row beside all rows
    two = text.replace("ROOT %new", "%new").replace("%r = f32[10,4]{1,0:T(8,128)}", f"%r = {both}")
    two = two.replace(
        "%at, %zero)\n}", f"%at, %zero)\n  ROOT %two = {both} tuple(%new, %sum)\n}}", 1
    )
    assert costs.cost(two).memory == 16 + 16 + 16


ASYNC = """HloModule async, num_partitions=4

%begin (a: f32[2]) -> f32[8] {
  %a = f32[2]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%a), dimensions={0}
}

%async_collective_fusion (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  %s = f32[2]{0} slice(%b), slice={[0:2]}
  ROOT %h = f32[8]{0} all-gather(%s), dimensions={0}
}

%end (c: f32[8]) -> f32[8] {
  %c = f32[8]{0} parameter(0)
  %t = f32[2]{0} slice(%c), slice={[0:2]}
  ROOT %i = f32[8]{0} all-gather(%t), dimensions={0}
}

%all-reduce-scatter.3 (d: f32[8]) -> f32[2] {
  %d = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%d), to_apply=%add
  ROOT %u = f32[2]{0} slice(%r), slice={[0:2]}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %async-collective-start.1 = f32[8]{0} fusion(%p), kind=kCustom, calls=%begin
  %f = f32[8]{0} fusion(%async-collective-start.1), kind=kOutput, calls=%async_collective_fusion
  %async-collective-done.1 = f32[8]{0} fusion(%f), kind=kCustom, calls=%end
  ROOT %x = f32[2]{0} fusion(%async-collective-done.1), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_a_collective_that_runs_beside_arithmetic_counts_once_and_a_sliced_sum_is_a_scatter():
    found = costs.cost(ASYNC)
    assert found.collectives == {"all-gather": 3 * 8, "reduce-scatter": 32 * 3 / 4}
    reads_and_writes = (8 + 32) + (8 + 32) + (32 + 8)  # waiting costs nothing
    assert found.memory == reads_and_writes


def test_kernels_say_what_they_do_and_splash_is_known_by_its_name():
    """Two products for each pair of blocks up to the diagonal: 10 of 4 × 4, of 8 × 8 tokens."""
    kernel = (
        "  %p = f32[2]{0} parameter(0)\n  ROOT %r = f32[2]{0} custom-call(%p), "
        'backend_config={"custom_call_config":{"cost_estimate":{"flops":"345","bytes":"1"}}}'
    )
    assert costs.cost(ONE.format(kernel)).flops == 345
    for kind, products in (("fwd_residuals", 2), ("dq_no_residuals", 3), ("dkv_no_residuals", 4)):
        text = ONE.format(
            "  %p = s8[1,4,4]{2,1,0} parameter(0)\n  %q = bf16[2,3,5,32,128]{4,3,2,1,0} "
            "parameter(1)\n  %k = bf16[2,3,32,128]{3,2,1,0} parameter(2)\n"
            f"  ROOT %splash_mqa_{kind}.1 = f32[2]{{0}} custom-call(%p, %q, %k)"
        )
        assert costs.cost(text).flops == 2 * products * 2 * 3 * 5 * (10 * 8 * 8) * 128


DOT = (
    '"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
    '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],'
    '"rhs_batch_dimensions":["0"]}}'
)


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul"])
def test_a_matrix_product_of_cublas(target):
    """Four of 8×16×32, in bf16; its scratch is no traffic."""
    text = ONE.format(
        "  %p = bf16[4,8,16]{2,1,0} parameter(0)\n  %q = bf16[4,16,32]{2,1,0} parameter(1)\n"
        "  ROOT %r = (bf16[4,8,32]{2,1,0}, s8[4194304]{0}) custom-call(%p, %q), "
        f'custom_call_target="{target}", backend_config={{{DOT}}}'
    )
    found = costs.cost(text)
    assert found.flops == 2 * 4 * 8 * 16 * 32
    assert found.memory == 2 * 4 * (8 * 16 + 16 * 32 + 8 * 32)


def test_a_kernel_on_gpu_says_what_it_does_or_is_refused():
    kernel = (
        "  %p = f32[2]{{0}} parameter(0)\n  ROOT %pallas_call.8 = f32[2]{{0}} custom-call(%p), "
        'custom_call_target="__gpu$xla.gpu.triton", {}metadata={{}}'
    )
    counted = kernel.format('frontend_attributes={kernel="a",flops="85899345920"}, ')
    assert costs.cost(ONE.format(counted)).flops == 85899345920
    with pytest.raises(ValueError, match="pallas_call.8 does not say its FLOPs"):
        costs.cost(ONE.format(kernel.format("")))


@pytest.mark.parametrize(
    ("line", "far"),
    [
        ("((f32[2], f32[4]), (f32[8], f32[16])) all-gather-start(%p, %q)", (2 + 4) + (8 + 16)),
        ("((f32[2]), f32[8]) all-gather-start(%p)", 2 + 8),
        ("(f32[2], f32[4]) all-reduce-start(%p, %q)", 2 * (2 + 4)),
        ("f32[2] all-reduce-start(%p)", 2 + 2),
        ("(f32[2], f32[2], u32[], u32[]) collective-permute-start(%p)", 2 + 2),
    ],
)
def test_a_collective_that_starts_reads_its_operands_once(line, far):
    text = ONE.format(
        f"  %p = f32[2]{{0}} parameter(0)\n  %q = f32[4]{{0}} parameter(1)\n  ROOT %r = {line}"
    )
    assert costs.cost(text).memory == 4 * far


@pytest.mark.parametrize(
    ("line", "far"),
    [
        ("(f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%p)", 8),  # to VMEM
        ("(f32[8]{0}, f32[8]{0:S(1)}, u32[]{:S(2)}) copy-start(%q)", 8),  # from there
        ("((f32[8]{0}), f32[2]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[2:4]}", 2),
    ],
)
def test_a_copy_that_starts_is_read_or_written_in_hbm(line, far):
    text = ONE.format(
        f"  %p = f32[8]{{0}} parameter(0)\n  %q = f32[8]{{0:S(1)}} parameter(1)\n  ROOT %r = {line}"
    )
    assert costs.cost(text).memory == 4 * far


def test_the_costly_branch_counts():
    branch = (
        "%{0} (x: f32[4,4]) -> f32[4,4] {{\n  %x = f32[4,4] parameter(0)\n  ROOT %y = {1}\n}}\n"
    )
    dot = "f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    entry = (
        "ENTRY %main (p: f32[4,4], q: pred[]) -> f32[4,4] {\n  %p = f32[4,4] parameter(0)\n"
        "  %q = pred[] parameter(1)\n  ROOT %r = f32[4,4] conditional(%q, %p, %p), "
    )
    for attributes in (
        "true_computation=%yes, false_computation=%no",
        "branch_computations={%yes, %no}",
    ):
        text = branch.format("yes", dot) + branch.format("no", "f32[4,4] copy(%x)")
        assert costs.cost(text + entry + attributes + "\n}\n").flops == 2 * 4**3


def test_shapes():
    assert hlo.arrays("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[], s4[8])") == (
        Array("bf16", (2, 3), near=True),
        Array("pred", ()),
        Array("s4", (8,)),
    )
    assert [Array(name, (8,)).bytes for name in ("pred", "s4", "bf16", "f32", "token")] == [
        8, 4, 16, 32, 0,
    ]  # fmt: skip


def test_costs_add_and_multiply():
    one, other = Cost(1, 2, {"all-gather": 3}), Cost(4, 5, {"all-reduce": 6})
    assert (one + other) * 2 == Cost(10, 14, {"all-gather": 6, "all-reduce": 12})


def test_text_that_is_not_hlo():
    with pytest.raises(ValueError, match="no ENTRY"):
        costs.cost("module {}")


def test_a_program_compiled_for_cpu():
    """A scan of products over a sharded width: FLOPs and all-reduced bytes are exact."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w[0]) @ w[1], None), x, weights)[0]

    def shape(dims, *spec):
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    x, whole = shape((32, 64)), NamedSharding(mesh, P())
    weights = shape((6, 64, 256), None, None, "d"), shape((6, 256, 64), None, "d", None)
    compiled = jax.jit(run, out_shardings=whole).lower(x, weights).compile()
    found = costs.cost(compiled.as_text())
    assert found.flops == 6 * 2 * (2 * 32 * 64 * 256) / 8
    assert found.collectives == {"all-reduce": 6 * 2 * (32 * 64 * 4) * 7 / 8}
    assert found.memory > 6 * 2 * (64 * 256 * 4) / 8  # at least the weights
