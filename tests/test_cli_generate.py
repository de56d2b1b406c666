"""`undo-jax generate`: what it prints, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.data.tokenizer_files import describe
from undo_jax.data.tokenizers import Characters
from undo_jax.evals.generate import generate
from undo_jax.runner.load_experiment import load
from undo_jax.runtime import device_memory
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.artifacts import Artifact

ROOT = Path(undo_jax.__file__).parent.parent / "experiments"
QUICKSTART, ARITHMETIC = str(ROOT / "quickstart.py"), str(ROOT / "arithmetic.py")
TOY = load(QUICKSTART)
TOKENIZER = TOY.setting.get_tokenizer()
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # the model knows 24 ids, the tokenizer 16
PROMPTS = ("7*8=", "12-", "")


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """The tests' devices are ready."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)


@pytest.fixture(scope="module")
def params():
    """Random, and such that texts vary and end."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(TOY.model.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    draw = [0.5 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, draw)
    for name in ("after_attention", "after_mlp"):
        params["layers"][name]["norm"] += 5
    return params


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    """A finished artifact of the quickstart."""
    parts = {"distill": None, "setting": TOY.setting, "model": TOY.model}
    about = {"tokenizer": describe(TOKENIZER)}
    workdir = tmp_path_factory.mktemp("run")
    artifact = Artifact(workdir, "distill", "UNDO", 0, parts, about=about)
    artifacts.prepare_folder(artifact)
    artifacts.save_artifact(artifact, params, {})
    return artifact.folder


def _said(capsys, *arguments):
    cli.main(["generate", *map(str, arguments)])
    return capsys.readouterr().out


def _refused(capsys, *arguments):
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", *map(str, arguments)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith("undo-jax: ") and said.err.count("\n") == 1, said.err
    return said.err


def _wanted(params, prompts, new_tokens, **options):
    """Each prompt on its own, on one device."""
    texts = []
    for prompt in prompts:
        tokens = np.array([[0, *TOKENIZER.encode(prompt)]])
        lengths, key = np.array([tokens.shape[1]]), jax.random.key(0)
        lm, more = TOY.model, {"new_tokens": new_tokens, **options}
        row = generate(lm, params, tokens, lengths, key, **more)[0].tolist()
        row = row[: row.index(0)] if 0 in row else row
        texts.append("".join(TOKENIZER.decode([i]) if i < 16 else UNKNOWN for i in row))
    return texts


def test_it_prints_the_continuation_of_each_prompt(capsys, params, folder, tmp_path):
    wanted = _wanted(params, PROMPTS, 12)
    assert len(set(wanted)) == 3 and min(map(len, wanted)) < 12  # one ends, one does not
    assert max(map(len, wanted)) == 12
    flags = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    said = _said(capsys, folder, *flags, "--new-tokens", 12)
    assert said.splitlines() == wanted
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[1:]))
    flags = ["--prompt", PROMPTS[0], "--prompts-file", file, "--new-tokens", 12]
    assert _said(capsys, folder, "--experiment", QUICKSTART, *flags).splitlines() == wanted
    assert _said(capsys, folder, *flags).splitlines() == wanted


def test_what_no_row_of_training_reached_is_said(capsys, folder):
    for new_tokens, beyond in ((46, False), (47, True)):
        cli.main(["generate", str(folder), "--prompt", "1", "--new-tokens",
                  str(new_tokens)])  # fmt: skip
        said = capsys.readouterr().err
        assert ("what comes after 48 tokens is beyond the rows of its training" in said) == beyond


def test_more_than_memory_holds_is_refused_by_what_the_program_takes(capsys, folder, monkeypatch):
    """By arithmetic it would fit; XLA knows better."""
    model = TOY.model
    least = 2 * model.layers * model.kv_heads * model.head_width * 4 * 502
    monkeypatch.setattr(device_memory, "host_bytes", lambda: 8 * 1.2 * least)
    flags = ("--prompt", "1", "--new-tokens", "500")
    assert "new_tokens=500" in _refused(capsys, folder, "--experiment", QUICKSTART, *flags)
    monkeypatch.setattr(device_memory, "host_bytes", lambda: 8 * 20 * least)
    assert _said(capsys, folder, "--experiment", QUICKSTART, *flags)


def test_the_seed_sets_a_sample(capsys, params, folder):
    flags = (folder, "--prompt", "1+", "--new-tokens", 20, "--temperature", 2.0)
    first, again, other = (
        _said(capsys, *flags, *more) for more in ((), ("--seed", 0), ("--seed", 1))
    )
    assert first.splitlines() == _wanted(params, ["1+"], 20, temperature=2.0)
    assert first == again != other


def test_a_mesh_of_other_devices_and_ids_without_a_text(capsys, tmp_path):
    """Of an experiment for three devices, a model that says an id its tokenizer lacks."""
    file = tmp_path / "wide.py"
    file.write_text(
        "import importlib.util\n"
        "from dataclasses import replace\n"
        "from undo_jax.runtime.mesh import MeshShape\n"
        f"spec = importlib.util.spec_from_file_location('quickstart', {QUICKSTART!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "model = replace(module.experiment.model, vocabulary=64)\n"
        "experiment = replace(module.experiment, model=model, mesh=MeshShape(tensor=3))\n"
    )
    model = replace(TOY.model, vocabulary=64)
    params = jax.tree.map(np.array, model.init(jax.random.key(0)))
    params["embedding"][:, 0], params["embedding"][63] = 1.0, 9.0  # always the last id
    artifact = Artifact(tmp_path, "noise", "fresh", 0, {"noise": None, "model": model})
    artifacts.prepare_folder(artifact)
    artifacts.save_artifact(artifact, jax.device_put(params), {})
    said = _said(capsys, artifact.folder, "--experiment", file, "--prompt", "1", "--new-tokens", 4)
    assert said == UNKNOWN * 4 + "\n"


def test_a_continuation_is_one_line(capsys, folder, monkeypatch):
    monkeypatch.setattr(Characters, "decode", lambda tokenizer, ids: "a\nb\r\\")
    said = _said(capsys, folder, "--prompt", PROMPTS[0], "--new-tokens", 30)
    assert r"a\nb\r\\" in said and said.count("\n") == 1 and "\r" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "no prompts: give --prompt TEXT or --prompts-file FILE"),
        ("--prompt 7x8=", "character 'x' is not in the alphabet"),
        ("--prompt 1 --new-tokens 0", "new_tokens=0"),
        ("--prompt 1 --new-tokens some", "some"),
        ("--prompt 1 --temperature -0.5", "temperature=-0.5"),
        ("--prompt 1 --temperature nan", "temperature=nan"),
        ("--prompt 1 --temperature inf", "temperature=inf"),
        ("--prompt 1 --temperature 1e39", "temperature=1e+39"),
        ("--prompt 1 --new-tokens 10000000", "new_tokens=10000000 after a prompt of 2 tokens"),
        (f"--prompt 1 --new-tokens {10**20}", "fewer than 2^31"),
        (f"--prompt {'1' * 10**5}", "new_tokens=64 after a prompt of 100001 tokens: needs at"),
        (f"--prompt 1 --seed {2**32}", f"seed={2**32}"),
        ("--prompts-file nowhere.txt", "no prompts file nowhere.txt"),
    ],
)
def test_bad_flags_are_one_line(capsys, folder, flags, said):
    assert said in _refused(capsys, folder, *flags.split())


def test_a_folder_that_is_no_finished_artifact(capsys, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    for path in (tmp_path / "unfinished", tmp_path / "nowhere", folder / "params"):
        refused = _refused(capsys, path, "--prompt", "1")
        assert f"{path} holds no finished model" in refused


def test_an_artifact_of_another_model_or_vocabulary(capsys, folder, tmp_path):
    refused = _refused(capsys, folder, "--experiment", ARITHMETIC, "--prompt", "1")
    assert "was made with model.layers=2, the experiment has 14" in refused
    file = tmp_path / "other.py"
    file.write_text(
        Path(QUICKSTART).read_text().replace('preset("tiny")', 'preset("tiny", vocabulary=8)')
    )
    assert "model.vocabulary=8" in _refused(capsys, folder, "--experiment", file, "--prompt", "1")
    file.write_text(
        Path(QUICKSTART).read_text().replace('preset("tiny")', 'preset("tiny", vocabulary=32)')
    )
    assert "model.vocabulary=24, the experiment has 32" in _refused(
        capsys, folder, "--experiment", file, "--prompt", "1"
    )


def test_parameters_that_do_not_fit_their_description(capsys, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "params")
    model = replace(TOY.model, width=24)
    artifacts.start_saving(
        Artifact(tmp_path, "x", "y", 0, None), jax.jit(model.init)(jax.random.key(0))
    )
    param_checkpoint.wait_until_saved()
    next(tmp_path.glob("x-y-*/params")).rename(tmp_path / "mixed" / "params")
    assert "is of another model" in _refused(capsys, tmp_path / "mixed", "--prompt", "1")


def test_what_only_an_experiment_knows_is_asked_for(capsys, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "own")
    file = tmp_path / "own" / "config.json"
    content = json.loads(file.read_text()) | {"sha256": None}
    content["tokenizer"] |= {"type": "Mine"}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    refused = _refused(capsys, tmp_path / "own", "--prompt", "1")
    assert "Mine is a tokenizer of the experiment's own" in refused
    assert "--tokenizer FILE gives one, or --experiment FILE" in refused
    flags = ("--experiment", QUICKSTART, "--tokenizer", "bytes", "--prompt", "1")
    assert "has its own tokenizer: drop --tokenizer" in _refused(capsys, folder, *flags)
