"""Does a change of the code change numbers? Describe an experiment, or run it, before and after.

python benchmarks/same.py describe EXPERIMENT OUT.json [--seeds 0 ...]
    what each training would do, without doing it: keys, rates, order of lanes, first parameters,
    three batches of each stream, and the programs as StableHLO; hashes of them
python benchmarks/same.py compare ONE OTHER
    two such files; or two workdirs after runs: parameters, records, scores and costs of every
    model, but not folders' names and speeds

A difference is a line, and the exit status 1.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from undo_jax.cli.experiment_flags import override
from undo_jax.graph.model_graph import ModelNode, build_graph
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.graph.train_specs import group_key, row_length
from undo_jax.runner.load_experiment import load
from undo_jax.runner.split_group import split_group
from undo_jax.runner.trials import RunContext, make_trials
from undo_jax.runtime.mesh import make_mesh
from undo_jax.training.population import Population
from undo_jax.training.train_spec import TrainSpec
from undo_jax.training.trial import assign_slots, read_batch

COSTS = ("steps", "tokens", "flops", "eval", "recovered", "bar", "attack", "learning_rate")


class Unmade(RunContext):
    """Nothing is read: programs are made of shapes."""

    def load(self, model: ModelNode) -> Any:
        return lambda: None


def describe(path: str, flags: list[str]) -> dict[str, Any]:
    """Of every company of an experiment's models."""
    experiment = override(load(path), flags).graph()
    mesh, setting = make_mesh(experiment.mesh), experiment.setting
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        run = Unmade(setting, mesh, experiment.saving, experiment.together, "")
        models = build_graph(
            experiment.recipes().values(), experiment.seeds, setting, epath.Path(folder)
        ).models
        trained = sorted((m for m in models if isinstance(m.recipe, TrainedRecipe)), key=_group_key)
        groups = [list(group) for _, group in groupby(trained, _group_key)]
        made = [_company(run, some) for group in groups for some in split_group(run, group)]
    return {f"{one['kind']} of {one['models'][0]}": one for one in made}


def _group_key(model: ModelNode) -> str:
    return group_key(model.recipe)  # type: ignore[arg-type]


def _company(run: RunContext, company: list[ModelNode]) -> dict[str, Any]:
    recipe: Any = company[0].recipe
    tried = make_trials(run, company, dict.fromkeys(company, {}), (), "")
    lanes = assign_slots([one.member for one in tried], run.mesh.shape["sweep"])
    setting, training = run.setting, recipe.training
    how = recipe.loss, training, setting.evaluate, run.eval_data, row_length(recipe, setting)
    task = TrainSpec(recipe.lm, *how, recipe.trains, tuple(setting.batch_fields))
    batches = [
        read_batch(lanes.inputs, step, training.batch_size, run.mesh, task.batch_fields)
        for step in (0, 1, training.steps - 1)
    ]
    fresh = lanes.firsts.values() if recipe.start is None else ()
    return {
        "kind": recipe.kind,
        "models": [f"{one.artifact.model}, seed {one.artifact.seed}" for one in company],
        "lanes": lanes.indices,
        "keys": jax.random.key_data(lanes.keys).tolist(),
        "rates": lanes.rates.tolist(),
        "first parameters": [_hash(params()) for params in fresh],
        "batches": [_hash(batch) for batch in batches],
        "programs": [
            hashlib.sha256(lowered.as_text().encode()).hexdigest()
            for lowered in Population(task, run.mesh, lanes)._lowered()
        ],
    }


def _hash(tree: Any) -> str:
    made = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        made.update(np.ascontiguousarray(leaf).tobytes())
    return made.hexdigest()


def workdir(folder: Path) -> dict[str, Any]:
    """Every finished model of a workdir, by what it is called."""
    made: dict[str, Any] = {}
    for summary in sorted(folder.glob("*/summary.json")):
        own = summary.parent
        said = json.loads((own / "config.json").read_text())
        name = f"{said['stage']} of {said['model']}, seed {said['seed']}"
        told, records = json.loads(summary.read_text()), own / "metrics.jsonl"
        lines = records.read_text().splitlines() if records.exists() else []
        made[name] = {
            "parameters": _hash(_parameters(own / "params")),
            **{name: told.get(name) for name in COSTS},
            "records": [
                {n: value for n, value in json.loads(line).items() if n != "tokens_per_second"}
                for line in lines
            ],
        }
    return made


def _parameters(path: Path) -> Any:
    """As they are stored, on one device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        stored: Any = checkpointer.metadata(path.resolve()).item_metadata
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), stored.tree
        )
        return checkpointer.restore(path.resolve(), like)


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where they differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            if name not in one or name not in other:
                yield f"{place} {name}: only in {'one' if name in one else 'the other'}"
            else:
                yield from differences(one[name], other[name], f"{place} {name}")
    elif one != other:
        yield f"{place}: {str(one)[:200]} and {str(other)[:200]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("describe", "compare"))
    parser.add_argument("one")
    parser.add_argument("other")
    options, flags = parser.parse_known_args()
    if options.what == "describe":
        made = describe(options.one, flags)
        Path(options.other).write_text(json.dumps(made, indent=1))
        return print(f"{len(made)} companies: {options.other}")
    read_in = lambda path: workdir(path) if path.is_dir() else json.loads(path.read_text())  # noqa: E731
    one, other = (read_in(Path(path)) for path in (options.one, options.other))
    found = list(differences(one, other))
    count = sum(len(model.get("records", ())) for model in one.values())
    print("\n".join(found) or f"equal: {len(one)} of each, with {count} records")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
