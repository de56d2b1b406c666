"""Whether the paper's scale fits v5e:4x4: `python benchmarks/fit_paper.py [--setting language]`.

Compiles every program of experiments/paper at --scale paper (the extra `tpu`) on the mesh
of its setting, and writes docs/results/tables/paper-scale.csv. Figures share programs, and those
that differ in steps or in numbers alone are one. What is compiled is kept in runs/fit_paper.json,
so the same command goes on where it was stopped.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
from fit_table import GIB, ROOT, fill, versions

from undo_jax.cli.experiment_flags import override
from undo_jax.fit import chips
from undo_jax.fit.facts import describe
from undo_jax.fit.step import compile_step, mesh_on, on_chips
from undo_jax.graph.model_graph import ancestry, group_key, train_spec
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.logs.log import format_number
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import load

FIGURES = ("alpha", "methods", "pareto", "beyond", "baselines", "oracle_matching")
SETTINGS, SLICE = ("arithmetic", "language"), "v5e:4x4"
CACHE_FILE = ROOT / "runs" / "fit_paper.json"
TABLE = ROOT / "docs" / "results" / "tables" / "paper-scale.csv"
HEAD = ("setting", "stage", "a model", "mesh", "rows", "GiB a chip", "bound by", "ms a step")


def experiment(setting: str, figure: str) -> Experiment:
    config = load(str(ROOT / "experiments" / "paper" / f"{figure}.py"))
    return override(config, ["--scale", "paper", "--setting", setting]).experiment()


def programs(setting: str) -> Iterator[tuple[str, str, str, Any]]:
    """Each program's figure, stage, a model that it trains or attacks, and that model's recipe."""
    seen = set()
    for figure in FIGURES:
        figure_experiment = experiment(setting, figure)
        recipes = figure_experiment.recipes()
        names = {id(recipe): name for (name, _), recipe in recipes.items()}
        for recipe in ancestry(recipes.values()):
            if not isinstance(recipe, TrainedRecipe):
                continue
            parts = json.loads(group_key(recipe, figure_experiment.setting))
            parts = {k: v for k, v in parts.items() if k not in ("stop", "evaluate")}
            parts["training"] = None, recipe.training.batch_size, recipe.training.accumulation
            key = json.dumps(parts, sort_keys=True)
            if key not in seen:
                seen.add(key)
                model_names = [
                    names[id(candidate)]
                    for candidate in (recipe, *recipe.parents)
                    if id(candidate) in names
                ]
                yield figure, recipe.kind, model_names[0] if model_names else "an ancestor", recipe


def measure(setting: str, number: int) -> dict[str, Any]:
    """What the compiler says of one program."""
    jax.config.update("jax_platforms", "cpu")
    figure, kind, name, recipe = list(programs(setting))[number]
    figure_experiment, place = experiment(setting, figure), chips.find(SLICE)
    work, mesh = (
        on_chips(train_spec(recipe, figure_experiment.setting)),
        mesh_on(place, figure_experiment.mesh),
    )
    title = {"setting": setting, "figure": figure, "stage": kind, "model": name}
    return title | describe(work, place, mesh, compile_step(work, mesh))


def row(facts: dict[str, Any]) -> list[str]:
    """A row of the table."""
    mesh = ",".join(f"{axis}={size}" for axis, size in facts["mesh"].items())
    rows, parts = str(facts["rows"]), facts["accumulation"]
    parted = f"{rows} in {parts} parts" if parts > 1 else rows
    fits = facts["fits"]
    bound = facts["bound"] if fits else "does not fit"
    return [
        facts["setting"], facts["stage"], facts["model"], mesh, parted,
        f"{facts['hbm']['total'] / GIB:.2f}", bound,
        format_number(1e3 * facts["seconds"]["step"]) if fits else "",
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, nargs="+", default=list(SETTINGS))
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        return print(json.dumps(measure(options.cell[0], int(options.cell[1]))))
    sizes = {setting: sum(1 for _ in programs(setting)) for setting in SETTINGS}
    order = [f"{setting} {i}" for setting in SETTINGS for i in range(sizes[setting])]
    cells = fill([n for n in order if n.split()[0] in options.setting], __file__, CACHE_FILE)
    with TABLE.open("w", newline="") as file:
        rows = [row(cells[name]) for name in order if name in cells]
        csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])
    missing = len(order) - sum(name in cells for name in order)
    print(f"{TABLE}: {versions()}; {missing} of {len(order)} are not compiled yet")
    return sys.exit(0)


if __name__ == "__main__":
    main()
