"""`undo-jax list WORKDIR`."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

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
        rows = [(stage, group) for stage, group in _by_stage(orphans).items()]
        lines += ["of no experiment that is listed:", *_table("stage", rows, {}, now)]
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
    groups: dict[str, list[StoredArtifact]] = {model: [] for model in listed.owners.values()}
    for folder, artifact in listed.artifacts.items():
        groups[listed.owners[folder]].append(artifact)
    earlier = {entry["model"] for entry in listed.content["models"] if entry.get("earlier")}
    labels = {model: f"{model} (earlier)" if model in earlier else model for model in groups}
    counts = {labels[model]: count for model, count in Counter(listed.owners.values()).items()}
    rows = [(labels[model], group) for model, group in groups.items()]
    size = format_bytes(sum(artifact.bytes for artifact in listed.artifacts.values()))
    return [f"{listed.name}: {state}, {size}", *_table("model", rows, counts, now), ""]


def _by_stage(artifacts: Iterable[StoredArtifact]) -> dict[str, list[StoredArtifact]]:
    stages: dict[str, list[StoredArtifact]] = {}
    for artifact in artifacts:
        stages.setdefault(artifact.stage, []).append(artifact)
    return stages


def _table(
    header: str,
    rows: Sequence[tuple[str, Sequence[StoredArtifact]]],
    counts: Mapping[str, int],
    now: float,
) -> list[str]:
    """Returns lines: a row's artifacts, finished of all, by stage, their size, the newest's age.

    `counts` says how many artifacts a row should have, if not as many as there are.
    """
    cells = [(header, "stages", "finished", "size", "age")]
    for name, artifacts in rows:
        finished = sum(artifact.finished for artifact in artifacts)
        newest = max((artifact.changed for artifact in artifacts), default=0)
        stages = [f"{stage}×{len(group)}" for stage, group in _by_stage(artifacts).items()]
        cells.append(
            (
                name,
                " ".join(stages) or NONE,
                f"{finished}/{counts.get(name, len(artifacts))}",
                format_bytes(sum(artifact.bytes for artifact in artifacts)),
                duration(now - newest) if newest else NONE,
            )
        )
    if header == "stage":  # a column of stages would say the same
        cells = [(row[0], "", *row[2:]) for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [_line(row, widths) for row in cells]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Returns a row: texts to the left, numbers to the right, no columns without width."""
    sides = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
    cells = [side(text, width) for side, text, width in zip(sides, row, widths, strict=True)]
    return "  ".join(["", *(cell for cell in cells if cell)]).rstrip()


def duration(seconds: float) -> str:
    """Returns an age in the largest unit of which it has two, e.g. 3 d, 40 h, 12 min."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
