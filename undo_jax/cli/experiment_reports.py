"""Writes the files of reports for commands, each of which appears whole."""

from collections.abc import Mapping

import jax
from etils import epath

from undo_jax import report as reporting
from undo_jax.logs.log import console, results
from undo_jax.retain_bound import MIN_RETAIN
from undo_jax.runtime.atomic_files import report_full_disk, write_atomically
from undo_jax.runtime.workdir_lock import lock_folder


def publish_files(folder: epath.Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, which no other process writes at the same time."""
    lock_folder(folder)
    for name, content in contents.items():
        write_atomically(folder / name, content)


def write_report(workdir: str, name: str, min_retain: float = MIN_RETAIN) -> str:
    """Write the report of an experiment. Returns why there is nothing to write, or "".

    Attacks count that leave `min_retain` of the retain score, see `report.worst_case`. Raises
    ValueError, when all else is written, for figures that cannot be drawn.
    """
    if jax.process_index() == 0:
        undrawn = None
        try:
            with report_full_disk(workdir, "writes the report"):
                written = reporting.write(workdir, name, publish_files, min_retain)
        except reporting.EmptyError as error:
            return str(error)
        except reporting.UndrawnError as error:
            written, undrawn = error.report, error
        results.print(reporting.table(written))
        page = epath.Path(workdir) / f"report-{name}" / "index.html"
        console.print(f"report: {page}", soft_wrap=True)
        if undrawn:
            raise undrawn
    return ""


def experiment_names(workdir: str) -> list[str]:
    """Returns the names of a workdir's experiments. Raises FileNotFoundError without any."""
    names = reporting.names(workdir)
    if not names:
        raise FileNotFoundError(f"{workdir} holds no finished run: give the workdir of one")
    return names
