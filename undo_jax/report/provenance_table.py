"""How an experiment was made, as tables: settings, and the commands that are recorded."""

from undo_jax.report.numbers import Report
from undo_jax.report.tables import Grid


def choice_grid(report: Report) -> Grid:
    """A row for each setting."""
    rows = [[c.part, c.name, c.value] for c in report.choices]
    return Grid(["of", "setting", "value"], rows, words=3)


def versions(report: Report) -> str:
    """The versions of the last command, and what is different about those before it."""
    if not report.origins:
        return (
            "Which command made this, when, and with which versions is not recorded: an earlier "
            "version of undo-jax wrote these logs."
        )
    last = report.origins[-1].versions
    told = ", ".join(f"{name} {version}" for name, version in last.items())
    before = {f"{n} {v}": 0 for o in report.origins[:-1] for n, v in o.versions.items()}
    others = [one for one in before if one not in {f"{n} {v}" for n, v in last.items()}]
    return f"With {told}." + (f" Earlier commands: {', '.join(others)}." if others else "")
