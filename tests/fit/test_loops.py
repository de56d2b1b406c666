"""How often loops run: by hand in small texts, and in a windowed einsum that libtpu has made."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from undo_jax.fit import chips, costs
from undo_jax.fit.step import mesh_on
from undo_jax.runtime.mesh import parse_mesh

LOOP = """HloModule loop

%body (state: (TYPE[], f32[8,16], f32[16,16])) -> (TYPE[], f32[8,16], f32[16,16]) {
  %state = (TYPE[], f32[8,16]{1,0}, f32[16,16]{1,0}) parameter(0)
  %at = TYPE[] get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %w = f32[16,16]{1,0} get-tuple-element(%state), index=2
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %by = TYPE[] constant(BY)
  %next = TYPE[] NEXT
  ROOT %out = (TYPE[], f32[8,16]{1,0}, f32[16,16]{1,0}) tuple(%next, %y, %w)
}

%condition (state.1: (TYPE[], f32[8,16], f32[16,16])) -> pred[] {
  %state.1 = (TYPE[], f32[8,16]{1,0}, f32[16,16]{1,0}) parameter(0)
  %at.1 = TYPE[]{:T(128)} get-tuple-element(%state.1), index=0
  %other = TYPE[] constant(7)
  %limit = TYPE[]{:T(128)} constant(LIMIT)
  ROOT %more = pred[]{:T(512)} compare(SIDES), direction=TEST, metadata={op_name="while"}
}

ENTRY %main (p0: f32[8,16], p1: f32[16,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[16,16]{1,0} parameter(1)
  %constant = TYPE[] constant(START)
  %start = TYPE[]{:T(128)} copy(%constant)
  %first = (TYPE[], f32[8,16]{1,0}, f32[16,16]{1,0}) tuple(%start, %p0, %p1)
  %loop = (TYPE[], f32[8,16], f32[16,16]) while(%first), condition=%condition, body=%body
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""
TURN = 2 * 8 * 16 * 16  # FLOPs
UP = {"TYPE": "s32", "START": 0, "BY": 1, "NEXT": "add(%at, %by)", "LIMIT": 5, "TEST": "LT",
      "SIDES": "%at.1, %limit"}  # fmt: skip


def _turns(text=LOOP, **changes):
    for word, value in (changes | UP | changes).items():
        text = text.replace(word, str(value))
    return costs.cost(text).flops / TURN


@pytest.mark.parametrize(
    ("changes", "turns"),
    [
        ({}, 5),
        ({"BY": 2, "LIMIT": 8, "TYPE": "u32"}, 4),  # 0 2 4 6, as windowed einsums count
        ({"BY": 2}, 3),  # 0 2 4
        ({"BY": 2, "TEST": "LE", "LIMIT": 4}, 3),
        ({"START": 3, "BY": 4, "LIMIT": 16}, 4),  # 3 7 11 15
        ({"START": 3, "BY": 4, "LIMIT": 15, "TEST": "NE"}, 3),
        ({"START": -4, "BY": 3}, 3),  # -4 -1 2
        ({"START": 9, "BY": -2, "LIMIT": 1, "TEST": "GT"}, 4),  # 9 7 5 3
        ({"START": 9, "BY": -2, "LIMIT": 1, "TEST": "GE"}, 5),
        ({"START": 9, "BY": 2, "LIMIT": 0, "TEST": "GE", "NEXT": "subtract(%at, %by)"}, 5),
        ({"START": 6, "BY": 4294967295, "LIMIT": 2, "TEST": "NE", "TYPE": "u32"}, 4),  # by -1
        ({"START": 9, "LIMIT": 5}, 0),
        ({"TEST": "GT", "SIDES": "%limit, %at.1"}, 5),
        ({"BY": 3, "TEST": "GE", "SIDES": "%limit, %at.1", "LIMIT": 6}, 3),
        ({"START": 1, "BY": 3, "NEXT": "multiply(%at, %by)", "LIMIT": 100}, 5),  # 1 3 9 27 81
    ],
)
def test_a_loop_runs_as_often_as_counting_by_hand_says(changes, turns):
    assert _turns(**changes) == turns


def test_a_condition_in_a_fusion_and_a_step_in_one():
    """TPU fuses scalars now and then; their operands come in another order."""
    test = """%fused (a: s32[], b: s32[]) -> pred[] {
  %b = s32[] parameter(1)
  %a = s32[] parameter(0)
  ROOT %c = pred[] compare(%b, %a), direction=LT
}

%stepped (d: s32[]) -> s32[] {
  %d = s32[] parameter(0)
  %two = s32[] constant(2)
  ROOT %e = s32[] add(%d, %two)
}

"""
    text = LOOP.replace("%body (", test + "%body (", 1)
    text = text.replace(
        "compare(SIDES), direction=TEST", "fusion(%limit, %at.1), kind=kLoop, calls=%fused"
    )
    assert _turns(text, NEXT="fusion(%at), kind=kLoop, calls=%stepped", LIMIT=9) == 5


OUTER = """%around (state.2: (s32[], s32[], f32[8,16], f32[16,16])) -> KEPT {
  %state.2 = KEPT parameter(0)
  %turn = s32[] get-tuple-element(%state.2), index=0
  %kept = s32[] get-tuple-element(%state.2), index=1
  %x.2 = f32[8,16]{1,0} get-tuple-element(%state.2), index=2
  %w.2 = f32[16,16]{1,0} get-tuple-element(%state.2), index=3
  %first = (s32[], f32[8,16]{1,0}, f32[16,16]{1,0}) tuple(%kept, %x.2, %w.2)
  %loop = (s32[], f32[8,16], f32[16,16]) while(%first), condition=%condition, body=%body
  %y.2 = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  %one = s32[] constant(1)
  %turns = s32[] add(%turn, %one)
  ROOT %out.2 = KEPT tuple(%turns, RETURNED, %y.2, %w.2)
}

%thrice (state.3: KEPT) -> pred[] {
  %state.3 = KEPT parameter(0)
  %turn.3 = s32[] get-tuple-element(%state.3), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%turn.3, %three), direction=LT
}

ENTRY %main (p0: f32[8,16], p1: f32[16,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[16,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %constant = s32[] constant(START)
  %all = KEPT tuple(%zero, %constant, %p0, %p1)
  %loops = KEPT while(%all), condition=%thrice, body=%around
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loops), index=2
}
""".replace("KEPT", "(s32[], s32[], f32[8,16]{1,0}, f32[16,16]{1,0})")
NESTED = LOOP[: LOOP.index("ENTRY")] + OUTER


def test_a_loop_in_a_loop_starts_where_the_outer_one_keeps_it():
    text = NESTED.replace("RETURNED", "%kept")
    assert _turns(text, START=1, BY=2, LIMIT=8) == 3 * 4  # 1 3 5 7
    with pytest.raises(ValueError, match="loop loop does not tell how often it runs"):
        _turns(NESTED.replace("RETURNED", "%turn"))  # it differs from turn to turn


@pytest.mark.parametrize(
    "changes",
    [
        {"START": 9, "BY": 0, "TEST": "GT"},  # without end
        {"NEXT": "custom-call(%at, %by)"},
        {"SIDES": "%limit, %made", "TEST": "LT"},
        {"constant(START)": "parameter(2)"},
    ],
)
def test_a_loop_that_does_not_tell_is_refused(monkeypatch, changes):
    monkeypatch.setattr("undo_jax.fit.loops.MAX_TRIPS", 1000)
    text = LOOP.replace("  ROOT %more", "  %made = s32[] custom-call()\n  ROOT %more")
    with pytest.raises(ValueError, match="loop loop does not tell how often it runs"):
        _turns(text, **changes)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_windowed_einsum_of_libtpu():
    """Rows of one side move around the ring in both directions, while two others are multiplied.

    In all each of 16 devices multiplies [4096, 4096] by its [4096, 512], and receives 15 shares.
    """
    mesh = mesh_on(chips.find("v5e:4x4"), parse_mesh("fsdp=16"))

    def argument(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    product = jax.jit(jnp.matmul, out_shardings=NamedSharding(mesh, P(None, "fsdp")))
    compiled = product.lower(
        argument((4096, 4096), "fsdp", None), argument((4096, 8192), None, "fsdp")
    ).compile(compiler_options={"xla_jf_spmd_threshold_for_windowed_einsum_mib": "0"})
    text = compiled.as_text()
    assert text is not None and "windowed_dot_general_body" in text
    found = costs.cost(text)
    assert found.flops == 2 * 4096 * 4096 * 512
    share = 2 * 256 * 4096
    assert found.collectives["collective-permute"] >= 15 * share
