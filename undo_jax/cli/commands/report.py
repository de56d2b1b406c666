"""`undo-jax report WORKDIR`."""

from undo_jax.cli.experiment_reports import experiment_names, write_report
from undo_jax.cli.flags import MinRetain, Workdir
from undo_jax.logs.log import console
from undo_jax.report.worst_case import check_min_retain
from undo_jax.retain_bound import MIN_RETAIN

ORDER = 30


def report(workdir: Workdir, min_retain: MinRetain = MIN_RETAIN) -> None:
    """Write the reports of all experiments in a workdir again, from their logs.

    Args:
        workdir: the folder of their runs; may be gs://.
        min_retain: attacks count that leave this share of the retain score; 0: all attacks.
    """
    check_min_retain(min_retain)
    names = experiment_names(workdir)
    empty, errors = [], []
    for name in names:
        try:
            empty += filter(None, [write_report(workdir, name, min_retain)])
        except ValueError as error:  # of a damaged file: the others are written all the same
            errors.append(str(error))
    if len(empty) + len(errors) == len(names) or errors:
        raise ValueError("; ".join([*errors, *empty]))
    for reason in empty:
        console.print(reason, soft_wrap=True)
