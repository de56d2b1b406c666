"""What documents show: fenced blocks, and the commands in those for a shell, as bash reads them.

Bash runs the blocks of a document one after the other, as a reader would type them. Instead of
programs it finds recorders of these names, so that quotes, functions, loops and patterns are bash's
own, and nothing is started.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import undo_jax

ROOT = Path(undo_jax.__file__).parent.parent
PROGRAMS = (
    "undo-jax", "make", "pip", "python", "python3", "hf", "gcloud", "xpk", "docker", "kubectl",
    "tensorboard", "xprof", "sleep",
)  # fmt: skip
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A recorder also runs what it is given for another machine (--command), and gcloud tells of a slice
# whose states are the lines of the file `states`, one at each question; then there is a report.
RECORDER = """#!/bin/bash
printf '%s\\0' "$#" "$PWD" "$0" "$@" >> "$CALLS"
for word; do [ "$before" = --command ] && /bin/bash -c "$word"; before=$word; done
case "${0##*/} $*" in
    "gcloud storage ls"*) [ ! -s "$STATES" ] ;;
    gcloud*" describe "*) mapfile -t all < "$STATES"
        printf '%s\\n' "${all[0]}"; : > "$STATES"
        for ((i = 1; i < ${#all[@]}; i++)); do printf '%s\\n' "${all[i]}" >> "$STATES"; done ;;
esac
"""


@dataclass(frozen=True)
class Call:
    """A command: its program, its words, and the folder that it was given in."""

    program: str
    words: tuple[str, ...]
    folder: str

    def __str__(self):
        return " ".join((self.program, *self.words))


def blocks(document: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages; the language is what the fence's first line says."""
    return [text for name, text in FENCE.findall(document.read_text()) if name in languages]


def typed(
    shell: Sequence[str], folder: Path, place: Path, states: Sequence[str] = ()
) -> list[Call]:
    """The commands of blocks for a shell, given in `folder`; recorders are written into `place`.

    Raises ValueError where bash finds a mistake, or a program that has no recorder.
    """
    place.mkdir()
    for name in PROGRAMS:
        _record(place / name)
    calls, left = place / "calls", place / "states"
    left.write_text("".join(f"{state}\n" for state in states))
    done = subprocess.run(
        ["/bin/bash", "-c", "\n".join(shell)],
        cwd=folder,
        env={"PATH": str(place), "CALLS": str(calls), "STATES": str(left), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.stderr or done.returncode:
        raise ValueError(f"status {done.returncode}: {done.stderr}")
    words, found = iter(calls.read_text().split("\0")[:-1]) if calls.exists() else iter(()), []
    for count in words:
        where, program, *given = (next(words) for _ in range(int(count) + 2))
        found.append(Call(os.path.basename(program), tuple(given), where))
    return found


def job_of(manifest: Path) -> Any:
    """The only job's specification in the manifest of a JobSet."""
    (job,) = yaml.safe_load(manifest.read_text())["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def lay_out(folder: Path) -> None:
    """What a reader has beside the documents: the experiments, and environments with programs."""
    os.symlink(ROOT / "experiments", folder / "experiments")
    for name in ("my_experiment.py", "undo_jax/my_experiment.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        os.symlink(ROOT / "experiments" / "quickstart.py", folder / name)
    environment = folder / "undo_jax" / ".venv" / "bin"  # of a host
    environment.mkdir(parents=True)
    (folder / "benchmarks").mkdir()
    for place in (*(environment / name for name in PROGRAMS[:4]), folder / "benchmarks/gpu.sh"):
        _record(place)


def _record(program: Path) -> None:
    program.write_text(RECORDER)
    program.chmod(0o755)
