"""SIGTERM at random moments: `python benchmarks/preemption.py [MOMENTS]`.

A small run is stopped and started again, in one process, until it has been stopped that often,
then runs to its end. Each start must go on from the very step the stop before had saved, and the
end must be, bit for bit, that of a run that nothing stopped.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from arguments import positive

from undo_jax.cli import main as cli
from undo_jax.runtime.signals import PREEMPTED

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "quickstart.py"
SECONDS = 10  # at most, from a start to its signal
FLAGS = (
    "--setting.problems 200 --setting.validation-rows 1 --setting.questions 2 --seeds 0 "
    "--pretrain.training.steps 60 --unlearn.training.steps 40 --distill.training.steps 60 "
    "--relearn.training.steps 40 --unlearn.training.eval-every 10 --noise.alphas 0.5 "
    "--relearn.learning-rates 0.001 0.01 --distill.no-stop-early --saving.minutes 0.02"
).split()


def main() -> None:
    """Stop, check and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("moments", nargs="?", type=positive, default=20)
    moments, chance = parser.parse_args().moments, random.Random(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that comes after a run's end
    with tempfile.TemporaryDirectory() as name:
        os.environ["UNDO_JAX_CACHE"] = f"{name}/cache"
        quiet, stopped, saved, count = Path(name, "quiet"), Path(name, "stopped"), None, 0
        assert not run(quiet)[1]
        while count < moments:
            log, status = run(stopped, chance.uniform(0, SECONDS))
            match = re.search(r"goes on from step (\d+)", log)
            if match and saved is not None:
                assert int(match[1]) == saved, f"saved step {saved}, but: {log}"
                saved = None
            assert "Traceback" not in log and "cannot read" not in log, log
            if not status:  # it came to its end before the signal
                check(stopped, quiet)
                shutil.rmtree(stopped)
                continue
            count += 1
            (where,) = re.findall(r"stopped by SIGTERM, (.*?);", log)
            assert status == PREEMPTED, log
            step = re.search(r"saved at step (\d+)", where)
            saved = int(step[1]) if step else saved
            print(f"{count:3}: {where}", flush=True)
        assert not run(stopped)[1]
        check(stopped, quiet)
        print(f"{count} of {count}: each went on from its save; artifacts equal bit for bit")


def run(workdir: Path, seconds: float | None = None) -> tuple[str, int]:
    """What a run says and its exit status; after `seconds` this process gets SIGTERM."""
    stderr, status = io.StringIO(), 0
    timer = threading.Timer(seconds or 0, os.kill, (os.getpid(), signal.SIGTERM))
    if seconds is not None:
        timer.start()
    with contextlib.redirect_stderr(stderr):
        try:
            cli.main(["run", str(EXPERIMENT), "--workdir", str(workdir), *FLAGS])
        except SystemExit as stop:
            status = int(stop.code or 0)
    timer.cancel()
    return " ".join(stderr.getvalue().split()), status


def check(ours: Path, theirs: Path) -> None:
    """Both runs have the same artifacts and no other folder."""
    names = [{p.name for p in f.iterdir() if p.is_dir()} for f in (ours, theirs)]
    assert names[0] == names[1], names
    for path in theirs.glob("*/params"):
        pairs = zip(*(leaves(f / path.relative_to(theirs)) for f in (ours, theirs)), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in pairs), path
    for path in theirs.glob("*/metrics.jsonl"):
        assert records(path) == records(ours / path.relative_to(theirs)), path


def leaves(path: Path) -> list[np.ndarray]:
    """The arrays of a checkpoint."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place),
            checkpointer.metadata(path).item_metadata.tree,
        )
        return [np.asarray(x) for x in jax.tree.leaves(checkpointer.restore(path, like))]


def records(path: Path) -> list[dict]:
    """The lines of a log, without the speed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


if __name__ == "__main__":
    main()
