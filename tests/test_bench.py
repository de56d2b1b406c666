"""The benchmark of a step: what it counts, what it waits for, and what it prints."""

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import undo_jax
from undo_jax import losses
from undo_jax.cli import main as cli
from undo_jax.cli.commands.bench import scaling, table
from undo_jax.fit import bench
from undo_jax.fit.step import distillation
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training import train_step
from undo_jax.training.optim import AdamW
from undo_jax.training.programs import TrainSpec

QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
LM = preset("tiny", layers=3, width=8, feed_forward=20, heads=2, kv_heads=1,
                       head_width=4, vocabulary=50)  # fmt: skip
TRAINING = train_step.Training(steps=100, batch_size=8, optimizer=AdamW(), eval_every=50)


def _work(loss=losses.language_modelling, refs=None):
    return TrainSpec(LM, loss, TRAINING, ("train",), refs or {}, 12)


def _detour(x):
    """Half a second of arithmetic that no compiler can leave out."""
    turn = lambda _, x: jnp.tanh(x @ x)  # noqa: E731
    return jnp.mean(jax.lax.fori_loop(0, 400, turn, jnp.full((300, 300), x)))


def _slowly(lm, params, refs, batch, key):
    """A loss that takes its time."""
    value, metrics = losses.language_modelling(lm, params, refs, batch, key)
    return value + 1e-6 * _detour(jax.lax.stop_gradient(value)), metrics


def test_flops_are_two_for_each_weight_a_token_meets():
    """q and o 8 × 8, k and v 8 × 4, three of 8 × 20; scores and their sum over 12 tokens."""
    layer = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 20
    body, head = 2 * 3 * (layer + 2 * 12 * 2 * 4), 2 * 50 * 8
    alone = bench.flops(_work())
    assert (alone.body, alone.head, alone.references) == (3 * body, 3 * head, 0)
    taught = bench.flops(_work(losses.distillation, {"teacher": LM}))
    assert taught.total == 4 * (body + head)


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("TPU v4", 275e12),
     ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)],
)  # fmt: skip
def test_the_peak_is_that_of_all_devices(kind, flops):
    devices = np.array([SimpleNamespace(device_kind=kind)] * 4)
    mesh = SimpleNamespace(devices=devices, size=4)
    assert bench.peak(mesh) == (flops and 4 * flops)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_step_is_waited_for(tmp_path):
    speed = bench.measure(
        _work(_slowly), make_mesh(MeshShape(), jax.devices()[:1]), 3, str(tmp_path)
    )
    detour = jax.jit(_detour).lower(1.0).compile()
    started = time.perf_counter()
    jax.block_until_ready(detour(1.0))
    least = (time.perf_counter() - started) / 4  # this machine's speed varies
    assert len(speed.each) == 3 and min(speed.each) > least
    assert speed.seconds > least and speed.compile_seconds > 0
    assert list(tmp_path.glob("**/*.xplane.pb"))


@pytest.mark.slow
def test_so_many_models_step_together(monkeypatch):
    made, build = [], bench.programs.build
    monkeypatch.setattr(bench.programs, "build", lambda *a: made.append(build(*a)) or made[-1])
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    assert bench.measure(_work(), mesh, 1, slots=3).seconds > 0
    assert made[0].states.step.shape == (3,)


@pytest.mark.slow
def test_devices_that_wait_for_each_other_do_not_hang():
    """Members of two CPU devices, more steps than XLA lets be under way (32)."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "undo_jax", "bench", QUICKSTART]
    steps = ["--stage", "relearn", "--mesh", "sweep=2,data=1", "--steps", "80", "--json"]
    done = subprocess.run([*command, *steps], env=environment, capture_output=True, timeout=300)
    assert json.loads(done.stdout)["seconds"]["step"] > 0


@pytest.mark.slow
def test_a_distillation_between_presets(capsys):
    """One row for each of data×fsdp, if no number is given; the model as its preset has it."""
    cli.main(
        "bench --preset tiny --length 16 --mesh data=2,fsdp=2,tensor=2 --steps 1 --json".split()
    )
    facts = json.loads(capsys.readouterr().out)
    assert (facts["experiment"], facts["student"], facts["teacher"]) == (
        "tiny from tiny",
        "tiny",
        "tiny",
    )
    assert (facts["rows"], facts["row_length"], facts["rows_per_device"]) == (4, 16, 0.5)
    step = bench.flops(distillation(preset("tiny"), preset("tiny"), TRAINING, 16))
    assert facts["flops_per_token"]["total"] == step.total
    cli.main("bench --preset tiny --rows 8 --length 16 --steps 1 --scale 1,2".split())
    assert "weak           2     16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "which experiment? give its file, or a preset with --preset"),
        (
            "--preset tiny --scale 1,2",
            "--scale beside --preset splits a batch: give it with --rows",
        ),
        ("--preset tiny --stage distill", "--stage is for an experiment's file"),
        (f"{QUICKSTART} --length 16", "--length is for --preset: leave it out"),
        ("--preset tini", "unknown preset 'tini': choose one of"),
    ],
)
def test_presets_and_experiments_do_not_mix(capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *words.split()])
    refused = capsys.readouterr().err
    assert stop.value.code == 2 and said in refused and refused.count("\n") == 1


@pytest.mark.slow
def test_the_command_and_its_json(capsys):
    flags = "--stage unlearn --mesh data=4,fsdp=2 --steps 2 --model.remat full"
    cli.main(["bench", QUICKSTART, *flags.split(), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["mesh"] == {"data": 4, "fsdp": 2} and facts["remat"] == "full"
    tokens = 2 * facts["rows"] * facts["row_length"]  # of retain and of forget
    assert facts["tokens_per_second"] == pytest.approx(tokens / facts["seconds"]["step"])
    assert facts["seconds"]["p10"] <= facts["seconds"]["p50"] <= facts["seconds"]["p90"]
    said = table({**facts, "mfu": 0.123, "peak_bytes": 2.0**31})
    assert "12.3%" in said and "2.00 GiB" in said and "mesh data=4,fsdp=2" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_mfu_is_the_share_of_the_peak_of_all_devices(monkeypatch):
    """Two models of 8 rows of 12 tokens in half a second, on four v5e of 197 TFLOP/s."""
    commands = importlib.import_module("undo_jax.cli.commands.bench")
    measured = bench.Speed(3.0, 0.5, [0.5, 0.6, 0.7], 7.0)
    monkeypatch.setattr(commands, "measure", lambda *_: measured)
    kind = SimpleNamespace(device_kind="TPU v5 lite", platform="tpu")
    shape = {"sweep": 2, "data": 2, "fsdp": 1, "tensor": 1}
    mesh = SimpleNamespace(devices=np.array([kind] * 4), size=4, shape=shape)
    found = commands.describe(_work(losses.distillation, {"teacher": LM}), mesh, 3)
    layer = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 20
    body, head = 2 * 3 * (layer + 2 * 12 * 2 * 4), 2 * 50 * 8
    rate = 2 * 8 * 12 / 0.5
    wanted = {
        "jax": jax.__version__, "device": "TPU v5 lite", "devices": 4,
        "mesh": {"sweep": 2, "data": 2}, "rows": 8, "rows_per_device": 4, "accumulation": 1,
        "row_length": 12, "remat": "none", "steps": 3, "tokens_per_second": rate,
        "seconds": {"step": 0.5, "p10": 0.52, "p50": 0.6, "p90": 0.68, "compile": 3.0},
        "flops_per_token": {"body": 3 * body, "head": 3 * head, "references": body + head,
                            "total": 4 * (body + head)},
        "flops_per_second": rate * 4 * (body + head),
        "mfu": rate * 4 * (body + head) / (4 * 197e12), "peak_bytes": 7.0,
    }  # fmt: skip
    assert found["seconds"] == pytest.approx(wanted["seconds"])
    assert {**found, "seconds": 0} == {**wanted, "seconds": 0}
    kind.device_kind = "cpu"
    assert commands.describe(_work(), mesh, 3)["mfu"] is None


def test_unlearning_counts_both_streams_and_the_base():
    both = replace(_work(), streams=("retain", "forget"), refs={"base": LM})
    assert both.tokens == 2 * _work().tokens == 2 * 8 * 12
    assert bench.flops(both).references == bench.flops(both).total / 4


FACTS = {
    "stage": "unlearn", "experiment": "small", "devices": 4, "device": "TPU v5 lite",
    "mesh": {"data": 2, "fsdp": 2}, "rows": 64, "row_length": 1024, "rows_per_device": 16,
    "remat": "full", "tokens_per_second": 123456.0,
    "seconds": {"step": 0.5309, "p10": 0.5, "p50": 0.55, "p90": 0.6, "compile": 42.0},
    "flops_per_token": {"body": 3e9, "head": 2e9, "references": 1e9, "total": 6e9},
    "flops_per_second": 7.4e14, "mfu": 0.9391, "peak_bytes": 3.5 * 2**30,
}  # fmt: skip


def test_the_table_word_for_word():
    assert (
        table(FACTS)
        == """\
unlearn of small on 4 × TPU v5 lite, mesh data=2,fsdp=2
64 rows of 1024 tokens (16 a device), remat full

tokens/s   123k
step       531 ms; waited for: 550 ms, p10 500 ms, p90 600 ms
compile    42 s
MFU        93.9%
FLOPs      740T/s; a token 6G: body 3G, head 2G, references 1G
memory     3.50 GiB"""
    )
    untold = table({**FACTS, "mesh": {}, "mfu": None, "peak_bytes": None}).splitlines()
    assert untold[0] == "unlearn of small on 4 × TPU v5 lite, mesh of one device"
    assert untold[6] == "MFU        the peak of this device is not known"
    assert untold[8] == "memory     this device does not tell"
    slow = table({**FACTS, "seconds": {**FACTS["seconds"], "step": 2.69, "p90": 0.9997}})
    assert "step       2.69 s; waited for: 550 ms, p10 500 ms, p90 1 s" in slow


def test_scaling_word_for_word():
    def runs(*rates):
        return [{"devices": 2 * n, "rows": 16 * n, "tokens_per_second": rate}
                for n, rate in enumerate(rates, 1)]  # fmt: skip

    assert (
        scaling({**FACTS, "strong": runs(1000, 1500), "weak": runs(2000, 3900)})
        == """\
unlearn of small

scaling  devices   rows  tokens/s  efficiency
strong         2     16        1k        100%
strong         4     32      1.5k         75%
weak           2     16        2k        100%
weak           4     32      3.9k         98%"""
    )


@pytest.mark.slow
def test_scaling(capsys):
    """A mesh of many models counts the tokens of each."""
    flags = ["--mesh", "sweep=2,data=1", "--steps", "1", "--scale", "2,4", "--json"]
    cli.main(["bench", QUICKSTART, *flags])
    facts = json.loads(capsys.readouterr().out)
    rows = {kind: [one["rows"] for one in facts[kind]] for kind in ("strong", "weak")}
    assert rows == {"strong": [16, 16], "weak": [16, 32]}
    assert [one["devices"] for one in facts["weak"]] == [2, 4]
    one = facts["strong"][0]
    rate = 2 * one["rows"] * one["row_length"] / one["seconds"]["step"]
    assert one["tokens_per_second"] == pytest.approx(rate)
    for kind, speeds in (("strong", (100.0, 150.0)), ("weak", (100.0, 190.0))):
        for made, speed in zip(facts[kind], speeds, strict=True):
            made["tokens_per_second"] = speed
    lines = scaling(facts).splitlines()
    assert [line.split()[-1] for line in lines[3:]] == ["100%", "75%", "100%", "95%"]


@pytest.mark.slow
def test_scaling_where_models_take_all_devices(capsys):
    """The quickstart's mesh is sweep=-1: rows take them instead."""
    cli.main(["bench", QUICKSTART, "--steps", "1", "--scale", "4", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["strong"][0]["mesh"] == {"data": 4}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 0", "steps=0: measure at least one"),
        ("--scale 1,x", "scale '1,x': give numbers of devices"),
        ("--scale 64", "scale=64: there are 8 devices"),
        ("--scale 3 --mesh tensor=2", "does not fit 3 devices"),
        ("--stage noise", "stage 'noise' trains nothing"),
        (f"--trace {__file__}", "(File exists): give a folder"),
        ("--mesh data=8 --distill.training.batch-size 9", "batch of 9 rows"),
    ],
)
def test_bad_input_is_one_line(capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", QUICKSTART, *flags.split()])
    refused = capsys.readouterr().err
    assert stop.value.code == 2 and said in refused
    assert refused.startswith("undo-jax: ") and refused.count("\n") == 1
