"""experiment-NAME.json: the models of an experiment, what each is, and what is measured."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any

from etils import epath

from undo_jax.evals.scoring import ModelScores, compare_with_oracle
from undo_jax.graph.model_graph import ModelNode, ancestry
from undo_jax.graph.recipe import Recipe, TrainedRecipe
from undo_jax.logs.log import console
from undo_jax.runtime.atomic_files import read_json, write_json
from undo_jax.store.artifacts import LISTS, to_json
from undo_jax.workdir.provenance import add_run

SUMMARY = "summary.json"  # of an artifact that is finished

Named = tuple[str, str | None]  # a model, and the attack on it


def write_manifest(
    experiment: Any,
    named: Mapping[Named, Sequence[ModelNode]],
    workdir: epath.Path,
    this: Mapping[str, Any] | None = None,
    new: bool = True,
) -> None:
    """Write experiment-NAME.json: its models, what each is, what is measured, and where from.

    `this` is the origin of the run that ends, which is `new` if it has made anything; None where
    one begins: what it has not made yet is listed, and counts as unfinished.

    Models that an earlier run of this experiment listed under other names stay listed, if what they
    are compared with does, and if the attacks are the same.
    """
    setting, path = experiment.setting, workdir / f"experiment-{experiment.name}.json"
    metrics = {name: asdict(metric) for name, metric in setting.metrics.items()}
    oracles = {}
    if experiment.oracle is not None:
        oracles = {m.artifact.seed: m for m in named[experiment.oracle, None]}
    models, artifacts = [], {}
    for name in experiment.models:
        for model in dict.fromkeys(named[name, None]):  # a pinned seed: one model for all seeds
            attacks = [
                attack
                for (attacked, attack_name), attack_models in named.items()
                for attack in dict.fromkeys(attack_models)
                if attack_name and attacked == name and attack.parents[0] is model
            ]
            oracle = oracles.get(model.artifact.seed) or next(iter(oracles.values()), None)
            entry = _entry(name, name == experiment.oracle, model, oracle, attacks)
            models.append(entry | _compared(setting, model, oracle))
            for node in (*model.lineage, *attacks):
                artifacts.setdefault(node.artifact.folder.name, (node, name))
    kinds = list(dict.fromkeys(recipe.kind for recipe in ancestry(experiment.recipes().values())))
    listed = sorted(artifacts.values(), key=lambda pair: kinds.index(pair[0].recipe.kind))
    content = {
        "name": experiment.name,
        "metrics": metrics,
        "headline": list(setting.headline),
        "attacks": {attack.name: to_json(attack) for attack in experiment.attacks},
        "models": models,
        "artifacts": [
            {"artifact": node.artifact.folder.name, "model": name} for node, name in listed
        ],
    }
    before = _before(path)
    content = _with_earlier_models(content, before, workdir)
    runs = before.get("runs", []) if _same(content, before) else []
    content["runs"] = runs if this is None else add_run(runs, this, new)
    write_json(path, content)


def _entry(
    name: str,
    is_oracle: bool,
    model: ModelNode,
    oracle: ModelNode | None,
    attacks: Sequence[ModelNode],
) -> dict[str, Any]:
    """The entry of a model with a seed in experiment-NAME.json."""
    unlearned = next((m for m in model.lineage[::-1] if m.recipe.role == "unlearned"), None)
    return {
        "model": name,
        "seed": model.artifact.seed,
        "artifact": model.artifact.folder.name,
        "role": "oracle" if is_oracle else model.recipe.role,
        "alpha": _alpha(model.recipe),
        "unlearned": unlearned and unlearned.artifact.folder.name,
        "oracle": oracle and oracle.artifact.folder.name,
        "attacks": [a.artifact.folder.name for a in attacks if not _is_control(a)],
        "controls": [a.artifact.folder.name for a in attacks if _is_control(a)],
    }


def _compared(setting: Any, model: ModelNode, oracle: ModelNode | None) -> dict[str, Any]:
    """What compares a model with the oracle, once both are finished and have been scored."""
    both = [node for node in (model, oracle) if node is not None]
    if not all(node.artifact.finished for node in both):
        return {}
    summaries = [node.artifact.summary() for node in both]
    model_scores, *oracle_scores = (
        ModelScores(summary.get("eval", {}), summary.get(LISTS, {})) for summary in summaries
    )
    if not model_scores.scores:
        return {}
    scores = compare_with_oracle(setting, model_scores, next(iter(oracle_scores), None))
    return {"compared": scores} if scores else {}


def _is_control(attack: ModelNode) -> bool:
    return attack.recipe.attack.control  # type: ignore[attr-defined]


def _alpha(recipe: Recipe | None) -> float | None:
    """The alpha of the noise that a model started from."""
    while isinstance(recipe, TrainedRecipe):
        recipe = recipe.start
    return None if recipe is None else recipe.noise_share


def _before(path: epath.Path) -> dict[str, Any]:
    """What an earlier run has written; nothing, where that is damaged: what it listed is lost."""
    try:
        before = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return before if is_manifest(before) else {}


def is_manifest(content: Mapping[str, Any]) -> bool:
    """Whether the models and artifacts of an experiment's file are as `list_models` writes them."""
    models, artifacts = content.get("models"), content.get("artifacts")
    if not (isinstance(models, list) and all(map(_is_entry, models))):
        return False
    return isinstance(artifacts, list) and all(_has(e, "artifact", "model") for e in artifacts)


def artifact_folders(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """The artifacts of models, and of the attacks on them."""
    return {
        folder
        for entry in entries
        for folder in (entry["artifact"], *entry["attacks"], *entry.get("controls", ()))
    }


def _is_entry(value: Any) -> bool:
    """Whether it is as `_entry` makes them."""
    if not _has(value, "model", "artifact", "role"):
        return False
    references, seed = (value.get("unlearned", 0), value.get("oracle", 0)), value.get("seed", "")
    folder_lists = value.get("attacks"), value.get("controls", [])
    return (
        all(isinstance(folder, str | None) for folder in references)
        and isinstance(seed, int | None)
        and all(isinstance(folders, list) for folders in folder_lists)
        and all(isinstance(folder, str) for folders in folder_lists for folder in folders)
    )


def _has(value: Any, *names: str) -> bool:
    """Whether it is a JSON object with texts of these names."""
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def _with_earlier_models(
    content: dict[str, Any], before: Mapping[str, Any], workdir: epath.Path
) -> dict[str, Any]:
    """The content, and of an earlier one with the same metrics the models that go with it.

    These have other names, are compared with models that are listed, and are attacked in the same
    way or not at all. The rest is told.
    """
    if not _same(content, before):
        return content
    names_listed = {entry["model"] for entry in content["models"]}
    listed = {entry["artifact"] for entry in content["artifacts"]}
    alike = before.get("attacks", content["attacks"]) == content["attacks"]
    earlier = [e for e in before["models"] if e["model"] not in names_listed]
    earlier = [e for e in earlier if alike or not (e["attacks"] or e.get("controls"))]
    earlier = _comparable(earlier, listed)
    lost = [e for e in before["models"] if e not in earlier]
    names = {entry["model"] for entry in earlier}
    past = listed | artifact_folders(lost) - artifact_folders(earlier)
    artifacts = [
        e for e in before["artifacts"] if e["model"] in names and e["artifact"] not in past
    ]
    reported = artifact_folders([*content["models"], *earlier])
    lost = [entry for entry in lost if entry["artifact"] not in reported]
    _tell(content["name"], [e for e in lost if (workdir / e["artifact"] / SUMMARY).exists()])
    return {
        **content,
        "models": [*content["models"], *({**entry, "earlier": True} for entry in earlier)],
        "artifacts": [*content["artifacts"], *artifacts],
    }


def _same(content: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether an earlier content is of the same experiment, measured in the same way."""
    return all(before.get(name) == content[name] for name in ("name", "metrics", "headline"))


def _comparable(entries: list[dict[str, Any]], listed: Set[str]) -> list[dict[str, Any]]:
    """The entries whose unlearned model and oracle are listed, or are entries that stay, too."""
    folders_known = listed | {entry["artifact"] for entry in entries} | {None}
    stay = [entry for entry in entries if {entry["unlearned"], entry["oracle"]} <= folders_known]
    return stay if len(stay) == len(entries) else _comparable(stay, listed)


def _tell(experiment: str, lost: Sequence[Mapping[str, Any]]) -> None:
    """Say which finished models a report no longer has: a line for each name."""
    for name in dict.fromkeys(entry["model"] for entry in lost):
        entries = [entry for entry in lost if entry["model"] == name]
        folders = ", ".join(entry["artifact"] for entry in entries)
        seeds, stays = "", "stays but is"
        if len(entries) > 1:
            seeds = f" (seeds {', '.join(str(entry['seed']) for entry in entries)})"
            stays = "stay but are"
        console.print(
            f"{name}{seeds} of {experiment} was {folders} before, which {stays} not reported: "
            "give the experiment another --name to have both",
            soft_wrap=True,
        )
