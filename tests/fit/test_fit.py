"""Slices, the roofline, the search and the command; compilers are asked as little as possible."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

import undo_jax
from undo_jax import losses
from undo_jax.cli import main as cli
from undo_jax.cli.commands.fit import TOO_LARGE
from undo_jax.cli.step_source import of_stage
from undo_jax.fit import chips, flags, nvidia, search, step
from undo_jax.fit.chips import CHIPS, GIB, Slice
from undo_jax.fit.costs import Cost
from undo_jax.fit.facts import describe, table
from undo_jax.fit.roofline import roofline
from undo_jax.fit.step import Memory, Step
from undo_jax.methods.maxent import maxent
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.runtime.mesh import MeshShape, make_mesh, parse_mesh

QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
FITS, REFUSED = Step(Memory(1, 0, 0, 2, 0), Cost()), Step(Memory(1, 0, 0, 200, 0), None)
needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("name", "topology", "count"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v6e-256", "v6e:16x16", 256),
        ("v5p-64", "v5p:2x4x4", 32),  # accelerator types of v4 and v5p count cores, two a chip
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("h100:8", "h100:8", 8),
    ],
)
def test_a_slice_by_topology_or_accelerator_type(name, topology, count):
    found = chips.find(name)
    assert (str(found), found.chips) == (topology, count)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e:3x3", "unknown topology 'v5e:3x3': v5e has 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v6e-12", "unknown topology 'v6e-12': v6e has v6e-4, v6e-8, v6e-16, v6e-32, v6e-64, "
         "v6e-128, v6e-256"),
        ("v5p-63", "unknown topology 'v5p-63': v5p has v5p-8, v5p-16, v5p-32, v5p-64, v5p-128, "
         "v5p-256, v5p-512, v5p-1024"),
        ("v4:2x2", "unknown topology 'v4:2x2': v4 has 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, "
         "4x8x8, 8x8x8"),
        ("h100:3", "unknown topology 'h100:3': h100 has 1, 2, 4, 8"),
        ("v9:4x4", "unknown topology 'v9:4x4': give e.g. v5e:4x4, v5e-16 or h100:8, of v4, v5e, "
         "v5p, v6e, a100, h100, h200"),
        ("v5e", "unknown topology 'v5e': give e.g. v5e:4x4, v5e-16 or h100:8, of v4, v5e, v5p, "
         "v6e, a100, h100, h200"),
    ],
)  # fmt: skip
def test_an_unknown_slice_is_told_what_there_is(name, said):
    with pytest.raises(ValueError) as error:
        chips.find(name)
    assert str(error.value) == said


# from the tables that undo_jax/fit/chips.py cites, in their units: bf16 TFLOP/s, HBM that a program
# can have in GiB, GB/s to HBM, GB/s over all links in one direction, cores of a chip
TABLES = {
    "v4": (275, 30.75, 1200, 300, 2),
    "v5e": (197, 15.75, 819, 200, 1),
    "v5p": (459, 95.73, 2765, 600, 2),
    "v6e": (918, 31.24, 1638, 400, 1),
    "a100": (312, 59.4416, 2039, 300, 1),
    "h100": (989, 59.3319, 3350, 450, 1),
    "h200": (989, 105.7506, 4800, 450, 1),
}
SIZES = {
    "v4": {4, 8, 16, 32, 64, 128, 256, 512},
    "v5e": {4, 8, 16, 32, 64, 128, 256},
    "v5p": {4, 8, 16, 32, 64, 128, 256, 512},
    "v6e": {4, 8, 16, 32, 64, 128, 256},
    "a100": {1, 2, 4, 8},
    "h100": {1, 2, 4, 8},
    "h200": {1, 2, 4, 8},
}


@pytest.mark.parametrize("kind", list(CHIPS))
def test_chips_are_those_of_the_tables(kind):
    chip, (flops, hbm, memory, links, cores) = CHIPS[kind], TABLES[kind]
    assert (chip.flops / 1e12, chip.memory / 1e9, chip.links / 1e9) == (flops, memory, links)
    assert chip.hbm / GIB == pytest.approx(hbm, rel=1e-5) and chip.cores == cores
    assert {chips.count(topology) for topology in chip.topologies} == SIZES[kind]
    sides = {len(topology.split("x")) for topology in chip.topologies}
    gpu = kind[0] in "ah"
    assert sides == {1 if gpu else 3 if cores == 2 else 2}
    assert chip.platform == ("cuda" if gpu else "tpu")
    assert chip.parts == (("tensor cores", "HBM", "NVLink") if gpu else ("MXU", "HBM", "ICI"))
    assert CHIPS.keys() == TABLES.keys()


def test_a_program_gets_most_of_a_chips_memory():
    """libtpu keeps less than a twentieth for itself; JAX takes three quarters of a GPU."""
    for kind, capacity in {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32}.items():
        assert 0.95 * capacity < CHIPS[kind].hbm / GIB < capacity
    for kind, capacity in {"a100": 80, "h100": 80, "h200": 141}.items():
        assert 0.72 * capacity < CHIPS[kind].hbm / 1e9 < 0.82 * capacity
        assert chips.of_device(CHIPS[kind].devices[0] + " 80GB") is CHIPS[kind]


@needs_libtpu
@pytest.mark.parametrize("place", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_memory_of_a_chip_is_what_its_compiler_has(place):
    """A program that is too large for it: it says how much there is, of libtpu's versions the
    least, in hundredths of a GiB."""
    found = chips.find(place)
    everywhere = NamedSharding(step.mesh_on(found, parse_mesh("data=4")), PartitionSpec())
    large = jax.ShapeDtypeStruct((2**13, 2**23), jnp.float32, sharding=everywhere)  # 256 GiB
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(jnp.sin).lower(large).compile()
    said = re.search(r"of ([\d.]+)G hbm|available HBM \(([\d.]+)G\)", str(refused.value))
    assert said, str(refused.value)
    there = float(said.group(1) or said.group(2))
    assert there - 0.015 < found.chip.hbm / GIB < there + 0.005


def _described(made):
    """Facts of the quickstart's distillation, on eight of v5e."""
    work = step.on_chips(_work(load(QUICKSTART), "distill"))
    facts = describe(work, chips.find("v5e:2x4"), make_mesh(parse_mesh("data=4,fsdp=2")), made)
    return {"experiment": "quickstart", "stage": "distill", **facts}


@pytest.mark.parametrize(
    ("peak", "total", "last"),
    [
        (0, "1.51 GiB", ""),  # of a compiler that does not tell
        (
            1.25 * GIB,
            "1.25 GiB",
            "\n  not at once  -264.50 MiB: some take the place of what is done with",
        ),
        (
            1.75 * GIB,
            "1.75 GiB",
            "\n  in VMEM       247.50 MiB: alive as well, but not in HBM",
        ),
    ],
)
def test_the_table_of_a_step(peak, total, last):
    """Parts of the memory add up; 1.97e12 FLOPs take 10 ms, and 16 rows of 48 tokens 30 ms.

    Of four forward passes of 112,896 FLOPs a token three are left, and the teacher's head: 2,304.
    """
    received = {"all-gather": 4e9, "reduce-scatter": 2e9}
    memory = Memory(3 * 2**20, 2**19, 2**21, 3 * 2**29, 5 * 2**20, peak)
    said = table(_described(Step(memory, Cost(1.97e12, 8.19e9 * 2, received))))
    assert all(len(line) <= 80 for line in said.splitlines())
    assert (
        said
        == f"""\
distill of quickstart on v5e:2x4: 8 chips, mesh data=4,fsdp=2
16 rows of 48 tokens (2 a chip), remat none

HBM of a chip   {total} of 15.75 GiB: fits
  arguments     3.00 MiB, 2.00 MiB of it updated in place
  temporaries   1.50 GiB
  other         512.00 KiB outputs, 5.00 MiB program{last}
A step, at the chip's peak
  MXU              10 ms   1.97T FLOPs
  HBM              20 ms   16.4GB read or written
  ICI              30 ms   6GB received
    all-gather             4GB
    reduce-scatter         2GB
bound by ICI: at most 25.6k tokens/s
--cache-teachers: 76% of the FLOPs, 96B a token stored and read"""
    )


@pytest.mark.parametrize("name", list(CHIPS))
def test_a_device_of_each_kind_is_known(name):
    """Not that of a longer name's beginning: TPU v5 is v5p, TPU v5 lite is v5e."""
    for kind in CHIPS[name].devices:
        assert chips.of_device(kind) is CHIPS[name]
    assert chips.of_device("cpu") is None


def test_what_holds_no_more_is_no_advice():
    """An A100 has 0.1 GiB more than an H100."""
    assert chips.roomier(chips.find("h100:8")) == ["h200"]
    assert chips.roomier(chips.find("h200:8")) == []
    assert chips.roomier(chips.find("v5e:4x4")) == ["v4", "v5p", "v6e"]


def test_the_busiest_part_bounds_a_step():
    chip = CHIPS["v5e"]
    cost = Cost(197e12, 819e9 / 2, {"all-gather": 100e9, "all-reduce": 50e9})
    found = roofline(cost, chip)
    assert found == pytest.approx((1.0, 0.5, 0.75))
    assert (found.seconds, found.bound(chip)) == (1.0, "MXU")
    assert roofline(replace(cost, memory=819e9 * 2), chip).bound(chip) == "HBM"
    received = {"all-to-all": 300e9}
    assert roofline(replace(cost, collectives=received), chip).bound(chip) == "ICI"
    gpu = CHIPS["a100"]
    assert roofline(replace(cost, collectives=received), gpu).bound(gpu) == "NVLink"


ROOM = 1000.0


def _searched(memory, most=64):
    """The rows that a search finds where `memory(rows)` bytes are needed, and those it tried."""
    tried = []

    def attempt(rows):
        assert rows not in tried and 1 <= rows <= most
        tried.append(rows)
        size = memory(rows)
        made = Step(Memory(0, 0, 0, size, 0), Cost() if size <= ROOM else None)
        return search.Variant("none", rows, None, made)

    found = search.largest(attempt, ROOM, most)
    return found.rows if found else 0, tried


def _by_hand(memory, most=64):
    return max((rows for rows in range(1, most + 1) if memory(rows) <= ROOM), default=0)


@pytest.mark.parametrize("fixed", [0, 120, 700, 970, 999, 1001])
@pytest.mark.parametrize("each", [0, 1, 7, 15.6, 16, 33, 90, 130, 300, 600, 2000])
def test_the_search_needs_two_compilations_and_a_line(fixed, each):
    """One to confirm it, and one more where a single row is within three hundredths of the room."""
    memory = lambda rows: fixed + each * rows  # noqa: E731
    found, tried = _searched(memory)
    assert found == _by_hand(memory)
    beyond = memory(found + 1) - ROOM
    assert len(tried) <= (3 if beyond > 0.03 * ROOM else 4), tried


@pytest.mark.parametrize(
    "memory",
    [
        lambda rows: 50 + 8 * rows + 0.7 * rows**2,  # steeper and steeper
        lambda rows: 50 + 200 * rows**0.5,  # flatter and flatter
        lambda rows: 900 if rows < 3 else 20 * rows,  # something large is alive with few rows only
        lambda rows: 100 + 30 * rows if rows < 20 else 2000,  # a wall
        lambda rows: 300 + 64 * (-(-rows // 4)),  # in steps of four rows
        lambda rows: 400 + 20 * rows + (13 * rows % 7),  # uneven
        lambda rows: 999 if rows == 30 else 100 + 30.5 * rows,  # what nearly fits is made to fit
    ],
)
def test_the_search_finds_the_largest_batch_where_memory_is_no_line(memory):
    found, tried = _searched(memory)
    assert found == _by_hand(memory)
    assert len(tried) <= 11, tried


@pytest.mark.parametrize("told", [0.0, 900.0, 1e9])
@pytest.mark.parametrize("most", [0, 1, 5, 8, 11, 33, 63, 64, 100])
def test_the_search_finds_it_where_the_compiler_tells_little(most, told):
    """No growth of what fits, and of what it refuses a size that says nothing."""
    found, tried = _searched(lambda rows: 3.0 if rows <= most else max(told, ROOM + 1))
    assert found == min(most, 64)
    assert len(tried) <= 11


def test_the_policies_are_the_models_own():
    assert search.REMAT[0] == "none" and search.REMAT[-1] == "full"


@pytest.mark.parametrize(
    ("message", "total"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (18.97G) exceeds available HBM (15.75G).", 19.97 * GIB),
        ("Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm. Exceeded hbm capacity "
         "by 4.36G.", 20.10 * GIB),
        ("temporaries: required for HLO temporaries (1.5T)", 1537 * GIB),
        ("temporaries: required for HLO temporaries (446.26P)", (446.26 * 2**20 + 1) * GIB),
    ],
)  # fmt: skip
def test_what_a_refused_program_needs(message, total):
    assert step._refused(message, GIB).total == pytest.approx(total)


def test_another_failure_of_the_compiler_is_told():
    with pytest.raises(ValueError, match="XLA cannot compile this step: INVALID_ARGUMENT: no"):
        step._refused("INVALID_ARGUMENT: no such option\nmore", 0)


def test_flags_of_xla():
    """As openxla.org/xla/flags_guidance has them."""
    assert flags.arguments("memory") == (
        "--xla_latency_hiding_scheduler_rerun=5 --xla_memory_scheduler=brkga "
        "--xla_tpu_rwb_fusion=false"
    )
    assert flags.arguments("overlap") == (
        "--xla_should_allow_loop_variant_parameter_in_chain=enabled "
        "--xla_should_add_loop_invariant_op_in_chain=enabled "
        "--xla_tpu_enable_ici_ag_pipelining=true --xla_tpu_enable_async_collective_fusion=true "
        "--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true "
        "--xla_tpu_enable_async_all_to_all=true"
    )
    with pytest.raises(ValueError) as error:
        flags.flags("fast")
    assert str(error.value) == (
        "unknown XLA flags 'fast': choose one of overlap, sparse_cores, memory"
    )


def test_a_gpu_as_xla_describes_it():
    """As in backends/gpu/target_config/specs/h100_sxm.txtpb of github.com/openxla/xla."""
    assert (
        nvidia.target("NVIDIA H100")
        == """\
gpu_device_info {
threads_per_block_limit: 1024
threads_per_warp: 32
threads_per_core_limit: 2048
shared_memory_per_block: 49152
registers_per_core_limit: 65536
registers_per_block_limit: 65536
block_dim_limit_x: 2147483647
block_dim_limit_y: 65535
block_dim_limit_z: 65535
cuda_compute_capability { major: 9 }
core_count: 132
fpus_per_core: 128
shared_memory_per_core: 233472
shared_memory_per_block_optin: 232448
l2_cache_size: 52428800
clock_rate_ghz: 1.98
device_memory_size: 84942979072
memory_bandwidth: 3350000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100"
"""
    )
    assert nvidia.FLAGS == {"xla_gpu_enable_triton_gemm": False}
    older = nvidia.target("NVIDIA A100").splitlines()
    told = dict(line.replace(":", "", 1).split(" ", 1) for line in older[10:19])
    assert told == {
        "cuda_compute_capability": "{ major 8 }", "core_count": "108", "fpus_per_core": "64",
        "shared_memory_per_core": "167936", "shared_memory_per_block_optin": "166912",
        "l2_cache_size": "41943040", "clock_rate_ghz": "1.41",
        "device_memory_size": "85100068864", "memory_bandwidth": "2039000000000",
    }  # fmt: skip
    assert "core_count: 132" in nvidia.target("NVIDIA H200")
    assert "device_memory_size: 151397597184" in nvidia.target("NVIDIA H200")


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("v5e:4x4", {"platform": "tpu", "topology_name": "v5e:4x4"}),
        ("v4:2x2x1", {"platform": "tpu", "topology_name": "v4:2x2x1",
                      "chip_config_name": "megacore"}),
        ("h100:8", {"platform": "cuda", "topology": "1x1x8",
                    "target_config": nvidia.target("NVIDIA H100")}),
    ],
)  # fmt: skip
def test_a_compiler_is_asked_for_the_slice_and_left_alone(monkeypatch, place, asked):
    """Without metadata servers, logs and locks; afterwards the environment is as it was."""
    wanted = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    for name in wanted:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    before, seen = dict(os.environ), {}

    def describe(**given):
        seen.update(given, environment=dict(os.environ))
        return SimpleNamespace(devices=[])

    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(step.topologies, "get_topology_desc", describe)
    monkeypatch.setattr(step, "make_mesh", lambda shape, devices: (shape, devices))
    assert step.mesh_on(chips.find(place), MeshShape()) == (MeshShape(), [])
    environment = seen.pop("environment")
    assert seen == asked
    assert environment == before | wanted
    assert dict(os.environ) == before


def _work(config, kind):
    experiment = config.experiment()
    return of_stage(experiment, kind)[1]


def test_a_stage_is_the_work_that_the_pipeline_does():
    """Which loss, on which streams, beside which references, with whose training."""
    shipped = load(QUICKSTART)
    base, small = shipped.model, replace(shipped.model, width=24)
    experiment = replace(shipped, noise=replace(shipped.noise, student=small))
    stages = ("pretrain", "unlearn", "distill", "relearn")
    found = {stage: _work(experiment, stage) for stage in stages}
    plain = {"streams": ("train",), "row_length": 48, "trains": None, "batch_fields": ()}
    wanted = {
        "pretrain": {**plain, "loss": losses.language_modelling, "refs": {}},
        "unlearn": {**plain, "loss": maxent, "refs": {"base": base},
                    "streams": ("retain", "forget")},
        "distill": {**plain, "loss": losses.distillation, "refs": {"teacher": base}},
        "relearn": {**plain, "loss": losses.language_modelling, "refs": {}},
    }  # fmt: skip
    for stage, work in found.items():
        assert {n: v for n, v in vars(work).items() if n not in ("lm", "training")} == wanted[stage]
        assert work.lm == base
        assert work.training is getattr(experiment, stage).training
        assert work.tokens == (2 if stage == "unlearn" else 1) * 16 * 48
    with pytest.raises(ValueError) as error:
        _work(experiment, "noise")
    assert str(error.value) == (
        "stage 'noise' trains nothing: choose one of pretrain, unlearn, distill, relearn"
    )


def test_what_a_chip_holds_of_sharded_arrays():
    mesh = make_mesh(MeshShape(data=2, fsdp=4))
    place = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    halves = jax.ShapeDtypeStruct((6, 16), "bfloat16", sharding=place)
    whole = jax.ShapeDtypeStruct((3,), "float32", sharding=NamedSharding(mesh, PartitionSpec()))
    unplaced = jax.ShapeDtypeStruct((1000,), "float32")
    assert step._per_chip({"a": halves, "b": [whole, unplaced]}) == 6 * 4 * 2 + 3 * 4


def test_a_variant_has_so_many_rows_on_a_chip():
    work = _work(load(QUICKSTART), "pretrain")
    training = replace(work.training, accumulation=3)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    made = search.variant(replace(work, training=training), mesh, "full", 5)
    assert made.training == replace(training, batch_size=5 * 4 * 3)
    assert made.lm == replace(work.lm, remat="full")
    assert step.rows_per_shard(made.training, mesh) == 15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data=4,pipeline=4", "unknown axis 'pipeline'"),
        ("data=4,data=4", "axis twice"),
        ("data=four", "data=four is not a number"),
    ],
)
def test_a_mesh_that_cannot_be_meant(text, said):
    with pytest.raises(ValueError, match=said):
        parse_mesh(text)
    assert parse_mesh("fsdp=-1, data=2") == MeshShape(sweep=1, data=2, fsdp=-1, tensor=1)


def _refused(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *arguments])
    said = capsys.readouterr()
    assert stop.value.code == status
    lines = [line for line in said.err.splitlines() if not line.startswith("compiling ")]
    assert len(lines) == 1 and lines[0].startswith("undo-jax: "), said.err
    return said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "--topology"),
        ("--topology v5e:5x5", "v5e has 2x2"),
        ("--topology v5e:4x4 --stage noise", "stage 'noise' trains nothing: choose one of pretr"),
        ("--topology v5e:4x4 --mesh rows=2", "unknown axis 'rows'"),
        ("--topology v5e:4x4 --mesh=", "unknown axis ''"),
        ("--topology v5e:4x4 --model.layerz 2", "layerz"),
        ("--topology v5e:4x4 --xla-flags fast", "choose one of overlap, sparse_cores, memory"),
        ("--topology h100:8 --xla-flags overlap", "'overlap' are for TPU: h100:8 needs none"),
    ],
)
def test_bad_input_is_one_line(capsys, flags, said):
    assert said in _refused(capsys, QUICKSTART, *flags.split()).err


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5e-16", "with libtpu, which is not installed: pip install 'jax[tpu]'"),
        ("a100:2", "with jax_cuda13_plugin, which is not installed: pip install 'jax[cuda13]'"),
    ],
)
def test_without_a_compiler_it_says_what_to_install(capsys, monkeypatch, topology, said):
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    assert said in _refused(capsys, QUICKSTART, "--topology", topology).err


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh", "said"),
    [
        ("v5e:4x4", "data=4,fsdp=3", "which has 16 chips: e.g. --mesh data=2,fsdp=8 does"),
        ("v5p:2x4x4", "data=7", "which has 32 chips: e.g. --mesh data=4,fsdp=8 does"),
    ],
)
def test_a_mesh_of_another_size_is_told_one_that_fits(capsys, topology, mesh, said):
    assert said in _refused(capsys, QUICKSTART, "--topology", topology, "--mesh", mesh).err


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5e:2x2", "--rows=4 rows of 100000000 tokens: needs at least"),
        ("v5p:2x2x1", "rows of 100000000 tokens cannot be compiled: make them shorter"),
    ],
)
def test_rows_that_libtpu_cannot_count_are_refused(capsys, topology, said):
    words = f"--preset tiny --topology {topology} --rows 4 --length 100000000"
    assert said in _refused(capsys, *words.split()).err


@needs_libtpu
def test_a_mesh_that_splits_a_side_of_the_slice():
    mesh = step.mesh_on(chips.find("v6e:4x4"), parse_mesh("data=2,fsdp=8"))
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == (2, 8)


def test_a_student_of_another_size_is_the_one_that_is_distilled():
    """With damaged students of the teacher's size beside it, the larger one counts."""
    shipped = load(QUICKSTART)
    wide, narrow = (replace(shipped.model, width=width) for width in (96, 24))
    for student, alphas, distilled in (
        (wide, (), wide),
        (narrow, (), narrow),
        (narrow, (0.5,), shipped.model),
        (None, (0.5,), shipped.model),
    ):
        damage = replace(shipped.noise, alphas=alphas, student=student)
        experiment = replace(shipped, noise=damage)
        work = step.on_chips(_work(experiment, "distill"))
        config = work.lm, work.refs["teacher"]
        assert config == (step.for_chips(distilled), step.for_chips(shipped.model))
        attacked = step.on_chips(_work(experiment, "relearn")).lm
        assert attacked == step.for_chips(wide if student is wide else shipped.model)


@needs_libtpu
def test_the_advice_names_the_model_that_is_too_large(capsys, tmp_path):
    """It is the student's policy that helps."""
    file = tmp_path / "wide.py"
    file.write_text(f"""
import importlib.util
from dataclasses import replace

spec = importlib.util.spec_from_file_location("quickstart", {QUICKSTART!r})
shipped = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shipped)
experiment = shipped.experiment
wide = replace(experiment.model, width=96)
experiment = replace(experiment, noise=replace(experiment.noise, alphas=(), student=wide))
""")
    large = "--setting.row-length 8192 --distill.training.batch-size 1024"
    flags = [str(file), "--topology", "v5e:4x4", "--mesh", "data=16", *large.split()]
    assert "--noise.student.remat full" in _refused(capsys, *flags, status=TOO_LARGE).err


@needs_libtpu
def test_what_a_compiler_refuses_is_one_line(capsys, tmp_path):
    """Here a method whose eigenvalues TPUs do not compute: JAX says so before XLA is asked."""
    file = tmp_path / "refused.py"
    file.write_text(f"""
import importlib.util
from dataclasses import replace

import jax.numpy as jnp

spec = importlib.util.spec_from_file_location("quickstart", {QUICKSTART!r})
shipped = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shipped)
experiment = shipped.experiment


def method(lm, params, refs, batch, key):
    loss, metrics = shipped.experiment.unlearn.method(lm, params, refs, batch, key)
    return loss + jnp.linalg.eigvals(jnp.eye(4)).real.sum(), metrics


experiment = replace(experiment, unlearn=replace(experiment.unlearn, method=method))
""")
    flags = [str(file), "--topology", "v5e:4x4", "--stage", "unlearn"]
    said = _refused(capsys, *flags).err
    assert said.startswith("undo-jax: XLA cannot compile this step: ") and "eig" in said


@needs_libtpu
@pytest.mark.parametrize("place", ["v4:2x2x1", "v5p:2x4x4", "v6e:4x4", "v5e:16x16"])
def test_the_suggested_mesh_fits(place):
    found = chips.find(place)
    for shape in (step.suggestion(found), step.most_sharded(found)):
        assert step.mesh_on(found, shape).size == found.chips


@needs_libtpu
def test_a_step_that_does_not_fit(capsys):
    """Exit status 3, the sizes on stdout, and one line on what to change."""
    large = "--setting.row-length 8192 --distill.training.batch-size 1024 --model.vocabulary 4096"
    arguments = [QUICKSTART, "--topology", "v5e:4x4", "--mesh", "data=16", *large.split()]
    said = _refused(capsys, *arguments, status=TOO_LARGE)
    assert "DOES NOT FIT" in said.out and all(len(line) <= 80 for line in said.out.splitlines())
    for advice in ("--model.remat full", "--distill.training.accumulation", "--mesh data=2,fsdp=8",
                   "--topology v5e:4x8", "v4, v5p, v6e"):  # fmt: skip
        assert advice in said.err


@needs_libtpu
def test_the_command_as_it_is_typed_on_the_mesh_of_the_quickstart(tmp_path):
    """Its only axis of several chips is `sweep`."""
    words = [sys.executable, "-m", "undo_jax", "fit", QUICKSTART, "--topology", "v5e:4x4"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    told = [t for t in done.stderr.splitlines() if not t.startswith("compiling distill of ")]
    assert done.returncode == 0 and not told, done.stderr[-2000:]  # slow machines tell of waiting
    lines = done.stdout.splitlines()
    assert lines[0] == "distill of quickstart on v5e:4x4: 16 chips, mesh sweep=16"
    assert "of 15.75 GiB: fits" in lines[3] and lines[-2].startswith("bound by ")
    assert not list(tmp_path.iterdir())


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("fits", [True, False])
def test_every_program_of_an_experiment(fits, capsys):
    """A line each; exit status 3 if one does not fit."""
    flags = (
        [] if fits else ["--setting.row-length", "4096", "--distill.training.batch-size", "4096"]
    )
    words = ["fit", QUICKSTART, "--topology", "v5e-4", "--mesh", "data=4", "--all", *flags]
    if fits:
        cli.main(words)
    else:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == TOO_LARGE
    said = capsys.readouterr()
    first, gap, header, *lines = said.out.splitlines()
    assert first == "quickstart on v5e:2x2: 4 chips, mesh data=4" and not gap
    assert [line.split()[0] for line in lines] == ["pretrain", "unlearn", "distill", "relearn"]
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert header.startswith("stage") and "base, oracle" in lines[0] and "+3" in lines[2]
    assert ["DOES NOT FIT" in line for line in lines] == [False, False, not fits, False]
    small = "undo-jax: v5e:2x2 is too small for 1 of 4 programs: try --stage distill for advice"
    told = [line for line in said.err.splitlines() if not line.startswith("compiling ")]
    assert told == ([] if fits else [small])  # a busy machine tells of its compilations, too


def test_every_program_is_every_stage(capsys):
    words = [QUICKSTART, "--topology", "v5e:4x4", "--all", "--stage", "relearn"]
    assert "leave out --stage and --search" in _refused(capsys, *words).err


@needs_libtpu
def test_the_command_and_its_json(capsys, tmp_path):
    """It keeps no program where the environment names a folder for them: JAX could not read it."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
    arguments = ["fit", QUICKSTART, "--topology", "v5e-4", "--mesh", "data=2,fsdp=2"]
    cli.main([*arguments, "--json"])
    assert not list(tmp_path.iterdir())
    facts = json.loads(capsys.readouterr().out)
    said = table(facts)
    assert facts["fits"] and facts["chips"] == 4 and facts["mesh"] == {"data": 2, "fsdp": 2}
    seconds = facts["seconds"]
    rate = facts["rows"] * facts["row_length"] / seconds["step"]
    assert facts["tokens_per_second"] == pytest.approx(rate)
    assert seconds["step"] == max(seconds["mxu"], seconds["hbm"], seconds["ici"])
    parts = facts["hbm"]
    whole = parts["arguments"] + parts["outputs"] + parts["temporaries"] + parts["code"]
    assert 0 < parts["aliased"] <= parts["arguments"] < parts["total"] == parts["peak"]
    assert parts["total"] + parts["shared"] == whole < parts["available"]
    assert "of 15.75 GiB: fits" in said and f"bound by {facts['bound']}" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@needs_libtpu
def test_the_command_searches(capsys, monkeypatch):
    """Three rows a chip fit without recomputation and six with it; the fastest comes first."""

    def compile_step(work, mesh, options):
        size = work.training.batch_size // 4 * {"none": 5}.get(work.lm.remat, 2.4) * GIB
        memory = Memory(0, 0, 0, size, 0)
        return Step(memory, Cost(197e12) if size <= 15.75 * GIB else None)

    monkeypatch.setattr(sys.modules["undo_jax.cli.commands.fit"], "compile_step", compile_step)
    arguments = ["fit", QUICKSTART, "--topology", "v5e-4", "--mesh", "data=4", "--search"]
    cli.main(arguments)
    said = capsys.readouterr()
    first, second = (line.split() for line in said.out.splitlines()[1:3])
    assert first[1] == "6" and first[0] != "none" and second[1] != "0"
    assert [line for line in said.err.splitlines() if "none" in line] == [
        "remat none, 1 rows a chip at once: 5.00 GiB, fits",
        "remat none, 2 rows a chip at once: 10.00 GiB, fits",
        "remat none, 3 rows a chip at once: 15.00 GiB, fits",
    ]
    cli.main([*arguments, "--json"])
    assert {(f["remat"], f["rows_per_chip"]) for f in json.loads(capsys.readouterr().out)} >= {
        ("none", 3), ("full", 6),
    }  # fmt: skip
    command = sys.modules["undo_jax.cli.commands.fit"]
    monkeypatch.setattr(command, "compile_step", lambda *arguments: REFUSED)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == TOO_LARGE


def test_a_slice_is_as_it_is_written():
    assert str(Slice("v5e", "4x4")) == "v5e:4x4"


FACTS = {
    "stage": "distill", "experiment": "small", "topology": "v5e:4x4", "chips": 16,
    "mesh": {"data": 4, "fsdp": 4}, "members": 1, "rows": 64, "rows_per_chip": 4,
    "rows_per_shard": 4, "accumulation": 2,
    "row_length": 1024, "remat": "full", "fits": True,
    "hbm": {"arguments": 3.5 * GIB, "outputs": 1536.0, "aliased": 3 * GIB, "code": 7 * 2**20,
            "temporaries": 2.25 * GIB, "shared": 0.0, "total": 5.76 * GIB,
            "available": 15.75 * GIB},
    "flops": 197e9, "memory_bytes": 81.9e9,
    "collective_bytes": {"all-reduce": 3e6, "all-gather": 5e9},
    "hidden_bytes": {"all-reduce": 0.0, "all-gather": 4e9},
    "seconds": {"mxu": 1e-3, "hbm": 0.1, "ici": 0.025015, "step": 0.1}, "bound": "HBM",
    "tokens_per_second": 655360.0, "cached_teacher": {"flops": 0.335, "bytes_per_token": 4608},
}  # fmt: skip


def test_the_table_word_for_word():
    assert (
        table(FACTS)
        == """\
distill of small on v5e:4x4: 16 chips, mesh data=4,fsdp=4
64 rows of 1024 tokens (4 a chip, 2 parts), remat full

HBM of a chip   5.76 GiB of 15.75 GiB: fits
  arguments     3.50 GiB, 3.00 GiB of it updated in place
  temporaries   2.25 GiB
  other         1.50 KiB outputs, 7.00 MiB program
A step, at the chip's peak
  MXU               1 ms   197G FLOPs
  HBM             100 ms   81.9GB read or written
  ICI              25 ms   5GB received
    all-gather             5GB, 4GB of it beside products
    all-reduce             3MB
bound by HBM: at most 655k tokens/s
--cache-teachers: 34% of the FLOPs, 4.61kB a token stored and read"""
    )
    said = table({**FACTS, "cached_teacher": None})
    assert said.endswith("bound by HBM: at most 655k tokens/s")


@pytest.mark.parametrize(
    ("mesh", "batch", "share", "shared", "said"),
    [
        ("data=2,fsdp=4", 16, 2, 2, "16 rows of 48 tokens (2 a chip), remat none"),
        ("sweep=4,data=2", 16, 8, 8,
         "4 models, each on 16 rows of 48 tokens (8 a chip), remat none"),
        ("data=2,tensor=4", 16, 2, 8,
         "16 rows of 48 tokens (2 a chip, 4 chips share 8), remat none"),
        ("fsdp=2,tensor=4", 2, 0.25, 1,
         "2 rows of 48 tokens (0.25 a chip, 4 chips share 1), remat none"),
        ("sweep=2,data=2,tensor=2", 6, 1.5, 3,
         "2 models, each on 6 rows of 48 tokens (1.5 a chip, 2 chips share 3), remat none"),
    ],
)  # fmt: skip
def test_rows_a_chip_are_a_chips(mesh, batch, share, shared, said):
    """All models' rows over eight chips, of which those along `tensor` work on the same rows."""
    work = step.on_chips(_work(load(QUICKSTART), "distill"))
    work = replace(work, training=replace(work.training, batch_size=batch))
    grid = make_mesh(parse_mesh(mesh))
    facts = describe(work, chips.find("v5e:2x4"), grid, REFUSED)
    assert (facts["rows_per_chip"], facts["rows_per_shard"]) == (share, shared)
    assert facts["rows_per_chip"] * facts["chips"] == facts["members"] * facts["rows"]
    assert type(facts["rows_per_chip"]) is type(share)
    shown = {"experiment": "quickstart", "stage": "distill", **facts}
    assert table(shown).splitlines()[1] == said


def test_the_table_of_what_does_not_fit_word_for_word():
    untold = dict.fromkeys(("aliased", "outputs", "code"), 0.0)
    large = {**FACTS["hbm"], **untold, "total": 15.76 * GIB}
    one = {"mesh": {}, "accumulation": 1, "rows_per_chip": 64, "fits": False, "hbm": large}
    assert (
        table({**FACTS, **one})
        == """\
distill of small on v5e:4x4: 16 chips, mesh of one chip
64 rows of 1024 tokens (64 a chip), remat full

HBM of a chip   15.76 GiB of 15.75 GiB: DOES NOT FIT
  arguments     3.50 GiB
  temporaries   2.25 GiB"""
    )


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0.00 KiB"), (1023, "1.00 KiB"), (2**20 - 1, "1024.00 KiB"), (2**20, "1.00 MiB"),
     (1.5 * 2**30, "1.50 GiB"), (2**41, "2.00 TiB")],
)  # fmt: skip
def test_bytes_in_words(size, said):
    assert format_bytes(size) == said
