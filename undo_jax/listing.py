"""experiment-NAME.json: the models of an experiment, what each is, and what is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from etils import epath

from undo_jax.durable import read_json, write_json
from undo_jax.graph import Model, ancestry
from undo_jax.log import console
from undo_jax.recipe import Recipe

Named = tuple[str, str | None]  # a model, and the attack on it


def list_models(
    experiment: Any, named: Mapping[Named, Sequence[Model]], workdir: epath.Path
) -> None:
    """Write experiment-NAME.json: its models, what each is, and what is measured.

    Models that an earlier run of this experiment listed under other names stay listed.
    """
    setting, path = experiment.setting, workdir / f"experiment-{experiment.name}.json"
    metrics = {name: asdict(metric) for name, metric in setting.metrics.items()}
    oracles = {m.artifact.seed: m for m in named.get((experiment.oracle or "", None), ())}
    models, artifacts = [], {}
    for name in experiment.models:
        for model in dict.fromkeys(named[name, None]):  # a pinned seed: one model for all seeds
            attacks = [
                attack
                for (one, by), of in named.items()
                for attack in dict.fromkeys(of)
                if by and one == name and attack.parents == (model,)
            ]
            oracle = oracles.get(model.artifact.seed) or next(iter(oracles.values()), None)
            models.append(_entry(name, name == experiment.oracle, model, oracle, attacks))
            for one in (*model.family, *attacks):
                artifacts.setdefault(one.artifact.folder.name, (one, name))
    kinds = list(dict.fromkeys(recipe.kind for recipe in ancestry(experiment.recipes().values())))
    listed = sorted(artifacts.values(), key=lambda one: kinds.index(one[0].recipe.kind))
    content = {
        "name": experiment.name,
        "metrics": metrics,
        "headline": list(setting.headline),
        "models": models,
        "artifacts": [{"artifact": m.artifact.folder.name, "model": of} for m, of in listed],
    }
    write_json(path, _with_others(path, content) if path.exists() else content)


def _entry(
    name: str, is_oracle: bool, model: Model, oracle: Model | None, attacks: Sequence[Model]
) -> dict[str, Any]:
    """The entry of a model with a seed in experiment-NAME.json."""
    unlearned = next((m for m in model.family[::-1] if m.recipe.role == "unlearned"), None)
    return {
        "model": name,
        "seed": model.artifact.seed,
        "artifact": model.artifact.folder.name,
        "role": "oracle" if is_oracle else model.recipe.role,
        "alpha": _alpha(model.recipe),
        "unlearned": unlearned and unlearned.artifact.folder.name,
        "oracle": oracle and oracle.artifact.folder.name,
        "attacks": [attack.artifact.folder.name for attack in attacks],
    }


def _alpha(recipe: Recipe | None) -> float | None:
    """The alpha of the noise that a model started from."""
    while recipe is not None and not hasattr(recipe, "alpha"):
        recipe = getattr(recipe, "start", None)
    return getattr(recipe, "alpha", None)


def _with_others(path: epath.Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content, and the models of other names in the file if its metrics are the same."""
    try:
        before = read_json(path)
    except ValueError:  # damaged: what it listed is lost
        return content
    if any(before.get(name) != content[name] for name in ("name", "metrics", "headline")):
        return content
    own = {entry["model"] for entry in content["models"]}
    folders = {entry["artifact"] for entry in content["models"]}
    for entry in before["models"]:
        if entry["model"] in own and entry["artifact"] not in folders:
            console.print(
                f"{entry['model']} of {content['name']} was {entry['artifact']} before, which "
                "stays but is not reported: give the experiment another --name to have both",
                soft_wrap=True,
            )
    others = {
        part: [entry for entry in before[part] if entry["model"] not in own]
        for part in ("models", "artifacts")
    }
    return {**content, **{part: [*content[part], *others[part]] for part in others}}
