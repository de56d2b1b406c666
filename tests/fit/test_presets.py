"""`undo-jax fit --preset`: a distillation between presets, without an experiment."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from fit_words import found as _found

import undo_jax
from undo_jax import losses
from undo_jax.cli import main as cli
from undo_jax.models import qwen2
from undo_jax.models.gemma2 import preset
from undo_jax.training.optim import AdamW

QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


def test_the_step_is_a_distillation_in_bf16():
    found = _found("--preset 0.1B --teacher 2B --length 1024 --rows 48 --remat full")
    work = found.steps[0].spec
    assert work.lm == preset("0.1B", dtype="bfloat16", remat="full")
    assert work.refs == {"teacher": preset("2B", dtype="bfloat16")}
    assert work.loss is losses.distillation and work.streams == ("train",)
    assert (work.row_length, work.training.batch_size, work.tokens) == (1024, 48, 1024 * 48)
    assert (work.training.optimizer, work.training.accumulation) == (AdamW(), 1)
    assert work.trains is None and not work.batch_fields
    assert (found.steps[0].title["student"], found.steps[0].title["teacher"]) == (
        "0.1B",
        "2B",
    )


def test_a_teacher_is_as_large_as_its_student_and_rows_have_2048_tokens():
    work = _found("--preset=0.3B").steps[0].spec
    assert work.lm == work.refs["teacher"] == preset("0.3B", dtype="bfloat16")
    assert work.row_length == 2048


def test_presets_of_other_families_have_their_name_before_them():
    work = _found("--preset qwen2:0.5B --teacher qwen2:3B").steps[0].spec
    assert work.lm == qwen2.preset("0.5B", dtype="bfloat16")
    assert work.refs == {"teacher": qwen2.preset("3B", dtype="bfloat16")}


@needs_libtpu
def test_the_command_without_an_experiment(capsys, tmp_path, monkeypatch):
    """By default a mesh of the slice's sides, and a row for each chip; the folder is empty."""
    monkeypatch.chdir(tmp_path)
    words = "fit --preset tiny --length 128 --topology v5e:2x4 --json"
    cli.main(words.split())
    facts = json.loads(capsys.readouterr().out)
    assert facts["experiment"] == "tiny from tiny" and facts["stage"] == "distill"
    assert (facts["rows"], facts["row_length"], facts["rows_per_chip"]) == (8, 128, 1)
    assert facts["mesh"] == {"data": 2, "fsdp": 4} and facts["fits"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("my.py --preset 2B", "'my.py' beside --preset 2B: give the file of an experiment or a "
         "preset, not both"),
        ("--preset 2B --model.remat full", "--model.remat is for an experiment's file: leave it "
         "out beside --preset, which takes --teacher, --length, --rows, --remat"),
        ("--preset 2B --stage relearn", "--stage is for an experiment's file"),
        ("--preset 2B --all", "--all is for an experiment's file"),
        (f"{QUICKSTART} --teacher 2B", "--teacher is for --preset: leave it out"),
        (f"{QUICKSTART} --rows 3", "--rows is for --preset: leave it out, or give "
         "--distill.training.batch-size"),
        (f"{QUICKSTART} --stage unlearn --rows 3", "give --unlearn.training.batch-size"),
        (f"{QUICKSTART} --length 9", "give --setting.row-length"),
        (f"{QUICKSTART} --remat full", "give --model.remat"),
        ("", "which experiment? give its file, or a preset with --preset"),
        ("--preset 3B", "unknown preset '3B': choose one of tiny, small, 0.1B"),
        ("--preset 3B", "9B, 27B; gemma3_text:270M, "),
        ("--preset 2B --teacher 3B", "unknown preset '3B'"),
        ("--preset llama:9B", "unknown preset '9B': choose from 2-7B"),
        ("--preset gpt2:9B", "--preset gpt2:9B: model_type='gpt2' is not supported: gemma2, "),
        ("--preset 2B --teacher=", "unknown preset ''"),
        ("--preset 2B --remat some", "unknown remat 'some': choose from none, dots, full"),
        ("--preset 2B --teacher small", "--preset 2B has a vocabulary of 256000 and --teacher "
         "small of 512"),
        ("--preset 2B --search --rows 4", "--rows beside --search, which finds it"),
        ("--preset 2B --search --remat full", "--remat beside --search, which finds it"),
        ("--preset 2B --rows 0", "--rows 0: it must be at least 1 and below 2^31"),
        ("--preset 2B --length -7", "--length -7: it must be at least 1"),
        ("--preset 2B --rows 2147483648", "--rows 2147483648: it must be at least 1 and below"),
        ("--preset 2B --rows many", "--rows many: give a whole number"),
    ],
)  # fmt: skip
def test_flags_that_do_not_belong_together_are_refused_by_name(capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words.split(), "--topology", "v5e:4x4"])
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert line.startswith("undo-jax: ") and line.count("\n") == 1 and said in line, line
