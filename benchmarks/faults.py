"""Faults on purpose: `python benchmarks/faults.py [KIND ...]` does to runs what disasters do.

A small run of all five stages, two seeds and several saves a stage is disturbed; the same command
then runs to its end. What it has made must be, bit for bit, what an undisturbed run makes:
parameters, scores, records, report. Commands are started as a user starts them.

kill    kill -9 at a random file operation or time, start-up included
signal  Ctrl-C or SIGTERM, likewise: status 130 or 75, and one line
flip    one bit of one file flips: whatever reads it refuses, mends or is not misled
disk    the disk is full at a share of what a run needs: status 2 and one line (needs root to mount)
two     two runs at once in one workdir, the first of which may be killed: nothing is made again
peer    one of two processes is killed in a stage: the other ends with 75 and a line that names it

A trial is a line of FOLDER/results.jsonl, and is not made again: the same command goes on.
`--report` makes a table of them. Exit status 1: something was not as it must be. Needs Linux.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from workdirs import TIMEOUT, TRAINED, Bench, Done, differences, near, parsed, reported

STAGES = ("pretrain", "unlearn", "noise", "distill", "relearn")
LISTED = "experiment-quickstart.json"
FLIPPED = ("params", "progress", "summary.json", "config.json", "metrics.jsonl", "params",
           "progress", LISTED)  # fmt: skip
BOUND = 30  # seconds within which a process notices that another one is dead


class FaultResult(NamedTuple):
    """What became of a trial."""

    survived: bool  # all commands ended as they must, and the last one well
    equal: bool  # in the end, bit for bit
    silent: bool  # what is not equal was not told
    seconds: float = 0.0  # of the command that recovered
    outcome: str = ""  # its kind
    faults: int = 1
    why: str = ""  # where something was wrong: what

    def record(self) -> dict[str, Any]:
        """Returns the fields by their keys in results.jsonl, where the outcome is called `what`."""
        fields = self._asdict()
        return {"what" if name == "outcome" else name: fields[name] for name in fields}


def recovered(
    ends: list[Done], workdir: Path, quiet: Path, why: list[str], **more: Any
) -> FaultResult:
    """The result of a trial by its last commands; `why` is what was wrong before."""
    failed = [str(done) for done in ends if done.status or "Traceback" in done.stderr]
    differing = [] if failed else differences(workdir, quiet)
    reasons = "; ".join([*why, *failed, *([f"differ: {sorted(differing)}"] if differing else [])])
    seconds, equal = max(done.seconds for done in ends), not failed and not differing
    return FaultResult(not why and not failed, equal, bool(differing), seconds, why=reasons, **more)


# Trials: each has a workdir and random numbers of its own


def kill(bench: Bench, workdir: Path, chance: random.Random, index: int) -> FaultResult:
    return strike(bench, workdir, chance, {signal.SIGKILL: -9})


def interrupt(bench: Bench, workdir: Path, chance: random.Random, index: int) -> FaultResult:
    return strike(bench, workdir, chance, {signal.SIGINT: 130, signal.SIGTERM: 75})


def strike(bench: Bench, workdir: Path, chance: random.Random, statuses: dict) -> FaultResult:
    """A signal, sometimes another one to the command that goes on, and at last the end."""
    outside, inside, seconds = bench.size
    faults, why, mark = 0, [], Path(f"{workdir}.mark")
    while not faults or chance.random() < 0.25:
        number, status = chance.choice(list(statuses.items()))
        where = chance.choice([".", f"{workdir}/", f"{workdir}/", None])
        at = chance.uniform(0, seconds) if where is None else chance.randint(
            1, outside if where == "." else inside
        )  # fmt: skip
        done = bench.run(workdir, fault=[number, where, at, str(mark)]).end()
        if not mark.exists():  # it had ended before
            if faults:
                break
            remove(workdir)
            continue
        mark.unlink()
        faults += 1
        if not (done.status == status if number == signal.SIGKILL else done.ended_with(status)):
            why.append(f"{number.name}, {at} of {where}, {done}")
    return recovered([bench.run(workdir).end()], workdir, bench.quiet, why, faults=faults)


def flip(bench: Bench, workdir: Path, chance: random.Random, index: int) -> FaultResult:
    """One bit of a workdir, finished or interrupted; then the commands that read the file.

    Each must refuse, with a line that names it, or do as if nothing were: all is compared.
    """
    kind, stage = FLIPPED[index % len(FLIPPED)], chance.choice(bench.words[1:] or TRAINED)
    shutil.copytree(bench.interrupted(stage) if kind == "progress" else bench.quiet, workdir)
    pattern = {
        "params": "*/params/**/*",
        "progress": "progress-*/**/*",
        "experiment-quickstart.json": kind,
    }
    files = [path for path in workdir.glob(pattern.get(kind, f"*/{kind}")) if path.is_file()]
    path = chance.choice(sorted(path for path in files if path.stat().st_size))
    content, parts = bytearray(path.read_bytes()), path.relative_to(workdir).parts
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    verdicts, why, seconds, alone = set(), [], 0.0, False
    for command, done, left in read_damaged(bench, workdir, kind, parts):
        named = any(parts[0] in line or kind in line for line in done.lines)
        if done.ended_with(2, parts[0]):
            verdict = "refused"
        elif done.status or "Traceback" in done.stderr:
            verdict = "failed"
        elif not left or (named and command != "run"):
            verdict = "told" if named else "harmless"
        else:
            alone = named and kind != "progress" and not other_bits(workdir, bench.quiet)
            verdict = "told" if alone else "silent"
        verdicts.add(verdict)
        why += [f"{command} {verdict}, {left or done}"] if verdict in ("failed", "silent") else []
        seconds = done.seconds
    if "refused" in verdicts:  # the remedy
        remove(workdir / parts[0])
        result = recovered([bench.run(workdir).end()], workdir, bench.quiet, [])
        alone = result.silent and kind != "progress" and not other_bits(workdir, bench.quiet)
        why, seconds = [*why, *([result.why] if result.why and not alone else [])], result.seconds
    outcome = next(w for w in ("failed", "silent", "refused", "told", "harmless") if w in verdicts)
    why = [f"{'/'.join(parts)}, bit {bit}", *why] if why else []
    survived, silent = "failed" not in verdicts, bool(why) and "failed" not in verdicts
    outcome = f"{kind}: {outcome}{', made again alone' if alone else ''}"
    return FaultResult(
        survived, not why and not alone, silent, seconds, outcome, why="; ".join(why)
    )


def other_bits(workdir: Path, quiet: Path) -> set[str]:
    """What differs by more than its last bits; the report, made of the rest, is left out."""
    return {name for name in differences(workdir, quiet, near) if not name.startswith("report")}


def read_damaged(
    bench: Bench, workdir: Path, kind: str, parts: tuple[str, ...]
) -> Iterator[tuple[str, Done, Any]]:
    """Commands that read a file, how they ended, and what of theirs is not as always.

    The last is a run, without the stages after the artifact's, so that it is read.
    """
    artifact, quiet = workdir / parts[0], bench.quiet / parts[0]
    if kind != "progress" and (workdir / "report-quickstart").exists():
        done = bench.start("report", workdir).end()
        yield "report", done, reported(workdir) != reported(bench.quiet)
    if kind in ("params", "config.json", "summary.json"):
        for command in (generate, export):
            done, output = command(bench, artifact)
            yield command.__name__, done, bool(done.status) or output != command(bench, quiet)[1]
        for later in STAGES[STAGES.index(parts[0].split("-")[0]) + 1 :]:
            for path in workdir.glob(f"{later}-*"):
                remove(path)
    done = bench.run(workdir).end()
    left = set() if done.status else differences(workdir, bench.quiet)
    yield "run", done, left - {"/".join(parts[:2])}  # what is not read may stay


def generate(bench: Bench, artifact: Path) -> tuple[Done, Any]:
    """What a model says."""
    words = "--prompt", "3+4=", "--new-tokens", "4"
    done = bench.start("generate", artifact, *words).end()
    return done, done.out


def export(bench: Bench, artifact: Path) -> tuple[Done, Any]:
    """The files that a model is exported as."""
    out = Path(f"{bench.folder / 'exported'}-{threading.get_ident()}")
    done = bench.start("export-hf", artifact, out).end()
    files = {path.name: path.read_bytes() for path in out.glob("*")}
    shutil.rmtree(out, ignore_errors=True)
    return done, files


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def disk(bench: Bench, workdir: Path, chance: random.Random, index: int) -> FaultResult:
    """A disk that is full at some share of what a run needs, and then is not."""
    pages = sum(-(-path.stat().st_size // 4096) + 1 for path in bench.quiet.rglob("*"))
    pages = max(2, int(pages * (index % 10 + chance.random()) / 10))
    with mounted(workdir, 4 * pages) as grow:
        done = bench.run(workdir / "out").end()
        why = [] if done.status == 0 or done.ended_with(2) else [f"{pages} pages, {done}"]
        grow()
        again, outcome = bench.run(workdir / "out").end(), "full" if done.status else "enough"
        return recovered([again], workdir / "out", bench.quiet, why, outcome=outcome)


@contextmanager
def mounted(folder: Path, kilobytes: int) -> Iterator[Callable[[], Any]]:
    """A small file system, and what makes it large. Raises PermissionError without root."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "none", folder]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        raise PermissionError("needs root, to mount a small disk")
    larger = ["mount", "-o", "remount,size=1g", folder]
    try:
        yield lambda: subprocess.run(larger, check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def two(bench: Bench, workdir: Path, chance: random.Random, index: int) -> FaultResult:
    """A second run comes at some time; the first may be killed at another."""
    length = bench.size[2]
    comes = chance.uniform(0, length)
    killed = comes + chance.uniform(0, length) if index % 2 else TIMEOUT
    runs, finished, lost, again = [bench.run(workdir)], {}, set(), set()
    while len(runs) < 2 or any(run.process.poll() is None for run in runs):
        passed = time.monotonic() - runs[0].began
        if len(runs) < 2 and passed > comes:
            runs.append(bench.run(workdir))
        if passed > killed and runs[0].process.poll() is None:
            runs[0].process.kill()
            runs[0].process.wait()
            notes = workdir.glob("progress-*/artifacts.json")  # these are finished together
            again = {name for path in notes for name in json.loads(path.read_text())}
        present = stamps(workdir)
        lost |= {name for name, stamp in finished.items() if present.get(name) != stamp} - again
        finished = present | finished
        time.sleep(0.005)
        assert passed < 2 * TIMEOUT, "no end"
    first, second = (run.end() for run in runs)
    why = [] if first.status in ((0, -9) if index % 2 else (0,)) else [f"first: {first}"]
    if second.status and not second.ended_with(2, "another process writes"):
        why.append(f"second: {second}")
    why += [f"was finished, and made again: {sorted(lost)}"] if lost else []
    outcome = "the second refused" if second.status else "both ended"
    outcome = "the first was killed" if first.status == -9 else outcome
    return recovered([bench.run(workdir).end()], workdir, bench.quiet, why, outcome=outcome)


def stamps(workdir: Path) -> dict[str, int]:
    """When each finished artifact was."""
    times = {}
    for path in workdir.glob("*/summary.json"):
        with suppress(FileNotFoundError):
            times[path.parent.name] = path.stat().st_mtime_ns
    return times


def peer(bench: Bench, workdir: Path, chance: random.Random, index: int) -> FaultResult:
    """One of two processes is killed in a stage, and both are started again."""
    dead, stage = index % 2, STAGES[index // 2 % len(STAGES)]
    runs = bench.pair(workdir)
    while all(run.process.poll() is None for run in runs):
        if [*workdir.glob(f"progress-{stage}-*"), *workdir.glob(f"{stage}-*")]:
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.5))
    runs[dead].process.kill()
    began = time.monotonic()
    done, took = runs[1 - dead].end(), time.monotonic() - began
    faults = int(runs[dead].end().status == -9)  # or it had ended before
    well = done.ended_with(75, f"process {dead}") and took < BOUND if faults else done.status == 0
    why = [] if well else [f"process {dead} killed, the other after {took:.0f} s: {done}"]
    ends = [run.end() for run in bench.pair(workdir)]
    result = recovered(ends, workdir, bench.quiet_pair, why, faults=faults, outcome=stage)
    return result._replace(seconds=took)


KINDS = {
    "kill": (kill, 100),
    "signal": (interrupt, 50),
    "flip": (flip, 64),
    "disk": (disk, 10),
    "two": (two, 20),
    "peer": (peer, 12),
}  # and how many


def attempt(bench: Bench, kind: str, index: int) -> FaultResult:
    """A trial; the workdir of one that was not as it must be stays."""
    workdir = bench.folder / f"{kind}-{index}"
    remove(workdir)
    result = KINDS[kind][0](bench, workdir, random.Random(f"{kind}/{index}"), index)
    if not result.why:
        remove(workdir)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Counts of every kind, and of every outcome of it."""
    rows = ["| fault | trials | faults | survived | bitwise equal | silently wrong | slowest, s |",
            "| --- " + "| ---: " * 6 + "|"]  # fmt: skip
    kinds = sorted({(r["kind"], outcome) for r in results for outcome in {"", r["what"]}})
    for kind, outcome in kinds:
        matching = [r for r in results if r["kind"] == kind and outcome in ("", r["what"])]
        counts = [len(matching), sum(r["faults"] for r in matching)]
        counts += [sum(r[key] for r in matching) for key in ("survived", "equal")]
        silent = sum(r["silent"] for r in matching)
        name = f"{kind}: {outcome}" if outcome else f"**{kind}**"
        slowest = max(r["seconds"] for r in matching)
        rows.append(f"| {name} | {' | '.join(map(str, [*counts, silent]))} | {slowest:.0f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--trials", type=int, help="of each kind, instead of as many as documented")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--minutes", type=float, default=240, help="after which no trial begins")
    parser.add_argument("--report", action="store_true", help="only the table of what there is")
    options = parser.parse_args()
    if unknown := {*options.kinds} - {*KINDS}:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(KINDS)}")
    jax.config.update("jax_platforms", "cpu")
    bench, end = Bench(options.folder.resolve()), time.monotonic() + 60 * options.minutes
    bench.folder.mkdir(parents=True, exist_ok=True)
    path, kinds = bench.folder / "results.jsonl", options.kinds or [*KINDS]
    path.touch()
    records = map(parsed, path.read_text().splitlines())
    results = [result for result in records if isinstance(result, dict)]
    finished = {(result["kind"], result["index"]) for result in results}

    def run_trial(kind: str, index: int) -> None:
        if time.monotonic() > end or (kind, index) in finished:
            return
        try:
            result = attempt(bench, kind, index)
        except PermissionError as error:
            return print(f"{kind}: {error}", flush=True)
        content = {"kind": kind, "index": index, **result.record()}
        results.append(content)
        with path.open("a") as file:
            file.write(f"\n{json.dumps(content)}")  # whatever was cut off before
        print(f"{kind} {index}: {result.why or result.outcome or 'equal'}", flush=True)

    if not options.report:
        todo = [(k, index) for k in kinds for index in range(options.trials or KINDS[k][1])]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda trial: run_trial(*trial), todo))
    print(table([result for result in results if result["kind"] in kinds]))
    sys.exit(any(result["why"] for result in results if result["kind"] in kinds))


if __name__ == "__main__":
    main()
