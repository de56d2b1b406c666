"""The head's kernels for TPU and GPU, interpreted on a CPU, against the plain losses in fp32."""

from contextlib import nullcontext
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from undo_jax.ops import gpu, head, head_gpu, head_tpu
from undo_jax.sharding import MeshShape, make_mesh

TILES, CHOSEN, DEPTH = head_tpu.tiles, head_gpu.chosen, head_gpu.DEPTH
B, T, D, D2, V = 4, 9, 24, 40, 300  # 36 rows in blocks of 16, 300 tokens in tiles of 128 or 32
NAMES = pytest.mark.parametrize("name", ["cross_entropy", "kl_to_teacher", "kl_to_uniform"])
CAPS = pytest.mark.parametrize("cap", [None, 2.0])


@pytest.fixture(autouse=True, params=[head_tpu, head_gpu], ids=["tpu", "gpu"])
def kernels(request, monkeypatch):
    """Those of one kind, with small tiles."""
    monkeypatch.setattr(request.param, "chosen", lambda *_: True)
    monkeypatch.setattr(head_tpu, "tiles", lambda *_: head_tpu.Tiles(16, 128))
    small = {"ROWS": 16, "COLUMNS": 32, "DEPTH": 8, "PART": 128, "LIVE": 2 * 48 * 100}
    for name, value in {**small, "INTERPRET": True}.items():
        monkeypatch.setattr(head_gpu, name, value)
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


def _loss(prefix, name, case, cap):
    own = {"cross_entropy": ("targets",), "kl_to_teacher": ("teacher_hidden", "teacher_table")}
    rest = [case[key] for key in (*own.get(name, ()), "weights")]
    caps = (cap, None if cap is None else 1.5 * cap) if name == "kl_to_teacher" else (cap,)
    return lambda h, w: getattr(head, prefix + name)(h, w, *rest, *caps)


def _ours(name, case, cap):
    run = jax.jit(jax.value_and_grad(_loss("", name, case, cap), argnums=(0, 1)))
    return run(case["hidden"], case["table"])


def _plain(name, case, cap):
    case = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, case)
    run = jax.value_and_grad(_loss("reference_", name, case, cap), argnums=(0, 1))
    return run(case["hidden"], case["table"])


def _error(ours, plain):
    ours = np.asarray(ours, np.float32)
    return np.linalg.norm(ours - plain) / np.linalg.norm(plain)


@NAMES
@CAPS
@pytest.mark.parametrize("vocabulary", [V, 288])  # 288 are 9 whole tiles of 32
def test_value_and_gradients_are_those_of_the_plain_loss(name, cap, vocabulary):
    case = _case(vocabulary=vocabulary)
    ours, plain = _ours(name, case, cap), _plain(name, case, cap)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert _error(a, b) < 1e-5
    value = jax.jit(_loss("", name, case, cap))(case["hidden"], case["table"])
    np.testing.assert_allclose(value, ours[0], rtol=1e-6)  # outside of differentiation


@NAMES
def test_in_bfloat16_only_rounding_is_lost(name):
    """The gradient in the logits and that of the hidden states are rounded, 2^-9 at most each."""
    case = _case(jnp.bfloat16)
    (value, (d_hidden, d_table)), (plain, (plain_hidden, plain_table)) = (
        _ours(name, case, 30.0),
        _plain(name, case, 30.0),
    )
    assert d_hidden.dtype == d_table.dtype == jnp.bfloat16
    assert _error(value, plain) < 1e-5
    assert _error(d_hidden, plain_hidden) < 2 * 2**-9
    assert _error(d_table, plain_table) < 2 * 2**-9


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
    "shape", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(data=1, tensor=4, fsdp=2)], ids=str
)
def test_over_devices(name, shape):
    case = _case(vocabulary=304)  # 152 and 76 a device
    plain = _plain(name, case, None)  # no cap: devices have other maxima
    with jax.set_mesh(make_mesh(shape)):
        ours = _ours(name, case, None)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert _error(a, b) < 1e-5


def test_on_which_gpu_and_for_which_widths(monkeypatch):
    """Widths are the student's and, of a distillation, the teacher's: those of 0.1B and wider."""

    def chosen(name, *widths, dtype=jnp.bfloat16):
        monkeypatch.setattr(gpu, "found", lambda: gpu.GPUS.get(name))
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
    assert gpu.found() == gpu.GPUS["NVIDIA H100"]
    device.device_kind = "cpu"
    assert gpu.found() is None


def test_tiles_fit_the_memory_of_each_chip_and_shrink_with_it():
    found = [TILES(1024, 1024, vmem * 2**20) for vmem in (128, 64, 16)]  # v5e and v6e, v5p, v4
    assert found == sorted(found, reverse=True) and found[0] > found[-1]
    for tile, vmem in zip(found, (128, 64, 16), strict=True):
        assert head_tpu._vmem(1024, 1024, *tile) < vmem * 2**20
    with pytest.raises(ValueError, match="does not fit 16 MiB"):
        TILES(10**6, 0, 16 * 2**20)
