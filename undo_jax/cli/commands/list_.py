"""`undo-jax list WORKDIR`."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from etils import epath

from undo_jax.cli.flags import Workdir
from undo_jax.logs.log import results
from undo_jax.runtime import workdir_lock
from undo_jax.runtime.atomic_files import absolute_path
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.workdir import inventory
from undo_jax.workdir.inventory import StoredArtifact, StoredExperiment

ORDER = 60
NONE = "–"
HEADER = ("finished", "size", "age")


def list_(workdir: Workdir) -> None:
    """List what is in a workdir: experiments, their models, sizes, ages, and what is unfinished.

    Args:
        workdir: the folder of their runs; may be gs://.
    """
    artifacts = inventory.scan_artifacts(workdir)
    experiments = inventory.scan_experiments(workdir, artifacts)
    if not artifacts and not experiments:
        raise FileNotFoundError(f"{workdir} holds no run: give the workdir of one")
    now = time.time()
    lines = [line for listed in experiments for line in experiment_lines(listed, now)]
    owned = {name for listed in experiments for name in listed.owners}
    orphans = [artifact for name, artifact in artifacts.items() if name not in owned]
    if orphans:
        rows = [_row(stage, "", group, len(group), now) for stage, group in _by_stage(orphans)]
        lines += ["of no experiment that is listed:", *_table(["stage", "", *HEADER], rows)]
    root = absolute_path(epath.Path(workdir))
    total, running = inventory.disk_usage(root)[0], workdir_lock.is_locked(root)
    lines.append(
        f"{len(artifacts)} artifacts; {format_bytes(total)} in all, with saves and reports"
        + ("; a run writes here now" if running else "")
    )
    results.print(*lines, sep="\n", soft_wrap=True, highlight=False)


def experiment_lines(listed: StoredExperiment, now: float) -> list[str]:
    """Returns an experiment's line, one for each of its models, and an empty one."""
    if listed.wrong:
        return [f"{listed.name}: {listed.wrong}", ""]
    unfinished = len(listed.missing)
    state = f"{unfinished} of {len(listed.owners)} unfinished" if unfinished else "finished"
    earlier = {entry["model"] for entry in listed.content["models"] if entry.get("earlier")}
    rows = []
    for model, count in Counter(listed.owners.values()).items():
        group = [a for folder, a in listed.artifacts.items() if listed.owners[folder] == model]
        stages = " ".join(f"{stage}×{len(of_stage)}" for stage, of_stage in _by_stage(group))
        label = f"{model} (earlier)" if model in earlier else model
        rows.append(_row(label, stages or NONE, group, count, now))
    size = format_bytes(sum(artifact.bytes for artifact in listed.artifacts.values()))
    return [f"{listed.name}: {state}, {size}", *_table(["model", "stages", *HEADER], rows), ""]


def _by_stage(artifacts: Iterable[StoredArtifact]) -> list[tuple[str, list[StoredArtifact]]]:
    stages: dict[str, list[StoredArtifact]] = {}
    for artifact in artifacts:
        stages.setdefault(artifact.stage, []).append(artifact)
    return list(stages.items())


def _row(
    label: str, stages: str, artifacts: Sequence[StoredArtifact], count: int, now: float
) -> list[str]:
    """Returns cells: what artifacts are, the finished of `count`, size, the newest's age."""
    finished = sum(artifact.finished for artifact in artifacts)
    newest = max((artifact.changed for artifact in artifacts), default=0)
    size = format_bytes(sum(artifact.bytes for artifact in artifacts))
    age = duration(now - newest) if newest else NONE
    return [label, stages, f"{finished}/{count}", size, age]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Returns lines: texts to the left, numbers to the right, no columns without width."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [f"{text:<{width}}" for text, width in zip(row[:2], widths, strict=False) if width]
        cells += [f"{text:>{width}}" for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(["", *cells]).rstrip())
    return lines


def duration(seconds: float) -> str:
    """Returns an age in the largest unit of which it has two, e.g. 3 d, 40 h, 12 min."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
