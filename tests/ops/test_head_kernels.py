"""The head's kernels for TPU and GPU, interpreted on a CPU, against the plain losses in fp32."""

import re
from contextlib import nullcontext
from itertools import product
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import plain_head
import pytest
from jax.experimental.pallas import tpu as pltpu

from undo_jax.ops import gpu, head, head_gpu, head_tile, head_tpu, head_tpu_kernels
from undo_jax.runtime.mesh import MeshShape, make_mesh

TILES, CHOSEN, DEPTH = head_tpu.tiles, head_gpu.chosen, head_gpu.DEPTH
B, T, D, D2, V = 4, 9, 24, 40, 300  # 36 rows in blocks of 16, 300 tokens in tiles of 256 or 32
NAMES = pytest.mark.parametrize("name", ["cross_entropy", "kl_to_teacher", "kl_to_uniform"])
CAPS = pytest.mark.parametrize("cap", [None, 2.0, 50.0])  # 50: above head_tile.BOUND
FAST = {(None, V), (2.0, V), (None, 288), (50.0, 768)}  # caps and vocabularies


@pytest.fixture(autouse=True, params=[head_tpu, head_gpu], ids=["tpu", "gpu"])
def kernels(request, monkeypatch):
    """Those of one kind, with small tiles."""
    monkeypatch.setattr(request.param, "chosen", lambda *_: True)
    monkeypatch.setattr(head_tpu, "tiles", lambda *_: head_tpu.Tiles(16, 256, cores=2))
    small = {"ROWS": 16, "COLUMNS": 32, "DEPTH": 8, "PART": 128, "LIVE": 2 * 48 * 100}
    for name, value in small.items():
        monkeypatch.setattr(head_gpu, name, value)
    monkeypatch.setattr(gpu, "INTERPRET", True)
    with pltpu.force_tpu_interpret_mode() if request.param is head_tpu else nullcontext():
        yield request.param


def _case(dtype=jnp.float32, scale=2.0, vocabulary=V):
    keys = iter(jax.random.split(jax.random.key(0), 8))
    masked = jax.random.uniform(next(keys), (B, T)) > 0.3
    return {
        "hidden": (scale * jax.random.normal(next(keys), (B, T, D))).astype(dtype),
        "table": jax.random.normal(next(keys), (vocabulary, D)).astype(dtype),
        "targets": jax.random.randint(next(keys), (B, T), 0, vocabulary),
        "teacher_hidden": (2 * jax.random.normal(next(keys), (B, T, D2))).astype(dtype),
        "teacher_table": jax.random.normal(next(keys), (vocabulary, D2)).astype(dtype),
        "weights": jax.random.uniform(next(keys), (B, T)) * masked,
    }


def _loss(module, name, case, cap):
    names = {"cross_entropy": ("targets",), "kl_to_teacher": ("teacher_hidden", "teacher_table")}
    rest = [case[key] for key in names.get(name, ())]
    caps = (cap, None if cap is None else 1.5 * cap) if name == "kl_to_teacher" else (cap,)

    def of(hidden, table, weights=case["weights"]):
        return getattr(module, name)(hidden, table, *rest, weights, *caps)

    return of


def _ours(name, case, cap):
    """The value, and gradients in hidden, table and weights."""
    run = jax.jit(jax.value_and_grad(_loss(head, name, case, cap), argnums=(0, 1, 2)))
    return run(case["hidden"], case["table"], case["weights"])


def _plain(name, case, cap):
    case = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, case)
    run = jax.value_and_grad(_loss(plain_head, name, case, cap), argnums=(0, 1, 2))
    return run(case["hidden"], case["table"], case["weights"])


def _error(ours, plain):
    ours = np.asarray(ours, np.float32)
    return np.linalg.norm(ours - plain) / np.linalg.norm(plain)


@NAMES
@pytest.mark.parametrize(
    ("cap", "vocabulary"),  # 9 whole tiles of 32; 3 of 256 for 2 cores
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in product((None, 2.0, 50.0), (V, 288, 768))
    ],
)
def test_value_and_gradients_are_those_of_the_plain_loss(name, cap, vocabulary):
    case = _case(vocabulary=vocabulary)
    ours, plain = _ours(name, case, cap), _plain(name, case, cap)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert _error(a, b) < 1e-5
    value = jax.jit(_loss(head, name, case, cap))(case["hidden"], case["table"])
    np.testing.assert_allclose(value, ours[0], rtol=1e-6)  # outside of differentiation


@NAMES
@pytest.mark.parametrize("shape", [None, MeshShape(data=1, fsdp=8)], ids=str)
def test_in_bfloat16_only_rounding_is_lost(name, shape, kernels):
    """The gradient in the logits and that of the hidden states are rounded, 2^-9 at most each.

    On several devices with fsdp each adds its part of the vocabulary to the hidden states' one.
    """
    if shape and kernels is head_tpu:
        pytest.skip("TPU's interpreter hangs on bf16 over several devices")
    case = _case(jnp.bfloat16, vocabulary=304 if shape else V)
    with jax.set_mesh(make_mesh(shape)) if shape else nullcontext():
        value, (d_hidden, d_table, d_weights) = _ours(name, case, 30.0)
    plain, (plain_hidden, plain_table, plain_weights) = _plain(name, case, 30.0)
    assert _error(d_weights, plain_weights) < 1e-5
    assert d_hidden.dtype == d_table.dtype == jnp.bfloat16
    assert _error(value, plain) < 1e-5
    assert _error(d_hidden, plain_hidden) < 2 * 2**-9
    assert _error(d_table, plain_table) < 2 * 2**-9


@NAMES
@pytest.mark.parametrize(
    ("cap", "vocabulary", "dtype"),
    [(2.0, V, jnp.bfloat16), (None, V, jnp.float32), (50.0, 768, jnp.float32)],
)
def test_logits_that_are_stored_are_those_computed_again(
    monkeypatch, kernels, name, cap, vocabulary, dtype
):
    if kernels is head_gpu:
        pytest.skip("stores what it can")
    case = _case(dtype, vocabulary=vocabulary)
    again, plain = _ours(name, case, cap), _plain(name, case, cap)
    size = head_tpu.Tiles(16, 256, cores=2, stores=True)
    monkeypatch.setattr(head_tpu, "tiles", lambda *_: size)
    ours = _ours(name, case, cap)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, again, plain)), strict=True):
        assert _error(a, np.asarray(b, np.float32)) < 1e-4  # a few of bf16 round the other way
        assert _error(a, c) < (1e-5 if dtype == jnp.float32 else 2 * 2**-9)


@NAMES
@CAPS
def test_extreme_logits_stay_finite(name, cap):
    case = _case(scale=1e4)
    value, gradients = _ours(name, case, cap)
    plain, _ = _plain(name, case, cap)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    np.testing.assert_allclose(value, plain, rtol=1e-5)


@NAMES
@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=2, fsdp=2, tensor=2),
        pytest.param(MeshShape(data=1, tensor=4, fsdp=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_over_devices(name, shape):
    case = _case(vocabulary=304)  # 152 and 76 a device
    plain = _plain(name, case, None)  # no cap: devices have other maxima
    with jax.set_mesh(make_mesh(shape)):
        ours = _ours(name, case, None)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert _error(a, b) < 1e-5


@pytest.mark.parametrize(
    "shape", [MeshShape(data=2, fsdp=2, tensor=2), None], ids=lambda shape: str(shape)
)
def test_log_probabilities(shape):
    case = _case(vocabulary=304)

    def by_token(log_p):
        def value(hidden, table):
            actual = log_p(hidden, table)
            return jnp.sum(jnp.cos(actual) * case["weights"]), actual

        run = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
        return run(case["hidden"], case["table"])

    def plain(hidden, table):
        log_p = jax.nn.log_softmax(2.0 * jnp.tanh(hidden @ table.T / 2.0))
        return jnp.take_along_axis(log_p, case["targets"][..., None], -1)[..., 0]

    with jax.set_mesh(make_mesh(shape)) if shape else nullcontext():
        ours = by_token(lambda h, w: head.log_probabilities(h, w, case["targets"], 2.0))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(by_token(plain)), strict=True):
        assert _error(a, b) < 1e-5


def test_on_which_gpu_and_for_which_widths(monkeypatch):
    """Widths are the student's and, of a distillation, the teacher's: those of 0.1B and wider."""

    def chosen(name, *widths, dtype=jnp.bfloat16):
        monkeypatch.setattr(gpu, "supported_gpu", lambda: gpu.GPUS.get(name))
        monkeypatch.setattr(head_gpu, "DEPTH", DEPTH)
        return CHOSEN(dtype, *widths)

    for name in gpu.GPUS:
        assert chosen(name, 320) and chosen(name, 320, 320)
        assert not chosen(name, 2304) and not chosen(name, 2304, 2304)
    assert chosen("NVIDIA H100", 640, 640) and not chosen("NVIDIA A100", 640, 640)
    assert not chosen("NVIDIA H100", 320, dtype=jnp.float32)
    assert not chosen("NVIDIA H100", 320, 300)  # not in whole steps of DEPTH
    assert not chosen("NVIDIA B200", 320)


def test_gpus_are_known_by_their_kind(monkeypatch):
    device = mock.Mock(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert gpu.supported_gpu() == gpu.GPUS["NVIDIA H100"]
    device.device_kind = "cpu"
    assert gpu.supported_gpu() is None


def test_a_kept_difference_is_off_by_half_a_step_at_most():
    """Steps are 2 √(R d) / 32767 wide at a distance d of the greatest, R, but for the first."""
    spec = head_tile.HeadSpec("teacher", 30.0, 20.0, V, V)
    distance = np.sort(np.random.default_rng(0).uniform(-50, 50, 10_000)).astype(np.float32)
    actual = head_tpu_kernels._distance(spec, head_tpu_kernels._root(spec, distance))
    step = 2 * np.sqrt(50 * np.abs(distance)) / 32767 + 50 / 32767**2
    assert np.all(np.abs(actual - distance) <= step / 2 + 1e-6 * np.abs(distance))
    ends = np.array([-50, 0, 50], np.float32)
    np.testing.assert_allclose(
        head_tpu_kernels._distance(spec, head_tpu_kernels._root(spec, ends)), ends, 1e-6
    )


@pytest.mark.parametrize("distance", [0.01, 0.1, 1.0])
def test_kept_in_16_bits_the_teacher_is_as_good_as_its_logits(kernels, distance):
    """Near the student too, where gradients nearly cancel: no worse than rounding them to bf16."""
    if kernels is head_gpu:
        pytest.skip("makes the teacher's logits twice")
    case, noise = _case(scale=1.0), jax.random.normal(jax.random.key(1), (V, D))
    case["teacher_hidden"], case["teacher_table"] = (
        case["hidden"],
        case["table"] + distance * noise,
    )
    case = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, case)
    case["weights"] = case["weights"].astype(jnp.float32)
    (_, ours), (_, plain) = (of("kl_to_teacher", case, 30.0) for of in (_ours, _plain))
    for a, b in zip(ours, plain, strict=True):
        assert _error(a, b) < 2 * 2**-9


@CAPS
def test_the_teachers_logits_are_made_once_where_a_softcap_bounds_them(kernels, cap):
    if kernels is head_gpu:
        pytest.skip("makes the teacher's logits twice")
    case = _case(jnp.bfloat16)
    gradient = jax.grad(_loss(head, "kl_to_teacher", case, cap), argnums=(0, 1))
    program = str(jax.make_jaxpr(gradient)(case["hidden"], case["table"]))
    flops = sum(map(int, re.findall(r"flops=(\d+)", program)))  # as the kernels say, for a block
    assert flops == 2 * 16 * V * (4 * D + (1 if cap else 2) * D2)


@pytest.mark.parametrize(("stored", "products"), [(4 * 16 * 512, 3), (4 * 16 * 512 - 1, 4)])
def test_the_students_logits_are_made_once_where_storing_them_pays_and_fits(
    monkeypatch, kernels, stored, products
):
    """A block's: 16 rows, and V in whole tiles of two cores."""
    if kernels is head_gpu:
        pytest.skip("stores what it can")
    size = head_tpu.Tiles(16, 256, cores=2, stores=True)
    monkeypatch.setattr(head_tpu, "tiles", lambda *_: size)
    monkeypatch.setattr(head_tpu_kernels, "STORED", stored)
    case = _case(jnp.bfloat16)
    gradient = jax.grad(_loss(head, "kl_to_teacher", case, 30.0), argnums=(0, 1))
    program = str(jax.make_jaxpr(gradient)(case["hidden"], case["table"]))
    flops = sum(map(int, re.findall(r"flops=(\d+)", program)))
    assert flops == 2 * 16 * V * (products * D + D2)
    assert ("f32[16,512]" in program) == (products == 3)


@pytest.mark.parametrize("cap", [2.0, 30.0, 50.0])
def test_logits_all_at_the_lower_end_of_the_softcap(cap):
    """As far below the bound, which may stand for the greatest, as they can be."""
    case = _case() | {"hidden": jnp.full((B, T, D), 1e3), "table": jnp.full((V, D), -1.0)}
    value, gradients = _ours("cross_entropy", case, cap)
    np.testing.assert_allclose(value, jnp.sum(case["weights"]) * np.log(V), rtol=1e-5)
    assert all(np.isfinite(x).all() for x in gradients)


@NAMES
@pytest.mark.parametrize(  # 320: 10 whole tiles of 32 in chunks of 3
    "vocabulary", [V, pytest.param(288, marks=pytest.mark.slow), 320]
)
def test_logits_far_below_zero(name, vocabulary):
    """Without a soft-cap a token that is not there, of logit 0, must not be seen."""
    case = _case(vocabulary=vocabulary)
    case |= {"hidden": jnp.ones((B, T, D)), "table": case["table"] - 130 / D}
    ours, plain = _ours(name, case, None), _plain(name, case, None)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert _error(a, b) < 1e-4  # fp32 has steps of 2e-5 there


@pytest.mark.parametrize(("count", "rows"), [(5, 16), (40, 16), (1024, 512), (1040, 352)])
def test_blocks_of_rows_are_as_equal_as_registers_allow(monkeypatch, count, rows):
    monkeypatch.setattr(
        head_tpu, "tiles", lambda *_: head_tpu.Tiles(16 if count < 100 else 512, 128)
    )
    empty = jnp.zeros((count, 8))
    size, _ = head_tpu._fitted(head_tile.TokenRows(empty, empty[:, :1]), head_tile.Tables(empty))
    assert size.rows == rows


CHIPS = {  # MiB of VMEM, FLOPs and bytes a second of a core, cores
    "v4": (16, 137e12, 0.6e12, 2),
    "v5e": (128, 197e12, 0.82e12, 1),
    "v5p": (64, 230e12, 1.23e12, 2),
    "v6e": (128, 920e12, 1.64e12, 1),
}


@pytest.mark.parametrize("name", CHIPS)
def test_tiles_fit_the_memory_of_each_chip_and_keep_its_mxu_busy(monkeypatch, name):
    """All presets from 0.1B to 27B, but for the widest on v4.

    Logits are stored where the MXU is slow beside HBM, and the more so the wider the model.
    """
    vmem, flops, memory, cores = CHIPS[name]
    chip = mock.Mock(
        vmem_capacity_bytes=vmem * 2**20,
        bf16_ops_per_second=flops,
        mem_bw_bytes_per_second=memory,
        num_cores=cores,
    )
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: chip)
    for width in (320, 768, 1024, 1280, 2304, 3584, 4608):
        actual = TILES(width, width)
        stores = {"v4": (768,), "v5e": range(768, 4000), "v5p": range(768, 5000), "v6e": ()}
        assert actual is None or actual.stores == (width in stores[name])
        assert (actual is None) == (name == "v4" and width > 1280)
        if actual is not None:
            assert head_tpu._vmem(width, width, actual.rows, actual.vocabulary) < vmem * 2**20
            streamed, multiplied = 14 * width, 10 * width * actual.rows  # bytes, FLOPs
            assert streamed / memory < multiplied / flops and actual.cores == cores
