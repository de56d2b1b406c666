"""Which collectives run beside products: by hand in small texts, and in a program for a slice."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.fit import chips
from undo_jax.fit.overlap import overlap
from undo_jax.fit.step import mesh_on
from undo_jax.runtime.mesh import parse_mesh

PRODUCT = "  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
KERNEL = (
    "  %y = f32[8,8]{1,0} custom-call(%x), "
    'backend_config={"custom_call_config":{"cost_estimate":{"flops":"345","bytes":"1"}}}\n'
)
COPY = "  %y = f32[8,8]{1,0} copy(%x)\n"
START = "  %s = (f32[2], f32[8]) all-gather-start(%p), dimensions={0}\n"
END = "  %g = f32[8]{0} all-gather-done(%s)\n"
ASYNC = (  # of what has no pair of its own: a computation that is started
    "  %s = ((f32[2]), f32[8]) async-start(%p), calls=%started\n",
    "  %g = f32[8]{0} async-done(%s)\n",
)
SPARSE = (  # on v5p's and v6e's SparseCores
    "  %s = ((f32[2]), f32[8]) call-start(%p), to_apply=%started, "
    'async_execution_thread="sparsecore"\n',
    "  %g = f32[8]{0} call-done(%s)\n",
)
RECEIVED = 3 * 8  # bytes: of four devices' two floats, all but its own


def _overlap(*lines, header="is_scheduled=true, "):
    text = f"HloModule one, {header}num_partitions=4\n\n"
    text += "%started (a: f32[2]) -> f32[8] {\n  %a = f32[2]{0} parameter(0)\n"
    text += "  ROOT %h = f32[8]{0} all-gather(%a), dimensions={0}\n}\n\n"
    text += "ENTRY %main (p: f32[2], x: f32[8,8]) -> f32[8] {\n"
    text += "  %p = f32[2]{0} parameter(0)\n  %x = f32[8,8]{1,0} parameter(1)\n"
    return overlap(text + "".join(lines) + "  ROOT %r = f32[8]{0} copy(%g)\n}\n")


@pytest.mark.parametrize(
    ("lines", "hidden"),
    [
        ((START, PRODUCT, END), True),
        ((START, KERNEL, END), True),
        ((START, COPY, END), False),
        ((PRODUCT, START, END), False),
        ((START, END, PRODUCT), False),
        (("  %g = f32[8]{0} all-gather(%p), dimensions={0}\n", PRODUCT), False),
        ((ASYNC[0], PRODUCT, ASYNC[1]), True),
        ((ASYNC[0], ASYNC[1], PRODUCT), False),
        ((SPARSE[0], PRODUCT, SPARSE[1]), True),
        ((SPARSE[0], SPARSE[1], PRODUCT), False),
    ],
)
def test_a_collective_is_hidden_by_a_product_between_its_start_and_its_end(lines, hidden):
    found = _overlap(*lines)
    assert found.total == {"all-gather": RECEIVED}
    assert found.hidden == {"all-gather": RECEIVED * hidden}
    assert found.share == float(hidden)


def test_each_end_belongs_to_its_own_start():
    """The second is started and awaited while the first is on its way, before the product."""
    second = START.replace("%s", "%t"), END.replace("%g", "%h").replace("%s", "%t")
    found = _overlap(START, *second, PRODUCT, END)
    assert found.total == {"all-gather": 2 * RECEIVED}
    assert found.hidden == {"all-gather": RECEIVED} and found.share == 0.5


FUSIONS = """HloModule fusions, is_scheduled=true, num_partitions=4

%begin (a: f32[2]) -> (f32[2], f32[8]) {
  %a = f32[2]{0} parameter(0)
  %g = f32[8]{0} all-gather(%a), dimensions={0}
  ROOT %b = (f32[2]{0}, f32[8]{0}) tuple(%a, %g)
}

%async_collective_fusion (c: f32[8], x.1: f32[8,8]) -> (f32[8,8], f32[8]) {
  %c = f32[8]{0} parameter(0)
  %x.1 = f32[8,8]{1,0} parameter(1)
  %d = f32[2]{0} slice(%c), slice={[0:2]}
  %h = f32[8]{0} all-gather(%d), dimensions={0}
  %y = f32[8,8]{1,0} MADE(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %e = (f32[8,8]{1,0}, f32[8]{0}) tuple(%y, %h)
}

%end (f: f32[8]) -> f32[8] {
  %f = f32[8]{0} parameter(0)
  %i = f32[2]{0} slice(%f), slice={[0:2]}
  ROOT %j = f32[8]{0} all-gather(%i), dimensions={0}
}

%body (state: (s32[], f32[2], f32[8,8])) -> (s32[], f32[2], f32[8,8]) {
  %state = (s32[], f32[2]{0}, f32[8,8]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %p = f32[2]{0} get-tuple-element(%state), index=1
  %x = f32[8,8]{1,0} get-tuple-element(%state), index=2
  %async-collective-start.1 = (f32[2], f32[8]) fusion(%p), kind=kCustom, calls=%begin
  %w = f32[8]{0} get-tuple-element(%async-collective-start.1), index=1
  %fusion.1 = (f32[8,8], f32[8]) fusion(%w, %x), kind=kOutput, calls=%async_collective_fusion
  %z = f32[8,8]{1,0} get-tuple-element(%fusion.1), index=0
  %v = f32[8]{0} get-tuple-element(%fusion.1), index=1
  %async-collective-done.1 = f32[8]{0} fusion(%v), kind=kCustom, calls=%end
  %late = f32[8,8]{1,0} dot(%z, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[2]{0}, f32[8,8]{1,0}) tuple(%step, %p, %late)
}

%condition (state.1: (s32[], f32[2], f32[8,8])) -> pred[] {
  %state.1 = (s32[], f32[2]{0}, f32[8,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (q: (s32[], f32[2], f32[8,8])) -> f32[2] {
  %q = (s32[], f32[2]{0}, f32[8,8]{1,0}) parameter(0)
  %loop = (s32[], f32[2], f32[8,8]) while(%q), condition=%condition, body=%body, KNOWN
  %last = f32[2]{0} get-tuple-element(%loop), index=1
  %s = (f32[2], f32[2]) all-reduce-start(%last), to_apply=%add
  ROOT %r = f32[2]{0} all-reduce-done(%s)
}
""".replace("KNOWN", 'backend_config={"known_trip_count":{"n":"5"}}')


@pytest.mark.parametrize(("made", "hidden"), [("dot", True), ("add", False)])
def test_fusions_of_libtpu_in_a_loop_of_five(made, hidden):
    """The product is in the fusion that moves the collective on; that after its end is too late."""
    found = overlap(FUSIONS.replace("MADE", made))
    assert found.total == {"all-gather": 5 * RECEIVED, "all-reduce": 2 * 8 * 3 / 4}
    assert found.hidden == {"all-gather": 5 * RECEIVED * hidden, "all-reduce": 0}


def test_a_program_without_collectives_hides_all():
    assert _overlap("  %g = f32[8]{0} broadcast(%p)\n").share == 1


def test_an_order_is_needed():
    with pytest.raises(ValueError, match="not scheduled: give the text of a compiled program"):
        _overlap(START, END, header="")


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_gathered_matrix_hides_behind_the_product_before_it():
    """libtpu gathers the second of two matrices beside the first one's product."""
    mesh = mesh_on(chips.find("v5e:2x2"), parse_mesh("fsdp=4"))

    def argument(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    def run(x, first, second):
        whole = jax.lax.all_gather(second, "fsdp", axis=0, tiled=True)
        return (x @ first) @ whole

    x, first, second = P("fsdp"), P(), P("fsdp")
    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(x, first, second), out_specs=x, check_vma=False
    )
    width = 4096
    arguments = argument((4 * width, width), x), argument((width, width), first)
    text = jax.jit(sharded).lower(*arguments, argument((width, width), second)).compile().as_text()
    found = overlap(text)
    assert found.total == {"all-gather": 2 * width * width * 3 / 4}
    assert found.share == 1
