"""experiments/wmdp.py in miniature, by the command line: from a base on disk to a judged export."""

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from documents import ROOT, blocks, typed
from etils import epath

from undo_jax.cli import artifact_lm, experiment_flags
from undo_jax.cli import main as cli
from undo_jax.data.chat import chat
from undo_jax.data.pairs import Pairs
from undo_jax.data.tokenizer_files import describe
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.models import hf_folder
from undo_jax.models.gemma2 import preset
from undo_jax.runner.load_experiment import load
from undo_jax.runtime.atomic_files import read_json
from undo_jax.store import artifacts, param_checkpoint

FILE = str(ROOT / "experiments" / "wmdp.py")
TURNS = (  # as Gemma's
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
LM = preset("2B", layers=3, width=16, feed_forward=16, heads=2, kv_heads=1, head_width=8,
            attention_scale=8**-0.5, vocabulary=320)  # fmt: skip
SHORT = [
    f"--{part}.training.{name} {value}"
    for part in ("unlearn", "distill", "relearn")
    for name, value in (("steps", 2), ("eval-every", 2), ("batch-size", 8))
]
SMALL = " ".join([
    *SHORT, "--seeds 42 --row-length 24 --general-row-length 48 --validation-rows 2 --shots 1",
    "--rows-at-once 8 --first-layer 1 --read-layer 2 --relearn.learning-rates 1e-3 1e-4",
    "--mesh data=8",
]).split()  # fmt: skip


def _lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)) + "\n")


def _base(root):
    """A random model exported by our own command, with a chat template and a card of its own."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["question and answer about the model"] * 4, trainer)
    tokenizer.save(str(root / "tokenizer.json"))
    about = {"tokenizer": describe(load_tokenizer(root / "tokenizer.json", "<bos>"))}
    config = {"model": artifacts.to_json(LM)}
    folder = epath.Path(root)
    base = artifacts.Artifact(folder, "import", "base", 0, config, (), about, "random")
    artifacts.prepare_folder(base)
    artifacts.save_artifact(base, jax.jit(LM.init)(jax.random.key(0)), {})
    cli.main(["export-hf", "random", "tiny-gemma"])
    settings = read_json(epath.Path(root / "tiny-gemma" / "tokenizer_config.json"))
    (root / "tiny-gemma" / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": TURNS})
    )
    (root / "tiny-gemma" / "README.md").write_text("---\nlicense: gemma\n---\n# A base\n")


def _data(root):
    """Files in the layouts of the data sets that the experiment reads."""
    questions = [
        {"question": f"What is {n}?", "choices": [str(n + i) for i in range(4)], "answer": n % 4}
        for n in range(8)
    ]
    table = pyarrow.Table.from_pylist(questions)
    for place in ("wmdp/wmdp-bio", "robust/virology", "cloze/data"):
        (root / place).mkdir(parents=True)
    pyarrow.parquet.write_table(table, root / "wmdp/wmdp-bio/test-00000-of-00001.parquet")
    pyarrow.parquet.write_table(table, root / "robust/virology/robust-00000-of-00001.parquet")
    pyarrow.parquet.write_table(table, root / "cloze/data/cloze_compatible-00000-of-00001.parquet")
    subjects = ("anatomy", "college_biology", "college_medicine", "high_school_biology",
                "medical_genetics", "virology", "astronomy")  # fmt: skip
    for split in ("test", "dev"):
        rows = [{**questions[i], "subject": subject} for i, subject in enumerate(subjects)]
        _lines(root / f"mmlu/all/{split}-00000-of-00001.jsonl", rows)
    for kind in ("forget", "retain"):
        pairs = ({"question": f"{kind} {n}?", "answer": f"it is {n}"} for n in range(200))
        _lines(root / f"bio-{kind}.jsonl", pairs)
    for name in ("wikitext", "fineweb-edu", "wikipedia", "magpie"):
        _lines(root / f"{name}.jsonl", ({"text": f"{name} of {n} words"} for n in range(200)))
        length, words = ("24" if name == "wikitext" else "48"), f"{root}/{name}.jsonl"
        cli.main(["data", "pack", "--source", "jsonl", "--pattern", words, "--tokenizer",
                  "tiny-gemma/tokenizer.json", "--row-length", length, "--validation-share", "0.2",
                  "--out", f"{root}/{name}"])  # fmt: skip


@pytest.mark.slow
def test_from_a_base_on_disk_to_an_export_that_is_judged(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    _base(tmp_path)
    run = ["run", FILE, "--base", "tiny-gemma", "--pairs", "--chat", "tiny-gemma", *SMALL]
    with pytest.raises(SystemExit) as stop:
        cli.main([*run, "--plan"])
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert "data/wmdp/bio-retain.jsonl: check the pattern" in message
    _data(tmp_path / "data" / "wmdp")
    shutil.move("data/wmdp/mmlu", "moved")
    with pytest.raises(SystemExit):
        cli.main([*run, "--plan"])
    assert (
        capfd.readouterr()
        .err.strip()
        .splitlines()[-1]
        .endswith(
            "no file matches data/wmdp/mmlu/all/test-*: fetch it: hf download cais/mmlu "
            "--repo-type dataset --local-dir data/wmdp/mmlu"
        )
    )
    shutil.move("moved", "data/wmdp/mmlu")
    cli.main([*run, "--plan"])
    assert not os.path.exists("runs")
    cli.main(run)
    folders = {p.name.rpartition("-")[0]: p for p in Path("runs/wmdp").glob("*-seed42-*")}
    relearned = [name for name in folders if name.startswith("relearn-")]
    assert sorted(folders.keys() - {*relearned}) == [
        "distill-maxent-undo-0.25-seed42", "distill-rmu-undo-0.25-seed42",
        "noise-maxent-undo-0.25-seed42", "noise-rmu-undo-0.25-seed42",
        "unlearn-maxent-seed42", "unlearn-rmu-seed42",
    ]  # fmt: skip
    summary = read_json(epath.Path(folders["distill-rmu-undo-0.25-seed42"] / "summary.json"))
    assert summary["steps"] == 2 and summary["tokens"] == 2 * 8 * 48
    assert set(summary["eval"]) == {
        "retain", "forget", "forget_text", "mmlu", "mmlu_apart", "mmlu_rest", "robust", "cloze"
    }  # fmt: skip
    records = (folders["distill-rmu-undo-0.25-seed42"] / "metrics.jsonl").read_text()
    assert '"forget"' in records and '"mmlu"' not in records  # that is asked at the end alone
    _is_half_shrunk(folders)
    cli.main(["export-hf", str(folders["distill-rmu-undo-0.25-seed42"]), "out"])
    _is_a_card(Path("out/README.md").read_text())
    _encodes_as_transformers(tmp_path)
    settings = read_json(epath.Path("out/tokenizer_config.json"))
    assert settings["chat_template"] == TURNS
    capfd.readouterr()
    flags = ["--prompt", "What is", "--new-tokens", "2"]
    cli.main(["generate", str(folders["distill-rmu-undo-0.25-seed42"]), *flags])
    assert capfd.readouterr().out.count("\n") == 1
    capfd.readouterr()
    cli.main([*run, "--plan"])
    assert "all" in capfd.readouterr().out
    _is_judged_as_the_guide_types_it(tmp_path)
    _is_compiled_for_without_weights_or_text()


def _is_compiled_for_without_weights_or_text():
    """As section 2 of docs/YOUR_MODEL.md types it, where text is packed for another base."""
    Path("other").mkdir()
    Path("other/config.json").write_text(json.dumps(hf_folder.describe(replace(LM, layers=4))))
    flags = "--base other --corpora data/other --first-layer 1 --read-layer 2".split()
    made = experiment_flags.experiment_with(load(FILE), flags)
    assert made.models["base"].lm.layers == 4


def _is_judged_as_the_guide_types_it(folder):
    """Section 4 of docs/YOUR_MODEL.md, without lm-eval."""
    shell = blocks(ROOT / "docs" / "YOUR_MODEL.md", "sh")
    (section,) = (text for text in shell if text.startswith("undo-jax report runs/wmdp\n"))
    calls = [call.words for call in typed([section], folder, folder / "recorders")]
    for words in calls:
        if words[0] != "evaluate":
            cli.main(list(words))
    assert [words[0] for words in calls].count("evaluate") == len(calls) - 3
    assert read_json(epath.Path("unlearned/config.json"))["torch_dtype"] == "bfloat16"


def _is_half_shrunk(folders):
    """α = 0.25 without noise: θ' = 0.75 θ, whatever the seed."""
    mesh = artifact_lm.mesh_of(LM)
    unlearned, shrunk = (
        param_checkpoint.restore(epath.Path(folders[f"{name}-seed42"]) / "params", LM, mesh)
        for name in ("unlearn-rmu", "noise-rmu-undo-0.25")
    )
    for first, second in zip(jax.tree.leaves(unlearned), jax.tree.leaves(shrunk), strict=True):
        np.testing.assert_allclose(0.75 * np.asarray(first), np.asarray(second), rtol=1e-6)


def _is_a_card(text):
    """What it says, of which all is known: the licence is that of the base's own card."""
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert 'license: "gemma"' in head.splitlines() and "license: gemma. Check" in body
    for message in ("| import | tiny-gemma | – | 0 | 0 |", "| unlearn | RMU | 42 | 2 | 768 |",
                 "| distill | RMU, UNDO α=0.25 | 42 | 2 | 768 |", '"retain_weight": 1.0',
                 "| mmlu_apart | ", "Experiment wmdp: accuracy on what is forgotten",
                 "seed 42; RMU, UNDO α=0.25 of experiment wmdp.\n",
                 "Sources go by fingerprints of their content"):  # fmt: skip
        assert message in body, message
    table = body.partition("## Robustness")[2].partition("## Licence")[0]
    names = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert names[2:] == [
        "| base",
        "| RMU",
        "| RMU, UNDO α=0.25",
        "| MaxEnt",
        "| MaxEnt, UNDO α=0.25",
    ]
    assert "Here it is RMU, UNDO α=0.25" in table and "there is no oracle" in table
    assert "| model | before | after relearning |\n" in table and "robustness, %" not in table


def _encodes_as_transformers(root):
    """A conversation of a pair, in tokens, is what transformers makes of it."""
    from transformers import AutoTokenizer

    pairs = Pairs(root / "data/wmdp/bio-forget.jsonl", chat("tiny-gemma"), marked=True)
    tokenizer = load_tokenizer("tiny-gemma/tokenizer.json", "<bos>")
    rows = pairs.rows("train", tokenizer, 200).tokens
    theirs = AutoTokenizer.from_pretrained("tiny-gemma")
    held = {tuple(_theirs(theirs, line)) for line in _read(root / "data/wmdp/bio-forget.jsonl")}
    row = rows[0].tolist()
    ends = [i for i, token in enumerate(row) if token == tokenizer.bos_id]
    whole = [tuple(row[a:b]) for a, b in itertools.pairwise(ends)]
    assert len(whole) > 3 and {*whole} <= held


def _read(path):
    return map(json.loads, path.read_text().splitlines())


def _theirs(tokenizer, pair):
    turns = [{"role": "user", "content": pair["question"]},
             {"role": "assistant", "content": pair["answer"]}]  # fmt: skip
    text = tokenizer.apply_chat_template(turns, tokenize=False).removeprefix("<bos>")
    return [tokenizer.bos_token_id, *_unopened(tokenizer, text)]


def _unopened(tokenizer, text):
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=False)
    return encoded["input_ids"]


@pytest.mark.slow
def test_without_a_model_it_says_what_to_fetch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "--model.layers 20 --model.width 8 --model.feed-forward 8 --model.vocabulary 64"
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", FILE, *small.split(), "--mesh", "data=8", "--plan"])
    (message,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "\n" not in message
    assert "hf download ORGANISATION/gemma-2-2b --local-dir gemma-2-2b" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "methods is empty: rmu or maxent, or both"),
        ({"methods": ("rmu", "rmu")}, "one is given twice"),
        ({"chat": "gemma-2-2b-it"}, "chat=gemma-2-2b-it without pairs: corpora have no turns"),
        ({"coefficient": float("nan")}, "coefficient=nan: give a finite number"),
        ({"distill": "filtered"}, "distill.filtered: this experiment distils on general text"),
        ({"read_layer": 15}, "first_layer=1 and read_layer=15 of small, which has layers 0 to "),
        ({"first_layer": 2}, ": choose what RMU trains and reads, e.g. --first-layer "),
        ({"model": replace(LM, layers=2)}, "small states its model: give only dtype, remat"),
    ],
)
def test_knobs_that_would_be_ignored_are_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(FILE)
    if change == {"distill": "filtered"}:
        change = {"distill": replace(config.distill, filtered=True)}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(hf_folder.describe(LM)))
    small = replace(config, base="small", first_layer=1, read_layer=2)
    with pytest.raises(ValueError) as error:
        replace(small, **change).experiment()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert replace(small, model=replace(config.model, remat="none")).experiment().models[
        "base"
    ].lm == (replace(LM, remat="none"))
