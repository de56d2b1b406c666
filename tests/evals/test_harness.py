"""lm-evaluation-harness: ours and its `hf` backend on the exported model say the same."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from etils import epath

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.data.pairs import Pairs
from undo_jax.data.questions import Questions
from undo_jax.data.tokenizer_files import describe
from undo_jax.data.trained_tokenizers import HuggingFace
from undo_jax.evals.choices import log_likelihoods, write_sheets
from undo_jax.evals.quiz import Quiz
from undo_jax.models.gemma2 import preset
from undo_jax.settings.choices import Choices, Part
from undo_jax.store import artifacts
from undo_jax.store.artifacts import Artifact

pytestmark = pytest.mark.slow
ROOT = Path(undo_jax.__file__).parent.parent
REACH = 40  # tokens that the models read here
LETTERS = ["A", "B", "C", "D"]
QUESTION = """{{question.strip()}}
A. {{choices[0]}}
B. {{choices[1]}}
C. {{choices[2]}}
D. {{choices[3]}}
Answer:"""
WORDS = "red blue green cat dog barn mat ran sat river stone seven eleven on the a to of".split()
MEAN = [{"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")]  # fmt: skip
CHOICES = {"output_type": "multiple_choice", "test_split": "test", "doc_to_target": "answer",
           "metric_list": MEAN}  # fmt: skip
TASKS = {  # as lm-eval's own of these names, but for the data; and a cloze of answers' texts
    "wmdp_own": {
        **CHOICES, "num_fewshot": 0, "doc_to_text": QUESTION, "doc_to_choice": LETTERS,
        "description": "The following are questions (with answers) about biology.\n\n",
    },
    "mmlu_own": {
        **CHOICES, "num_fewshot": 2, "doc_to_text": QUESTION, "doc_to_choice": LETTERS,
        "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"},
    },
    "cloze_own": {
        **CHOICES, "num_fewshot": 0, "doc_to_text": "{{question}}", "doc_to_choice": "choices",
    },
    "texts_own": {
        "output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
    "write_own": {
        "output_type": "generate_until", "test_split": "test", "doc_to_target": "{{text}}",
        "doc_to_text": "{{question if answer else text}}",
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n", "the"], "max_gen_toks": 12},
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def lm_eval():
    """The library, or a reason to skip; it reads nothing from the network."""
    reason = "needs lm-eval and its hf backend: pip install '.[eval]' 'lm_eval[hf]'"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.setenv(name, "1")
        for name in ("lm_eval", "accelerate"):
            pytest.importorskip(name, reason=reason)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random model with a tokenizer of its own, exported, and files of tasks."""
    folder = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        tokenizer = _tokenizer(folder / "tokenizer.json")
        lm = preset(
            "2B", layers=3, width=16, feed_forward=24, heads=4, kv_heads=2, head_width=10,
            vocabulary=tokenizer.vocab_size, attention_scale=7**-0.5, attention_softcap=1.5,
            final_softcap=6, window=5, init_stddev=0.3,
        )  # fmt: skip
        about = {"tokenizer": describe(tokenizer)}
        artifact = Artifact(epath.Path(folder), "distill", "mine", 0, {"model": lm}, (), about)
        artifacts.prepare_folder(artifact)
        artifacts.save_artifact(artifact, _params(lm), {})
        cli.main(["export-hf", str(artifact.folder), "out"])
        _write_tasks(folder / "tasks")
        yield SimpleNamespace(folder=folder, artifact=artifact.folder, lm=lm)


def _tokenizer(path):
    """Byte-level pieces of the words, after <s> and </s>."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    made.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    made.save(str(path))
    return HuggingFace(str(path), "<s>")


def _params(lm):
    """Large enough for soft-caps to bite, and such that a token is not simply repeated."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lm.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(5), len(leaves))
    draw = [0.5 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, draw)
    for name in ("after_attention", "after_mlp"):
        params["layers"][name]["norm"] += 5
    return params


def _write_tasks(folder):
    folder.mkdir()
    random = np.random.default_rng(0)
    text = lambda least, most: " ".join(random.choice(WORDS, random.integers(least, most)))  # noqa: E731
    rows = [
        {
            "question": text(2, 9),
            "choices": [text(1, 6) for _ in range(4)],
            "answer": i % 4,
            "text": text(30, 90) if i else "a",
        }
        for i in range(27)
    ]
    for split, part in (("dev", rows[:3]), ("test", rows[3:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(lines)
    files = {split: str(folder / f"{split}.jsonl") for split in ("dev", "test")}
    for name, task in TASKS.items():
        more = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**more, **task}))


@pytest.fixture(scope="module")
def both(made):
    """lm-eval's results and samples, of its backend and of ours."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from undo_jax.cli.harness import UndoJax

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        patch.setenv("HF_DATASETS_CACHE", str(made.folder / "cache"))
        manager = TaskManager(include_path=str(made.folder / "tasks"), include_defaults=False)
        ask = partial(simple_evaluate, tasks=[*TASKS], task_manager=manager, bootstrap_iters=0)
        theirs = HFLM("out", device="cpu", dtype="float32", max_length=REACH, batch_size=4)
        ours = UndoJax(str(made.artifact), batch_size=8, max_length=REACH)
        assert ours.prefix_token_id == theirs.prefix_token_id == 0
        yield ask(model=theirs), ask(model=ours)


def _samples(found, task):
    return sorted(found["samples"][task], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("task", ["wmdp_own", "mmlu_own", "cloze_own"])
def test_choices_have_the_log_likelihoods_of_transformers(both, task):
    scores = [
        np.array([[one[0] for one in sample["filtered_resps"]] for sample in _samples(x, task)],
                 float)
        for x in both
    ]  # fmt: skip
    assert scores[0].shape == (24, 4) and scores[0].std(axis=1).min() > 0.1
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-4)
    greedy = [[r[1] for s in _samples(x, task) for r in s["filtered_resps"]] for x in both]
    assert greedy[0] == greedy[1]
    for metric in ("acc,none", "acc_norm,none"):
        theirs, ours = (x["results"][task][metric] for x in both)
        assert ours == theirs


def test_the_metrics_do_not_agree_by_chance(both):
    """Norms by length change an answer, and contexts of two examples are cut."""
    results = both[1]["results"]
    assert results["cloze_own"]["acc,none"] != results["cloze_own"]["acc_norm,none"]
    values = [results[task]["acc,none"] for task in ("wmdp_own", "mmlu_own", "cloze_own")]
    assert all(0 < value < 1 for value in values), values


def test_rolling_perplexities_are_those_of_transformers(both):
    totals = [[s["filtered_resps"][0] for s in _samples(x, "texts_own")] for x in both]
    assert min(map(len, totals)) == 24
    np.testing.assert_allclose(*reversed(totals), rtol=1e-6, atol=1e-3)
    for metric in ("word_perplexity,none", "byte_perplexity,none"):
        theirs, ours = (x["results"]["texts_own"][metric] for x in both)
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_greedy_texts_are_those_of_transformers(both):
    theirs, ours = ([s["filtered_resps"][0] for s in _samples(x, "write_own")] for x in both)
    assert ours == theirs and len(set(ours)) > 3
    assert not any("\n" in text or "the" in text for text in ours)


QUIZZES = {  # of the setting, and the task of lm-eval's kind that asks the same
    "wmdp": (
        dict(subject="biology"),
        {
            **TASKS["wmdp_own"],
            "description": "The following are multiple choice questions (with answers) about "
            "biology.\n\n",
        },
    ),
    "mmlu": (dict(description="", shots=2), TASKS["mmlu_own"]),
    "cloze": (
        dict(style="cloze", score="acc_norm", description=""),
        {**TASKS["cloze_own"], "doc_to_text": "Question: {{question.strip()}}\nAnswer:"},
    ),
}


def test_the_setting_of_quizzes_scores_the_same(made, tmp_path, monkeypatch):
    """On the same files: every log-likelihood, and the accuracy. Nothing is cut."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from undo_jax.cli.harness import UndoJax

    monkeypatch.setenv("HF_DATASETS_CACHE", str(made.folder / "cache"))
    monkeypatch.chdir(made.folder)
    files = {split: str(made.folder / "tasks" / f"{split}.jsonl") for split in ("dev", "test")}
    for name, (_, task) in QUIZZES.items():
        more = {"task": f"{name}_quiz", "dataset_path": "json",
                "dataset_kwargs": {"data_files": files}}  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**task, **more}))
    ours = UndoJax(str(made.artifact), batch_size=8, max_length=400)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tasks = [f"{name}_quiz" for name in QUIZZES]
    found = simple_evaluate(ours, tasks=tasks, task_manager=manager, bootstrap_iters=0)

    tokenizer = HuggingFace(str(made.folder / "tokenizer.json"), "<s>")
    asked, shown = (Questions(files[split]) for split in ("test", "dev"))
    quizzes = {name: Quiz(asked, examples=shown, **how) for name, (how, _) in QUIZZES.items()}
    parts = (Part(Pairs(made.folder / "no pairs are read.jsonl")),)
    setting = Choices(
        parts, parts, tokenizer, quizzes["wmdp"], retain_quizzes=tuple(quizzes.items())
    )
    scores, params = setting.at_end(made.lm, _params(made.lm)), _params(made.lm)
    for name, quiz in quizzes.items():
        samples = _samples(found, f"{name}_quiz")
        wanted = [[one[0] for one in sample["filtered_resps"]] for sample in samples]
        log_p = log_likelihoods(made.lm, params, write_sheets(quiz, tokenizer, 8))
        np.testing.assert_allclose(log_p, np.array(wanted, float), rtol=0, atol=1e-4)
        theirs = found["results"][f"{name}_quiz"][f"{quiz.score},none"]
        assert scores[name] == pytest.approx(theirs, abs=1e-7) and 0 < theirs < 1


def _said(capsys, *words):
    cli.main(["evaluate", *map(str, words)])
    return capsys.readouterr()


@pytest.fixture
def here(made, monkeypatch):
    """The current folder is that of the model; the tests' devices are ready."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(made.folder / "cache"))
    monkeypatch.chdir(made.folder)


def test_the_command_prints_the_same_scores(made, both, here, capsys):
    """As JSON and as a table, of tasks by name, pattern and file; and says what it cuts."""
    flags = ["--include-path", "tasks", "--max-length", REACH, "--batch-size", "8"]
    tasks = ["--tasks", "*_own"]
    said = _said(capsys, made.artifact, *tasks, *flags, "--json")
    found = json.loads(said.out)
    for task, wanted in both[1]["results"].items():
        scores = {n: v for n, v in wanted.items() if "," in n and "stderr" not in n}
        assert scores and scores.items() <= found["results"][task].items()
    assert f"contexts are cut on the left, to {REACH} tokens; --max-length" in said.err
    few = ["--limit", "3", "--num-fewshot", "1", "--tasks", "mmlu_own,tasks/cloze_own.yaml"]
    table = _said(capsys, made.artifact, *flags, *few).out
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    shown = {(row[1], row[5]): row for row in rows if len(row) > 7}
    assert shown["mmlu_own", "acc"][4] == "1" and ("cloze_own", "acc") in shown


def test_lm_evals_own_command_knows_the_name(made, both, here, capsys, monkeypatch):
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import get_model

    from undo_jax.cli.harness import UndoJax

    assert get_model("undo_jax") is UndoJax and get_model("hf").__name__ == "HFLM"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lm_eval.models"] == {"undo_jax": "undo_jax.cli.harness:UndoJax"}
    words = ["lm_eval", "--model", "undo_jax", "--tasks", "wmdp_own", "--include_path", "tasks",
             "--model_args", f"pretrained={made.artifact},max_length={REACH}"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    cli_evaluate()  # as python -m undo_jax.cli.harness
    value = both[1]["results"]["wmdp_own"]["acc,none"]
    assert re.search(rf"wmdp_own.*acc .*\|{value:.4f}\|", capsys.readouterr().out)


def test_two_processes_score_as_one(made, both, here):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    words = [sys.executable, "-m", "undo_jax", "evaluate", str(made.artifact), "--include-path",
             "tasks", "--tasks", "wmdp_own", "write_own", "--max-length", str(REACH), "--json",
             "--coordinator", place, "--processes", "2", "--process"]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*words, str(i)], env=environment, **pipes) for i in range(2)]
    try:
        said = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    first, second = (out for out, _ in said)  # in which Gloo's threads write in pieces of lines
    found = json.loads(first[first.index("{") : first.rindex("}") + 1])["results"]
    assert "{" not in second
    for task, metric in (("wmdp_own", "acc,none"), ("write_own", "exact_match,none")):
        assert found[task][metric] == both[1]["results"][task][metric]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{artifact} --tasks other", "unknown task 'other': tasks has cloze_own, mmlu_own, "),
        ("nowhere --tasks wmdp_own", "nowhere holds no finished model"),
        ("out --tasks wmdp_own", "out holds no finished model"),
        ("{artifact} --tasks wmdp_own --tokenizer bytes", "is not what .* was trained with"),
        ("{artifact} --tasks texts_own --mesh data=3", "mesh .*data=3.* does not fit 8 devices"),
        ("{artifact} --tasks write_own --max-length 12", "max_gen_toks=12 leaves no room"),
        ("{artifact} --tasks broken.yaml", "cannot read tasks broken.yaml"),
        ("{artifact} --tasks lost.yaml", "lost"),
    ],
)
def test_what_cannot_be_is_one_line(made, here, capsys, words, said):
    Path("broken.yaml").write_text("task: broken\ndataset_path: [\n")
    task = {"task": "lost", "dataset_path": "json", **TASKS["wmdp_own"],
            "dataset_kwargs": {"data_files": {"test": "lost.jsonl"}}}  # fmt: skip
    Path("lost.yaml").write_text(yaml.safe_dump(task))
    given = words.format(artifact=made.artifact).split()
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *given, "--include-path", "tasks"])
    told = capsys.readouterr()
    assert stop.value.code == 2 and told.out == ""
    assert re.search(f"^undo-jax: .*{said}", told.err.splitlines()[-1]), told.err


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ([], 256, 0.0)),
        ({"until": "x", "max_gen_toks": 3}, (["x"], 3, 0.0)),
        ({"until": ["x", ""], "max_new_tokens": 4, "top_p": 0.9}, (["x"], 4, 0.0)),
        ({"do_sample": False, "temperature": 0.7}, ([], 256, 0.0)),
        ({"do_sample": True, "temperature": 0.7, "num_beams": 1}, ([], 256, 0.7)),
        ({"temperature": 0.7, "top_p": 0.9}, "top_p=0.9 is not supported"),
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"max_gen_toks": 0}, "max_gen_toks=0: give a whole number above 0"),
    ],
)
def test_options_of_generation(options, wanted):
    from undo_jax.cli.harness import generation_options

    if isinstance(wanted, tuple):
        assert generation_options(options) == wanted
    else:
        with pytest.raises(ValueError, match=wanted):
            generation_options(options)
