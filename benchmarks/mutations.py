"""Do the tests notice a careless change? `python benchmarks/mutations.py FOLDER [--count 120]`.

Changes ("mutants") are drawn with a seed from the modules below, of each in proportion to its
length: a line, then a kind of change to it, then a change. For each the tests that own the module
run, up to the first that fails; those that run much longer than they do otherwise have failed too.

The changes are mutmut's (numbers, strings, operators, ...) and some that it lacks: a statement or a
keyword argument left out, a condition turned round, an argument that is its neighbour's. Not made
are those that any test notices, such as None in the place of a value, and those that change
nothing: annotations, docstrings, `strict` of zip. Mutmut's own runner changes only functions
without decorators, and gives them other names: modules here have constants, contexts and
properties, and the names of functions are part of fingerprints.

FOLDER keeps what was found: the same command goes on, another --count adds. `--again` tries those
that survived once more, against the tests as they are now. It needs `pip install mutmut` and a
system that can fork. One process at a time; several --lanes if there are cores for them.
"""

import argparse
import ast
import difflib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

ROOT = Path(__file__).resolve().parent.parent
# Modules and the tests that own them, in this order; "slow:" are those marked slow. A later row
# replaces an earlier one that names the same module.
OWNERS = {
    "undo_jax/training/*.py": ("tests/test_population.py", "tests/test_resume.py"),
    "undo_jax/training/optim.py": ("tests/test_optim.py",),
    "undo_jax/report/*.py": ("tests/report",),
    "undo_jax/report/figures/*.py": ("tests/report",),
    "undo_jax/noises/*.py": ("tests/test_noises.py",),
    "undo_jax/training/train_step.py": ("tests/test_train.py",),
    "undo_jax/settings/*.py": ("tests/settings", "tests/test_defaults.py"),
    "undo_jax/losses.py": (
        "tests/test_losses.py", "tests/test_sequence_methods.py", "tests/test_defaults.py",
    ),
    "undo_jax/methods/*.py": (
        "tests/test_methods_contract.py", "tests/test_sequence_methods.py",
        "tests/test_plain_methods.py",
    ),
    "undo_jax/fit/chips.py": ("tests/fit/test_fit.py",),
    "undo_jax/fit/flags.py": ("tests/fit/test_fit.py",),
    "undo_jax/fit/roofline.py": ("tests/fit/test_fit.py",),
    "undo_jax/fit/search.py": ("tests/fit/test_fit.py",),
    "undo_jax/fit/loops.py": ("tests/fit/test_loops.py",),
    "undo_jax/fit/facts.py": ("tests/fit/test_fit.py",),
    "undo_jax/fit/advice.py": ("tests/fit/test_advice.py", "tests/fit/test_fit.py"),
    "undo_jax/recipes/*.py": (
        "tests/test_stages.py", "tests/test_students.py", "tests/test_graph.py",
        "slow:tests/test_students.py", "slow:tests/test_cli.py",
    ),
    "undo_jax/attacks/*.py": (
        "tests/attacks", "tests/test_stages.py", "slow:tests/attacks",
    ),
    "undo_jax/graph/model_graph.py": (
        "tests/test_graph.py", "tests/test_stages.py", "tests/test_numbers.py",
    ),
    "undo_jax/runner/train_group.py": (
        "tests/test_stages.py", "tests/test_numbers.py", "slow:tests/test_numbers.py",
        "slow:tests/attacks",
    ),
    "undo_jax/runner/save_trained.py": ("tests/test_stages.py", "slow:tests/attacks"),
    "undo_jax/runner/run_context.py": (
        "tests/test_stages.py", "tests/test_numbers.py", "slow:tests/test_numbers.py",
    ),
    "undo_jax/runner/make.py": (
        "tests/test_stages.py", "tests/test_graph.py", "tests/test_resume.py", "tests/test_plan.py",
    ),
    "undo_jax/runner/dry_run.py": ("tests/test_plan.py",),
    "undo_jax/runner/time_estimate.py": ("tests/test_plan.py",),
    "undo_jax/evals/*.py": ("tests/evals", "tests/settings"),
    "undo_jax/store/artifacts.py": (
        "tests/test_checkpoint.py", "tests/test_stages.py", "tests/test_resume.py",
    ),
    "undo_jax/store/param_checkpoint.py": ("tests/test_checkpoint.py", "tests/test_stages.py"),
    "undo_jax/runtime/workdir_lock.py": ("tests/test_checkpoint.py", "tests/test_resume.py"),
    "undo_jax/runtime/preemption.py": ("tests/test_resume.py",),
    "undo_jax/store/train_checkpoints.py": ("tests/test_defaults.py", "tests/test_resume.py"),
    "undo_jax/store/snapshots.py": ("slow:tests/attacks",),
    "undo_jax/fit/nvidia.py": ("tests/fit/test_fit.py", "tests/fit/test_gpu.py"),
    "undo_jax/fit/hlo.py": ("tests/fit/test_hlo.py", "tests/fit/test_compile.py"),
    "undo_jax/fit/costs.py": ("tests/fit/test_hlo.py", "tests/fit/test_compile.py"),
    "undo_jax/fit/products.py": ("tests/fit/test_hlo.py", "tests/fit/test_compile.py"),
    "undo_jax/fit/step.py": (
        "tests/fit/test_fit.py", "tests/fit/test_compile.py", "tests/fit/test_gpu.py",
    ),
}  # fmt: skip
WARM = ("jax", "flax.nnx", "optax", "orbax.checkpoint", "grain", "chex", "pytest", "rich", "tyro",
        "jax.experimental.pallas.triton", "jax.experimental.pallas.tpu")  # fmt: skip
PATIENCE = 5, 60.0  # times as long as without a change, and seconds, before tests have failed
BROKEN = 70  # exit status of a child that could not run pytest
KILLED, TOO_LONG, SURVIVED = "killed", "too long", "survived"


# ---- changes ----


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    path: str
    line: int
    kind: str
    diff: str
    code: str

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.path}\n{self.code}".encode()).hexdigest()[:12]


def leave_out(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """A statement that is an expression, such as a call."""
    if not isinstance(node.value, cst.SimpleString | cst.Yield | cst.Ellipsis):
        yield cst.Pass()


def turn_round(node: cst.If | cst.While | cst.IfExp | cst.Assert) -> Iterator[cst.CSTNode]:
    """A condition."""
    inside = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inside))


def repeat_neighbour(node: cst.Call) -> Iterator[cst.CSTNode]:
    """f(a, b) becomes f(b, b) and f(a, a)."""
    for i, (left, right) in enumerate(zip(node.args, node.args[1:], strict=False)):
        values = left.value, right.value
        if left.star or right.star or values[0].deep_equals(values[1]):
            continue
        if not all(isinstance(value, cst.Name | cst.Attribute | cst.Subscript) for value in values):
            continue
        for place, value in ((i, right.value), (i + 1, left.value)):
            args = list(node.args)
            args[place] = args[place].with_changes(value=value)
            yield node.with_changes(args=args)


def drop_keyword(node: cst.Call) -> Iterator[cst.CSTNode]:
    """An argument that may have a default."""
    for i, arg in enumerate(node.args):
        if arg.keyword and arg.keyword.value != "strict":
            yield node.with_changes(args=[*node.args[:i], *node.args[i + 1 :]])


NOTICED = (mutators.operator_assignment, mutators.operator_lambda, mutators.operator_arg_removal)
OPERATORS: Sequence[tuple[Any, Callable]] = (
    *(pair for pair in mutators.mutation_operators if pair[1] not in NOTICED),
    (cst.Expr, leave_out),
    ((cst.If, cst.While, cst.IfExp), turn_round),
    (cst.Call, repeat_neighbour),
    (cst.Call, drop_keyword),
)
SHAPES = ("Array", "Bool", "Float", "Int", "Literal")  # whose brackets hold annotations


class Collector(cst.CSTVisitor):
    """Every change to a module, by line and kind: (node, its replacement)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self):
        super().__init__()
        self.changes: dict[int, dict[str, list]] = defaultdict(lambda: defaultdict(list))

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
            return False
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):
            return False  # a docstring
        if isinstance(node, cst.If) and node.test.deep_equals(cst.Name("TYPE_CHECKING")):
            return False
        if isinstance(node, cst.Subscript) and getattr(node.value, "value", "") in SHAPES:
            return False
        if isinstance(node, cst.Arg) and node.keyword and node.keyword.value == "strict":
            return False
        place = self.get_metadata(PositionProvider, node, None)
        if place is not None:
            for kinds, operator in OPERATORS:
                if isinstance(node, kinds):
                    changes = [(node, changed) for changed in operator(node)]
                    if changes:
                        self.changes[place.start.line][operator.__name__] += changes
        return True


def draw(path: str, count: int, seed: int) -> list[Mutant]:
    """So many changes to a module, fewer where it has no more; more of a seed begin as fewer do."""
    source = (ROOT / path).read_text()
    module = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    collector, chance = Collector(), random.Random(f"{seed} {path}")
    module.visit(collector)
    left, mutants = collector.changes, {}
    while left and len(mutants) < count:
        line = chance.choice(sorted(left))
        kind = chance.choice(sorted(left[line]))
        node, changed = left[line][kind].pop(chance.randrange(len(left[line][kind])))
        if not left[line][kind]:
            del left[line][kind]
        if not left[line]:
            del left[line]
        code = module.module.deep_replace(node, changed).code
        if _same(code, source):
            continue
        mutant = Mutant(path, line, kind.removeprefix("operator_"), _diff(path, source, code), code)
        mutants.setdefault(mutant.name, mutant)
    return list(mutants.values())


def _same(code: str, source: str) -> bool:
    """Whether it is no change at all, or no Python."""
    try:
        return ast.dump(ast.parse(code)) == ast.dump(ast.parse(source))
    except SyntaxError:
        return True


def _diff(path: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), path, path, "", "", 0, "")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def sample(count: int, seed: int) -> list[Mutant]:
    """From every module in proportion to its lines, two at least where it has as many."""
    sizes = {path: _size(ROOT / path) for path in modules()}
    whole = sum(sizes.values())
    shares = {path: max(2, round(count * size / whole)) for path, size in sizes.items() if size}
    mutants = [m for path, share in shares.items() for m in draw(path, share, seed)]
    random.Random(seed).shuffle(mutants)
    return mutants


def modules() -> dict[str, tuple[str, ...]]:
    """Every module and the tests that own it."""
    return {
        str(path.relative_to(ROOT)): tests
        for pattern, tests in OWNERS.items()
        for path in sorted(ROOT.glob(pattern))
    }


@cache
def _size(path: Path) -> int:
    """Lines with a statement or an expression, without docstrings."""
    tree = ast.parse(path.read_text())
    docs = (ast.Expr, ast.Constant, ast.Import, ast.ImportFrom)
    return len(
        {n.lineno for n in ast.walk(tree) if hasattr(n, "lineno") and not isinstance(n, docs)}
    )


# ---- tests ----


class Lane:
    """A copy of the repository in which one change at a time is tried."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.mutant: Mutant | None = None

    def start(self, mutant: Mutant | None, tests: str, limit: float) -> None:
        self.mutant, self.began, self.limit = mutant, time.monotonic(), limit
        if mutant:
            (self.folder / mutant.path).write_text(mutant.code)
        self.child = os.fork()
        if not self.child:
            self._test(tests)

    def _test(self, tests: str) -> None:
        """In a process of its own, which has jax imported already and this package not yet."""
        os.setsid()
        os.chdir(self.folder)
        output = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(self.folder))
        os.environ["PYTHONPATH"] = str(self.folder)
        sys.argv = ["pytest"]
        logging.root.handlers.clear()  # those of libraries would write beside pytest's
        mark, _, path = tests.rpartition(":")
        flags = ["-x", "-q", "--tb=no", "-o", "addopts=--import-mode=importlib"]
        run_flags = [
            "-m",
            mark or "not slow",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(self.folder / "temporary"),
        ]
        status = BROKEN
        try:
            status = int(pytest.main([*flags, *run_flags, path]))
        except ExceptionGroup:  # unraisable exceptions, which pytest raises as it ends
            traceback.print_exc()
            status = int(pytest.ExitCode.TESTS_FAILED)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def ended(self) -> tuple[str, float, str] | None:
        """What came of it, after how long, and by which test; None while it runs."""
        ended_pid, status = os.waitpid(self.child, os.WNOHANG)
        seconds = time.monotonic() - self.began
        late = seconds > self.limit
        if not ended_pid and not late:
            return None
        self._end(bool(ended_pid))
        if self.mutant:
            shutil.copy(ROOT / self.mutant.path, self.folder / self.mutant.path)
        output_lines = (self.folder / "output.txt").read_text(errors="replace").splitlines()
        by = next((s.split()[1] for s in output_lines if s.startswith(("FAILED", "ERROR"))), "")
        if not ended_pid:
            return TOO_LONG, seconds, ""
        code = os.waitstatus_to_exitcode(status)
        if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED, BROKEN):
            sys.exit(f"no tests ran: see {self.folder / 'output.txt'}")
        return (KILLED if code else SURVIVED), seconds, by

    def _end(self, reaped: bool) -> None:
        """The whole group: tests start processes."""
        try:
            os.killpg(self.child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if not reaped:
            os.waitpid(self.child, 0)


def warm_up(folder: Path) -> None:
    """What every child inherits: modules, and where compiled programs are kept."""
    sys.dont_write_bytecode = True  # a change within a second, of the same size, would not be seen
    os.environ |= {
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for name in WARM:
        __import__(name)


def baseline(file: Path, lane: Lane, tests: str) -> float:
    """Seconds that tests take without a change, the first of all to compile their programs."""
    seconds_by_tests = json.loads(file.read_text()) if file.exists() else {}
    if tests not in seconds_by_tests:
        lane.start(None, tests, 3600)
        while not (result := lane.ended()):
            time.sleep(0.05)
        outcome, seconds_by_tests[tests], by = result
        if outcome != SURVIVED:
            sys.exit(f"{tests} fails without a change ({by}): see {lane.folder / 'output.txt'}")
        file.write_text(json.dumps(seconds_by_tests, indent=1))
        print(f"{seconds_by_tests[tests]:6.1f} s  {tests}", flush=True)
    return seconds_by_tests[tests]


# ---- the whole ----


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="modules whose paths contain one of these"
    )
    parser.add_argument("--again", action="store_true", help="those that survived, once more")
    parser.add_argument("--list", action="store_true", help="what is known, and try nothing")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results, records = folder / "results.jsonl", {}
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        records[record["name"]] = record
    drawn = [
        m for m in sample(options.count, options.seed)
        if any(part in m.path for part in options.only)
    ]  # fmt: skip
    todo = [
        m for m in drawn
        if m.name not in records or options.again and records[m.name]["outcome"] == SURVIVED
    ]  # fmt: skip
    if todo and not options.list:
        warm_up(folder)
        lanes = [Lane(folder / f"lane-{i}") for i in range(options.lanes)]
        with results.open("a") as log:
            for mutant, (outcome, seconds, by) in try_mutants(
                todo, lanes, folder / "baseline.json"
            ):
                record = {"name": mutant.name, **asdict(mutant)}
                record |= {"code": None, "outcome": outcome, "seconds": round(seconds, 1), "by": by}
                records[mutant.name] = record
                print(json.dumps(record), file=log, flush=True)
                print(
                    f"{outcome:9} {seconds:5.0f} s  {mutant.path}:{mutant.line}  {by}", flush=True
                )
    text = report([records[mutant.name] for mutant in drawn if mutant.name in records])
    (folder / "report.md").write_text(text)
    print(text)


def try_mutants(
    todo: Sequence[Mutant], lanes: Sequence[Lane], file: Path
) -> Iterator[tuple[Mutant, tuple[str, float, str]]]:
    """Each mutant and what came of it, as they end; those of the same tests one after another."""
    order = list(dict.fromkeys(modules().values()))
    waiting = sorted(todo, key=lambda mutant: -order.index(modules()[mutant.path]))
    free, busy, spent = list(lanes), {}, Counter()
    while waiting or busy:
        while waiting and free:
            lane, mutant = free.pop(), waiting.pop()
            busy[lane] = begin(lane, mutant, modules()[mutant.path], file)
        time.sleep(0.05)
        for lane, (mutant, left) in list(busy.items()):
            if not (result := lane.ended()):
                continue
            outcome, seconds, by = result
            spent[mutant.name] += seconds
            if outcome == SURVIVED and left:
                busy[lane] = begin(lane, mutant, left, file)
                continue
            del busy[lane]
            free.append(lane)
            yield mutant, (outcome, spent[mutant.name], by)


def begin(
    lane: Lane, mutant: Mutant, tests: tuple[str, ...], file: Path
) -> tuple[Mutant, tuple[str, ...]]:
    """Start the first of the tests; the mutant, and the tests that are left."""
    first, *left = tests
    lane.start(mutant, first, PATIENCE[0] * baseline(file, lane, first) + PATIENCE[1])
    return mutant, tuple(left)


def report(records: Sequence[dict]) -> str:
    """Counts by module, and every change that no test noticed."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        parent = Path(record["path"]).parent
        name = record["path"] if str(parent) == "undo_jax" else f"{parent}/"
        counts[name][record["outcome"]] += 1
    lines = ["| module | mutants | killed | survived |", "| --- | ---: | ---: | ---: |"]
    for name, outcomes in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        whole, alive = sum(outcomes.values()), outcomes[SURVIVED]
        lines.append(f"| {name} | {whole} | {whole - alive} | {alive} |")
    for record in sorted(records, key=lambda record: (record["path"], record["line"])):
        if record["outcome"] == SURVIVED:
            lines.append(
                f"\n{record['name']} {record['path']} ({record['kind']})\n"
                f"```diff\n{record['diff']}\n```"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
