"""SIGTERM at random moments: `python benchmarks/preemption.py [MOMENTS]`.

A small run is stopped and started again at its stopping point until it has been stopped that often,
then runs to its end. Each start must go on from the very step the stop before had saved, and the
end must be, bit for bit, that of a run that nothing stopped.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "quickstart.py"
FLAGS = (
    "--setting.problems 200 --setting.validation-rows 1 --setting.questions 2 --seeds 0 "
    "--pretrain.training.steps 300 --unlearn.training.steps 200 --distill.training.steps 300 "
    "--relearn.training.steps 200 --unlearn.training.eval-every 10 --noise.alphas 0.5 "
    "--relearn.learning-rates 0.001 0.01 --distill.no-stop-early --saving.minutes 0.02"
).split()


def main() -> None:
    """Stop, check and compare."""
    moments = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder, stopped, saved = Path(name), 0, None
        run(folder / "quiet", folder)
        while stopped < moments:
            said, status = run(folder / "stopped", folder, chance.uniform(2, 14))
            found = re.search(r"goes on from step (\d+)", said)
            if saved is not None and "SIGTERM" in said:
                assert found and int(found[1]) >= saved, f"saved {saved}, but: {said}"
            if not status:  # it came to its end before the signal
                check(folder)
                subprocess.run(["rm", "-r", folder / "stopped"], check=True)
                saved = None
                continue
            stopped += 1
            assert status in (75, -signal.SIGTERM) and "Traceback" not in said, said
            where = re.findall(r"SIGTERM(?:, (.*?))?;", said)
            step = re.search(r"saved at step (\d+)", said)
            saved = int(step[1]) if step else None
            print(
                f"{stopped:3} status {status}: {where[0] if where else 'while it started'}",
                flush=True,
            )
        said, status = run(folder / "stopped", folder)
        assert not status, said
        check(folder)
        print(f"{moments} of {moments}: each went on from its save; artifacts equal bit for bit")


def run(workdir: Path, folder: Path, seconds: float | None = None) -> tuple[str, int]:
    """What a run says and its exit status; after `seconds` it gets SIGTERM."""
    environment = {**os.environ, "UNDO_JAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "undo_jax.cli", "run", str(EXPERIMENT), "--workdir", workdir]
    with subprocess.Popen(
        [*command, *FLAGS], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    return " ".join(said.split()), process.returncode


def check(folder: Path) -> None:
    """The stopped run has the quiet run's artifacts and no other folder."""
    ours, theirs = folder / "stopped", folder / "quiet"
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
