"""What `list`, `compare` and `clean` do with the folders of a workdir."""

import functools
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from known_logs import Workdir

import undo_jax
from undo_jax import report as reporting
from undo_jax.cli import main as cli
from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.workdir import cleaning
from undo_jax.workdir.inventory import scan_artifacts, scan_experiments

EMPTY = {"metrics": {}, "headline": [], "attacks": {}}


class Made:
    """A workdir with artifacts as runs write them, and an experiment's file."""

    def __init__(self, root: Path) -> None:
        self.root, self.names = epath.Path(root), {}

    def add(self, stage: str, model: str, *parents: str, finished: bool = True) -> str:
        """The name of its folder."""
        mark = hashlib.sha256(f"{stage} {model}".encode()).hexdigest()[:8]
        folder = self.root / f"{stage}-{model}-seed0-{mark}"
        (folder / "params").mkdir(parents=True)
        (folder / "params" / "data").write_bytes(bytes(1000))
        upstream = [parent.rpartition("-")[2] for parent in parents]
        said = {"fingerprint": mark, "stage": stage, "model": model, "seed": 0}
        write_json(folder / "config.json", {**said, "upstream": upstream, "config": {}})
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
        if finished:
            write_json(folder / "summary.json", {"fingerprint": mark, "eval": {}})
        return folder.name

    def experiment(self, name: str, models: dict[str, dict], more: tuple[str, ...] = ()) -> Path:
        """Its file; models as {name: fields of its entry}, `more` are artifacts on the way."""
        blank = {"seed": 0, "alpha": None, "unlearned": None, "oracle": None, "attacks": []}
        entries = [{**blank, "model": n, "role": "base", **entry} for n, entry in models.items()]
        own = [(f, e["model"]) for e in entries for f in (e["artifact"], *e["attacks"])]
        listed = [{"artifact": f, "model": n} for f, n in [*own, *((f, "") for f in more)]]
        path = self.root / f"experiment-{name}.json"
        write_json(path, {"name": name, **EMPTY, "models": entries, "artifacts": listed})
        return Path(path)


@pytest.fixture
def made(tmp_path):
    """Two experiments that share a base: `one` has a student at 0.2, `two` at 0.8."""
    made = Made(tmp_path / "run")
    base = made.add("pretrain", "base")
    gone = made.add("unlearn", "gone", base)
    names = {"base": base, "gone": gone}
    for name, alpha in (("one", "0.2"), ("two", "0.8")):
        noise = made.add("noise", alpha, gone)
        student = made.add("distill", alpha, noise, gone)
        attack = made.add("relearn", f"{alpha}-by-forget", student)
        names |= {f"noise {alpha}": noise, alpha: student, f"attack {alpha}": attack}
        models = {
            "base": {"artifact": base},
            "gone": {"artifact": gone, "role": "unlearned", "unlearned": gone},
            f"UNDO {alpha}": {"artifact": student, "unlearned": gone, "attacks": [attack]},
        }
        made.experiment(name, models, (noise,))
    made.names = names
    return made


def _say(capsys, *words):
    """Exit status, and what is said on stdout and stderr."""
    status = 0
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr()
    return status, told.out + told.err


def _there(made):
    return {path.name for path in Path(made.root).iterdir()}


def test_list_tells_models_stages_and_what_is_unfinished(made, capsys):
    made.add("distill", "left", finished=False)
    (Path(made.root) / made.names["0.8"] / "summary.json").unlink()
    status, told = _say(capsys, "list", made.root)
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert status == 0 and lines[0].startswith("one: finished, ")
    assert any(line.startswith("two: 1 of 5 unfinished, ") for line in lines)
    assert any(line.startswith("UNDO 0.2 distill×1 relearn×1 2/2 ") for line in lines)
    assert any(line.startswith("UNDO 0.8 distill×1 relearn×1 1/2 ") for line in lines)
    at = lines.index("of no experiment that is listed:")
    assert lines[at + 2].startswith("distill 0/1 ")
    assert lines[-1].startswith("9 artifacts; ") and "KiB" in lines[-1]


def test_list_counts_the_bytes_that_are_there(made):
    found = scan_artifacts(made.root)[made.names["base"]]
    folder = Path(made.root) / made.names["base"]
    assert found.bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert found.bytes > 1000


def test_what_no_run_has_made_is_no_artifact(made, tmp_path):
    root, before = Path(made.root), scan_artifacts(made.root).keys()
    (root / "notes-12345678").mkdir()
    (root / "notes.txt").write_text("mine")
    own = tmp_path / "elsewhere-11111111"
    own.mkdir()
    write_json(epath.Path(own) / "config.json", {"fingerprint": "11111111", "stage": "elsewhere"})
    (root / own.name).symlink_to(own)
    write_json(epath.Path(own) / "artifacts.json", {"artifacts": ["gone"]})
    (root / "progress-pretrain-33333333").symlink_to(own)
    other = root / "pretrain-base-seed0-22222222"  # a copy under another name
    other.mkdir()
    config = (root / made.names["base"] / "config.json").read_bytes()
    (other / "config.json").write_bytes(config)
    assert scan_artifacts(made.root).keys() == before
    known = {one.folder.name for one in cleaning.plan_cleaning(made.root, ()).removals}
    assert known == before


def test_clean_keeps_what_an_experiment_reaches(made, capsys):
    root, names = Path(made.root), made.names
    (root / "notes.txt").write_text("mine")
    (root / "report-two").mkdir()
    progress = root / "progress-distill-00000000"
    progress.mkdir()
    write_json(epath.Path(progress) / "artifacts.json", {"artifacts": [names["0.8"]]})
    status, told = _say(capsys, "clean", root / "experiment-one.json")
    assert status == 2 and "give --yes" in told and len(_there(made)) == 13
    for part in ("1 × distill", "1 × noise", "1 × relearn", "1 × saves"):
        assert part in told
    assert "pretrain" not in told and "experiment-two.json lists 2 models" in told
    assert "experiment-one.json lists" not in told
    status, told = _say(capsys, "clean", root / "experiment-one.json", "--yes")
    kept = {names[name] for name in ("base", "gone", "noise 0.2", "0.2", "attack 0.2")}
    others = {"experiment-one.json", "experiment-two.json", "report-two", "notes.txt"}
    assert status == 0 and _there(made) == kept | others
    left = read_json(made.root / "experiment-two.json")
    assert [entry["model"] for entry in left["models"]] == ["base", "gone"]
    assert _say(capsys, "clean", root / "experiment-one.json")[1].strip() == "nothing to remove"
    status, told = _say(capsys, "clean", root / "experiment-one.json", "--workdir", root / "no")
    assert status == 2 and "there is no workdir" in told


def test_states_of_teachers_go_with_them(made, capsys):
    """Those of one that stays do not, and neither do damaged ones; unfinished ones have a name."""
    for number, (name, model) in enumerate((("base", "base"), ("attack 0.8", "0.8-by-forget"))):
        finished = made.root / f"states-x-{number:08d}"
        finished.mkdir()
        write_json(finished / "manifest.json", {"about": {"model": made.names[name][-8:]}})
        (made.root / f"states-{model}-{number:08d}" / "unfinished").mkdir(parents=True)
    (made.root / "states-x-22222222").mkdir()
    (made.root / "states-x-22222222" / "manifest.json").write_text("{")
    status, told = _say(capsys, "clean", Path(made.root) / "experiment-one.json", "--yes")
    assert status == 0 and "2 × states" in told
    left = {path.name for path in made.root.glob("states-*")}
    assert left == {"states-x-00000000", "states-base-00000000", "states-x-22222222"}


@pytest.mark.parametrize(("answer", "goes"), [("n", False), ("", False), ("y", True)])
def test_clean_asks_at_a_terminal(made, capsys, monkeypatch, answer, goes):
    terminal = io.StringIO(f"{answer}\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    status, told = _say(capsys, "clean", Path(made.root) / "experiment-one.json")
    assert status == 0 and "KiB from" in told and "[y/N]" in told
    assert (made.names["0.8"] not in _there(made)) == goes
    assert ("nothing is removed" in told) != goes


def test_ancestors_stay_even_if_the_experiment_does_not_list_them(made, capsys):
    names = made.names
    alone = made.experiment("alone", {"x": {"artifact": names["0.2"]}})
    assert _say(capsys, "clean", alone, "--yes")[0] == 0
    kept = {names[name] for name in ("base", "gone", "noise 0.2", "0.2")}
    assert kept <= _there(made) and names["attack 0.2"] not in _there(made)
    assert "experiment-two.json" in _there(made)  # with the base and the unlearned model
    left = read_json(made.root / "experiment-one.json")["models"]
    assert left[-1]["model"] == "UNDO 0.2" and left[-1]["attacks"] == []


def test_what_is_not_ours_in_an_artifact_stays_and_is_told(made, capsys):
    note = Path(made.root) / made.names["0.8"] / "notes.txt"
    note.write_text("mine")
    status, told = _say(capsys, "clean", Path(made.root) / "experiment-one.json", "--yes")
    assert status == 0 and f"{made.names['0.8']}/notes.txt" in told
    assert [path.name for path in note.parent.iterdir()] == ["notes.txt"]


def test_parameters_alone_leave_logs_models_and_what_is_still_needed(made, capsys):
    root, names = Path(made.root), made.names
    waiting = made.add("relearn", "more", names["0.8"], finished=False)
    steps = root / names["attack 0.2"] / "steps" / "10"
    steps.mkdir(parents=True)
    logs = {p: p.read_bytes() for p in root.glob("*/*") if p.is_file()}
    status, told = _say(capsys, "clean", root / "experiment-one.json", "--parameters-only", "--yes")
    assert status == 0 and "parameters of 2 × noise" in told
    with_parameters = {path.parent.name for path in root.glob("*/params")}
    assert with_parameters == {names[n] for n in ("base", "gone", "0.2", "0.8")} | {waiting}
    assert {p: p.read_bytes() for p in root.glob("*/*") if p.is_file()} == logs and steps.exists()


def test_clean_is_refused_while_a_run_writes(made, capsys):
    descriptor = os.open(made.root, os.O_RDONLY)
    code = "import fcntl, time; fcntl.flock({0}, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    held = subprocess.Popen([sys.executable, "-c", code.format(descriptor)],
                            pass_fds=(descriptor,), stdout=subprocess.PIPE)  # fmt: skip
    os.close(descriptor)
    try:
        assert held.stdout is not None and held.stdout.readline()
        before = _there(made)
        status, told = _say(capsys, "clean", Path(made.root) / "experiment-one.json", "--yes")
        assert status == 2 and "another process writes" in told and _there(made) == before
        assert "a run writes here now" in _say(capsys, "list", made.root)[1]
    finally:
        held.kill()
        held.wait()


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("parameters_only", [False, True])
def test_a_kill_at_any_point_leaves_what_was_kept_and_no_half_models(
    tmp_path, monkeypatch, parameters_only
):
    """Before each removal of a file or folder, rename or write: as if killed there."""
    point = 0
    while True:
        made = Made(tmp_path / str(point))
        base = made.add("pretrain", "base")
        student = made.add("distill", "one", base)
        attack = made.add("relearn", "one-by-forget", student)
        kept = made.experiment("kept", {"base": {"artifact": base}})
        made.experiment("other", {"one": {"artifact": student, "attacks": [attack]}})
        how = cleaning.plan_params_cleaning if parameters_only else cleaning.plan_cleaning
        found = how(made.root, {base})
        left = point

        def count(real, *given, **more):
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            return real(*given, **more)

        killed = False
        with monkeypatch.context() as patch:
            for module, name in ((os, "unlink"), (os, "rmdir"), (os, "rename"), (os, "replace")):
                patch.setattr(module, name, functools.partial(count, getattr(module, name)))
            try:
                list(cleaning.apply_cleaning(found))
            except _Killed:
                killed = True
        there = scan_artifacts(made.root)
        assert there[base].finished and (made.root / base / "params" / "data").exists()
        for one in scan_experiments(made.root):
            assert not one.wrong
        for name in (student, attack):
            folder = made.root / name
            if (folder / "params").exists() and (folder / "summary.json").exists():
                assert (folder / "params" / "data").exists()
            if (folder / "summary.json").exists() and not parameters_only:
                assert (folder / "params").exists()
            assert name in there or not folder.exists()  # so that it can be cleaned again
        list(cleaning.apply_cleaning(how(made.root, {base})))
        assert not list(made.root.glob("*/params.tmp"))
        left_over = {path.name for path in made.root.iterdir()} - {kept.name, base}
        assert left_over <= (
            {student, attack, "experiment-other.json"} if parameters_only else set()
        )
        if not killed:
            break
        point += 1
    assert point > 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "no"], "there is no workdir no"),
        (["list", "."], "holds no run"),
        (["clean"], "which experiments stay?"),
        (["clean", "no.py"], "there is no experiment no.py"),
        (["clean", "a.json"], "is not as a run writes it"),
        (["clean", "b.json"], "is damaged"),
        (["clean", "a.json", "--workdir", "gs://x"], "a bucket has no locks"),
        (["compare", "no", "."], "there is no no"),
        (["compare", ".", "."], "holds no experiment"),
        (["compare", ".:oracle", "."], "holds no experiment with a model 'oracle'"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text("{}")
    Path("b.json").write_text("{")
    status, told = _say(capsys, *words)
    assert status == 2 and said in told and len(told.strip().splitlines()) == 1


def _known(root, name="known", shift=0.0, seeds=(0, 1, 2)):
    """Forget scores at the last step: unlearn-only 1, the oracle 0.2, UNDO as below."""
    work = Workdir(root, name=name)
    for seed in seeds:
        work.add("pretrain", "base", seed, scores=(0.99, 0.98))
        work.add("pretrain", "oracle", seed, steps=200, flops=4000, scores=(0.99, 0.01))
        work.add("unlearn", "unlearn-only", seed)
        work.attack("oracle", seed, curves={("forget", 1e-3): (0.0, 0.1, 0.2, 0.2)})
        work.attack("unlearn-only", seed, curves={("forget", 1e-3): (0.1, 0.8, 1.0, 1.0)})
        work.add("distill", "UNDO", seed, alpha=0.5, steps=100, flops=2000, scores=(0.9, 0.1))
        end = 0.4 + 0.1 * seed + shift
        work.attack("UNDO", seed, alpha=0.5, curves={("forget", 1e-3): (0.0, 0.1, 0.2, end)})
    return work


def _row(told, name):
    return next(" ".join(line.split()) for line in told.splitlines() if line.startswith(name))


def test_compare_pairs_two_models_seed_by_seed(tmp_path, capsys):
    _known(tmp_path)
    status, told = _say(capsys, "compare", f"{tmp_path}:UNDO", f"{tmp_path}:oracle")
    assert status == 0
    # UNDO 0.4, 0.5, 0.6, the oracle 0.2: differences −0.2, −0.3, −0.4. Student's t of 2 degrees of
    # freedom at 97.5 % is 4.3027, so the interval is −0.3 ± 4.3027 × 0.1 / √3 = −0.3 ± 0.2484
    assert _row(told, "forget at step 30") == "forget at step 30 0.50 0.20 -0.30 3"
    assert "[0.40, 0.60]" in told and "[-0.55, -0.05]" in told
    # robustness (1 − P) / 0.8: 75, 62.5, 50 against 100
    assert _row(told, "robustness %") == "robustness % 62 100 +38 3"
    assert "accuracy on × and ÷" in " ".join(told.split())


def test_compare_takes_an_artifact_as_one_seed(tmp_path, capsys):
    _known(tmp_path)
    folder = next(path for path in tmp_path.glob("distill-UNDO-seed1-*"))
    status, told = _say(capsys, "compare", folder, f"{tmp_path}:oracle")
    assert status == 0 and "A: UNDO, seed 1" in " ".join(told.split())
    assert _row(told, "forget at step 30") == "forget at step 30 0.50 0.20 -0.30 1"
    attack = next(path for path in tmp_path.glob("relearn-UNDO-seed1-*"))
    status, told = _say(capsys, "compare", attack, f"{tmp_path}:oracle")
    assert status == 2 and "is no model of a report" in told
    path = tmp_path / "experiment-known.json"
    path.write_text("{")
    for side in (folder, f"{tmp_path}:UNDO", tmp_path):
        status, told = _say(capsys, "compare", side, side)
        assert status == 2 and f"{path} is damaged" in told


def test_compare_pairs_two_experiments_model_by_model(tmp_path, capsys):
    one = _known(tmp_path)
    _known(tmp_path / "other", shift=0.1, seeds=(1, 2, 3)).add("distill", "new", 1)
    status, told = _say(capsys, "compare", one.file, tmp_path / "other")
    assert status == 0
    # seeds 1 and 2 are in both, where B is higher by 0.1
    assert _row(told, "UNDO: forget at step") == "UNDO: forget at step 30 0.50 0.70 +0.10 2"
    assert _row(told, "UNDO: retain at step") == "UNDO: retain at step 30 0.90 0.90 +0.00 2"
    assert "only in B: new" in told and "attacked differently" not in told
    status, told = _say(capsys, "compare", one.file, f"{tmp_path / 'other'}:UNDO")
    assert status == 2 and "one is a model, the other an experiment" in told


def test_compare_says_which_models_were_attacked_differently(tmp_path, capsys):
    one, other = _known(tmp_path), _known(tmp_path / "other")
    for model in ("UNDO", "oracle"):
        other.attack(model, 1, curves={("mixed", 1e-3): (0.0, 0.1, 0.2, 0.3)})
    told = _say(capsys, "compare", one.file, tmp_path / "other")[1]
    different = "attacked differently, so the strongest attacks are not alike: by forget in A, by"
    assert f"oracle, UNDO: {different} forget, mixed in B" in told
    assert "unlearn-only:" in told and f"unlearn-only: {different}" not in told
    told = _say(capsys, "compare", f"{tmp_path}:UNDO", f"{tmp_path / 'other'}:oracle")[1]
    assert f"\n{different} forget, mixed in B" in told
    folder = next((tmp_path / "other").glob("distill-UNDO-seed2-*"))  # of another seed
    assert "attacked differently" not in _say(capsys, "compare", folder, f"{tmp_path}:UNDO")[1]


SMALL = (
    "--seeds 0 --distill.no-stop-early --relearn.learning-rates 0.01 --setting.problems 200 "
    "--setting.questions 2 --setting.validation-rows 1 --setting.row-length 12 "
    + " ".join(
        f"--{stage}.training.steps 4 --{stage}.training.eval-every 2 "
        f"--{stage}.training.batch-size 4"
        for stage in ("pretrain", "unlearn", "distill", "relearn")
    )
).split()


@pytest.mark.slow
def test_a_run_after_clean_makes_again_only_what_it_needs(tmp_path, capsys):
    file = Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py"
    root, listed = tmp_path / "run", tmp_path / "run" / "experiment-quickstart.json"

    def run(*more):
        words = ("run", file, "--workdir", root, *SMALL, *more)
        status, told = _say(capsys, *words)
        assert status == 0, told
        return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("*/summary.json")}

    def digest(folder):
        """Of its parameters, as it is stored with them."""
        text = (folder / "params" / "_CHECKPOINT_METADATA").read_text()
        return json.loads(text)["custom_metadata"]["digest"]

    run("--noise.alphas", "0.2")
    both = run("--noise.alphas", "0.8")
    entries = read_json(epath.Path(listed))["models"]
    assert {e["model"] for e in entries if e.get("earlier")} == {"UNDO α=0.2"}
    assert len(read_json(epath.Path(listed))["runs"]) == 2
    page = (root / "report-quickstart" / "index.html").read_text()
    assert "Of an earlier command under this name, not of the last one: UNDO α=0.2." in page
    noises = list(root.glob("noise-*"))
    before = {folder.name: digest(folder) for folder in noises}
    assert len(noises) == 3 and all(before.values())
    assert _say(capsys, "clean", listed, "--parameters-only", "--yes")[0] == 0
    assert not list(root.glob("noise-*/params")) and not list(root.glob("relearn-*/params"))
    assert _say(capsys, "report", root)[0] == 0
    assert run("--noise.alphas", "0.8") == both  # all is finished
    longer = run("--noise.alphas", "0.8", "--distill.training.steps", "6")
    again = {name for name in both if longer[name] != both[name]}
    assert again == {f.name for f in noises if "0.2" not in f.name}
    assert all(digest(root / name) == before[name] for name in again)
    status, told = _say(capsys, "clean", listed, "--yes")
    assert status == 0 and "2 × distill" in told  # of the shorter distillation at 0.8, and fresh
    assert _say(capsys, "report", root)[0] == 0
    status, told = _say(capsys, "clean", file, "--workdir", root, "--yes")  # other steps: all goes
    assert status == 0 and "experiment-quickstart.json is removed" in told
    assert [path.name for path in root.iterdir()] == ["report-quickstart"]


def test_report_goes_on_after_a_damaged_file(tmp_path, capsys, monkeypatch):
    _known(tmp_path)
    (tmp_path / "experiment-bad.json").write_text("{")  # the first one
    monkeypatch.setattr(
        reporting, "write", lambda *a: reporting.analyse(reporting.read_logs(*a[:2]))
    )
    status, told = _say(capsys, "report", tmp_path)
    assert status == 2 and "experiment-bad.json is damaged" in told
    assert "unlearn-only" in told and f"report: {tmp_path}" in told
