"""Bad values of every flag of every command, and damaged files, by the hundred.

Whatever is given ends in one line and status 2 with nothing written, or is taken, which here ends
in status 130 where the work would begin. HYPOTHESIS_PROFILE=long tries more than 2,000.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import undo_jax
from undo_jax import report
from undo_jax.cli import main as cli
from undo_jax.models import hf
from undo_jax.runner import experiment as experiments
from undo_jax.runner.load_experiment import load
from undo_jax.store import artifacts, param_checkpoint
from undo_jax.store.artifacts import Artifact
from undo_jax.training import programs

common = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("short", max_examples=4, **common)
settings.register_profile("long", max_examples=160, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

QUICKSTART = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
TOY = load(QUICKSTART)
MANIFEST, INDEX = "corpus/manifest.json", "model/model.safetensors.index.json"
GIVEN = {  # what a command needs to reach its flags
    "init": ("init", "mine"),
    "run": ("run", QUICKSTART),
    "report": ("report", "run"),
    "figures": ("figures", "run"),
    "demo": ("demo", "run", "--experiment", "x.py"),
    "list": ("list", "run"),
    "score": ("score", "run", "repetition", "--experiment", "x.py"),
    "compare": ("compare", "run/made", "run/made"),
    "clean": ("clean", "run/experiment-x.json", "--yes"),
    "bench": ("bench", QUICKSTART),
    "fit": ("fit", QUICKSTART, "--topology", "v5e:2x2"),
    "xla-flags": ("xla-flags", "overlap"),
    "generate": ("generate", "run/made", "--experiment", QUICKSTART, "--prompt", "1"),
    "evaluate": ("evaluate", "run/made", "--tasks", "mine"),
    "data pack": ("data", "pack", "--source", "jsonl", "--pattern", "a.jsonl", "--tokenizer",
                  "bytes", "--out", "out"),
    "data train-tokenizer": ("data", "train-tokenizer", "--source", "jsonl", "--pattern",
                             "a.jsonl", "--out", "out.model", "--vocab-size", "280"),
    "import-hf": ("import-hf", "model", "imported"),
    "export-hf": ("export-hf", "run/made", "out"),
    "completion": ("completion", "bash"),
}  # fmt: skip
FORMS = {**GIVEN, "fit --preset": ("fit", "--preset", "tiny", "--topology", "v5e:2x2")}
TEXT = st.text(max_size=8).map(lambda text: text if text != "--help" else "")
NUMBERS = st.sampled_from(
    ("nan", "inf", "-inf", "1e400", "1e39", "1e-50", "0", "-1", "1.5", "0x10", "½", "1_0", "", " ")
) | st.integers(-(10**30), 10**30).map(str)


def _say(*words):
    """Exit status of a command, and what it says on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main(list(words))
            return 0, out.getvalue()
        except SystemExit as stop:
            return stop.code, said.getvalue()


def _flags(command):
    """Every flag that a command names in its help; of `run` with those of the experiment."""
    words = GIVEN[command][:2] if command == "run" else command.replace(" --preset", "").split()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    found = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z]", out.getvalue())) - {"--help"}
    return sorted(found | (set(_flags("run")) if command in ("bench", "fit") else set()))


def _fields(value, prefix=""):
    """Each number and each choice of an experiment, and its type, by its flag."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner, flag = getattr(value, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield from _fields(inner, f"{flag}.")
            continue
        kinds = {hints[field.name], *typing.get_args(hints[field.name])}
        for kind in (int, float):
            if kind in kinds:
                yield "--" + flag.replace("_", "-"), kind
        if typing.get_origin(hints[field.name]) is typing.Literal:
            yield "--" + flag.replace("_", "-"), str


FIELDS = list(_fields(TOY))
BAD = {  # for every number of a kind
    float: st.sampled_from(("nan", "inf", "-inf", "1e400", "1e39", "-1e-46", "many", "")),
    int: st.sampled_from(("nan", "inf", "1.5", "1e3", "many", ""))
    | st.integers(2**63, 10**30).map(str)
    | st.integers(-(10**30), -(2**63) - 1).map(str),
    str: TEXT.map(lambda text: f"no {text}"),
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder with what the commands read; where work would begin, they are stopped."""
    asked = []

    def begin(*given, **named):
        asked.extend(given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fuzz")
        patch.chdir(folder)
        _fill()
        patch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
        patch.setattr(
            sys.modules["undo_jax.runtime.process_watch"], "connect_processes", lambda *_: None
        )
        patch.setattr(jax.distributed, "initialize", begin)
        patch.setattr(experiments, "build_graph", begin)
        patch.setattr(programs, "build", begin)
        patch.setattr("undo_jax.cli.commands.fit.mesh_on", begin)
        patch.setattr(report, "table", begin)
        patch.setattr("undo_jax.report.paper_page.draw", begin)
        patch.setattr(sys.modules["undo_jax.data.prepare"], "_assign_splits", begin)
        patch.setattr(sys.modules["undo_jax.data.train_tokenizer"], "_train", begin)
        patch.setattr(param_checkpoint, "restore", begin)
        patch.setattr("undo_jax.cli.commands.evaluate.find_spec", lambda name: True)
        for module in "harness", "harness_tasks":  # in place of what imports lm-eval
            patch.setitem(sys.modules, f"undo_jax.cli.{module}", SimpleNamespace(load_tasks=begin))
        patch.setattr("undo_jax.cli.commands.score._score", begin)
        patch.setattr(hf, "load", begin)
        patch.setattr(report, "write", lambda *a: report.analyse(report.read_logs(*a[:2])))
        yield asked


def _fill():
    """A corpus, a folder of Hugging Face's, and a run with an attack on one model."""
    Path("a.jsonl").write_text('{"text": "one two three"}\n{"text": "four five six"}\n')
    status, said = _say(*GIVEN["data pack"][:-1], "corpus", "--row-length", "8")
    assert status == 0, said
    params = jax.jit(TOY.model.init)(jax.random.key(0))
    hf.save("model", TOY.model, params, max_shard_bytes=50_000)
    recipes = {"distill": None, "relearn": {"attack": {"name": "forget"}}}
    for stage, name in (("distill", "made"), ("relearn", "attacked")):
        parts = {stage: recipes[stage], "setting": TOY.setting, "model": TOY.model}
        artifact = Artifact(param_checkpoint.epath.Path("run"), stage, "base", 0, parts)
        artifacts.prepare_folder(artifact)
        scores = {"retain": 1.0, "forget": 1.0}
        artifacts.save_artifact(artifact, params, scores, recovered=stage == "distill" or None)
        shutil.move(artifact.folder, f"run/{name}")
    record = {
        "step": 5,
        "eval": {"retain": 0.5, "forget": 0.5},
        "attack": "forget",
        "learning_rate": 0.1,
    }
    Path("run/attacked/metrics.jsonl").write_text(json.dumps(record) + "\n")
    metric = {"label": "x", "higher_is_better": True, "unit": ""}
    model = {"model": "mine", "seed": 0, "artifact": "made", "role": "distilled", "alpha": None,
             "unlearned": None, "oracle": None, "attacks": ["attacked"]}  # fmt: skip
    both = [{"artifact": folder, "model": "mine"} for folder in ("made", "attacked")]
    metrics = {"retain": metric, "forget": metric}
    listed = {"name": "x", "metrics": metrics, "headline": [*metrics], "models": [model],
              "artifacts": both}  # fmt: skip
    for name in ("x", "alpha-arithmetic-small"):  # the second one is of a figure
        Path(f"run/experiment-{name}.json").write_text(json.dumps({**listed, "name": name}))
    Path("x.py").write_text(
        "import dataclasses\nfrom undo_jax.runner.load_experiment import load\n"
        f"experiment = dataclasses.replace(load({QUICKSTART!r}), name='x')\n"
    )
    shutil.copytree("run", "whole")


def _files():
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*")}


def _is_right(words, may_work=False):
    """Run a command; it is refused as it should be, or taken. Returns whether it is refused."""
    before = _files()
    status, said = _say(*words)
    if may_work and status in (0, 130):
        for path in set(_files()) - set(before):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return False
    assert status == 2, (words, status, said)
    assert said.startswith("undo-jax: ") and said.count("\n") == 1, (words, said)
    assert _files() == before, words
    return True


def _numbers(value):
    """All numbers of a value of dataclasses."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@settings(max_examples=5 * settings.default.max_examples)
@given(st.data())
def test_a_number_that_cannot_be_is_refused(data):
    flag, kind = data.draw(st.sampled_from(FIELDS))
    command = data.draw(st.sampled_from(("run", "bench", "fit")))
    assert _is_right((*GIVEN[command], flag, data.draw(BAD[kind])))


@pytest.mark.parametrize("command", FORMS)
@given(data=st.data())
def test_whatever_a_flag_is_given_is_refused_or_taken(place, command, data):
    flags = _flags(command)
    extra = [*(flags or ["--flag"]), "--no-such-flag", ""]
    flag = data.draw(st.sampled_from(extra) | TEXT)
    place.clear()
    refused = _is_right((*FORMS[command], flag, data.draw(NUMBERS | TEXT)), may_work=True)
    for taken in place[:1] if not refused and command == "run" else ():  # recipes
        for recipe in taken:
            for number in _numbers(recipe):
                assert math.isfinite(number) and abs(number) < 3.4028236e38
            assert recipe.training.steps < 2**31


READ = {
    "report": ("run/experiment-x.json", "run/made/config.json", "run/attacked/summary.json",
               "run/attacked/metrics.jsonl"),
    "figures": ("run/experiment-alpha-arithmetic-small.json", "run/made/config.json",
                "run/attacked/metrics.jsonl"),
    "demo": ("run/experiment-x.json", "run/made/config.json", "run/attacked/config.json"),
    "generate": ("run/made/config.json",),
    "export-hf": ("run/made/config.json",),
    "import-hf": ("model/config.json", INDEX),
    "data pack": (MANIFEST,),
}  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@st.composite
def damaged(draw, content):
    """A file cut, spoilt or replaced, or with a part of its JSON lost or replaced."""
    how = draw(st.sampled_from(("cut", "spoilt", "other", "part", "part", "lost")))
    if how == "cut":
        return content[: draw(st.integers(0, len(content) - 2))]
    if how == "spoilt":
        at = draw(st.integers(0, len(content) - 1))
        return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    if how == "other":
        return json.dumps(draw(JSON)).encode() if draw(st.booleans()) else draw(st.binary())
    tree = json.loads(content.splitlines()[0] if content.startswith(b'{"step') else content)
    here = tree
    while True:
        keys = list(here) if isinstance(here, dict) else range(len(here))
        key = draw(st.sampled_from(list(keys)))
        if not (isinstance(here[key], dict | list) and here[key] and draw(st.booleans())):
            break
        here = here[key]
    if how == "lost":
        del here[key]
    else:
        here[key] = draw(JSON | st.sampled_from(("../x", "/etc/passwd", "..", "a/b")))
    return json.dumps(tree).encode()


@pytest.mark.parametrize(("command", "file"), [(c, f) for c, files in READ.items() for f in files])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(command, file, data):
    path = Path(file)
    whole = path.read_bytes()
    words = GIVEN[command]
    if command == "data pack":
        words = (*words[:-1], "corpus", "--row-length", "8")
    try:
        path.write_bytes(data.draw(damaged(whole)))
        if _is_right(words, may_work=True):
            said = _say(*words)[1]
            assert path.parts[0] in said or "nothing to report" in said  # what is to be mended
    finally:
        path.write_bytes(whole)


def test_every_command_is_tried():
    assert GIVEN.keys() == cli.COMMANDS.keys()
    for command, words in FORMS.items():
        status, said = _say(*words)
        assert status in (0, 130), (command, said)
    assert {"--seeds", "--model.width", "--workdir"} < set(_flags("run"))
    assert {"--preset", "--teacher", "--length", "--rows", "--remat"} < set(_flags("fit --preset"))
    assert len(FIELDS) > 80
