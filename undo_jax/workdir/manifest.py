"""experiment-NAME.json: the models of an experiment, what each is, and what is measured."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
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
SAME = ("name", "metrics", "headline")  # of two runs of one experiment, measured in one way

Named = tuple[str, str | None]  # a model, and the attack on it


def write_manifest(
    experiment: Any,
    named: Mapping[Named, Sequence[ModelNode]],
    workdir: epath.Path,
    this: Mapping[str, Any] | None = None,
    new: bool = True,
    begun: str = "",
) -> None:
    """Write experiment-NAME.json: its models, what each is, what is measured, and where from.

    `this` is the origin of the run that ends, which is `new` if it has made anything; None where
    one begins, by the command `begun`, which stays in the file until a run ends: what it has not
    made yet is listed, and counts as unfinished.

    Models that an earlier run of this experiment listed under other names stay listed, if what they
    are compared with does, and if the attacks are the same.
    """
    setting, path = experiment.setting, workdir / f"experiment-{experiment.name}.json"
    oracle_nodes = named[experiment.oracle, None] if experiment.oracle is not None else ()
    oracles = {node.artifact.seed: node for node in oracle_nodes}
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
        "metrics": {name: asdict(metric) for name, metric in setting.metrics.items()},
        "headline": list(setting.headline),
        "attacks": {attack.name: to_json(attack) for attack in experiment.attacks},
        "models": models,
        "artifacts": [
            {"artifact": node.artifact.folder.name, "model": name} for node, name in listed
        ],
    }
    before: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):  # what a damaged one listed is lost
        before = read_json(path)
    runs: list[Any] = []
    if is_manifest(before) and all(before.get(n) == content[n] for n in SAME):
        content = _with_earlier_models(content, before, workdir)
        runs = before.get("runs", [])
    content["runs"] = runs if this is None else add_run(runs, this, new)
    content |= {"begun": begun} if begun else {}
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
    by_control: dict[bool, list[str]] = {False: [], True: []}
    for attack in attacks:
        control = attack.recipe.attack.control  # type: ignore[attr-defined]
        by_control[control].append(attack.artifact.folder.name)
    start: Recipe | None = model.recipe
    while isinstance(start, TrainedRecipe):
        start = start.start
    return {
        "model": name,
        "seed": model.artifact.seed,
        "artifact": model.artifact.folder.name,
        "role": "oracle" if is_oracle else model.recipe.role,
        "alpha": None if start is None else start.noise_share,  # of the noise that it started from
        "unlearned": unlearned and unlearned.artifact.folder.name,
        "oracle": oracle and oracle.artifact.folder.name,
        "attacks": by_control[False],
        "controls": by_control[True],
    }


def _compared(setting: Any, model: ModelNode, oracle: ModelNode | None) -> dict[str, Any]:
    """What compares a model with the oracle, once both are finished and have been scored."""
    both = [node.artifact for node in (model, oracle) if node is not None]
    if not all(artifact.finished for artifact in both):
        return {}
    summaries = [artifact.summary() for artifact in both]
    model_scores, *oracle_scores = (
        ModelScores(summary.get("eval", {}), summary.get(LISTS, {})) for summary in summaries
    )
    if not model_scores.scores:
        return {}
    scores = compare_with_oracle(setting, model_scores, next(iter(oracle_scores), None))
    return {"compared": scores} if scores else {}


def is_manifest(content: Mapping[str, Any]) -> bool:
    """Whether the models and artifacts of an experiment's file are as `write_manifest` does."""
    models, artifacts = content.get("models"), content.get("artifacts")
    return (
        isinstance(models, list)
        and isinstance(artifacts, list)
        and all(map(_is_entry, models))
        and all(_has_texts(entry, "artifact", "model") for entry in artifacts)
    )


def _is_entry(value: Any) -> bool:
    """Whether it is as `_entry` makes them."""
    if not _has_texts(value, "model", "artifact", "role"):
        return False
    folder_lists = [value.get("attacks"), value.get("controls", [])]
    return (
        all(isinstance(value.get(name, 0), str | None) for name in ("unlearned", "oracle"))
        and isinstance(value.get("seed", ""), int | None)
        and all(isinstance(folders, list) for folders in folder_lists)
        and all(isinstance(folder, str) for folders in folder_lists for folder in folders)
    )


def _has_texts(value: Any, *names: str) -> bool:
    """Whether it is a JSON object with texts of these names."""
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def artifact_folders(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """The artifacts of models, and of the attacks on them."""
    return {
        folder
        for entry in entries
        for folder in (entry["artifact"], *entry["attacks"], *entry.get("controls", ()))
    }


def _with_earlier_models(
    content: dict[str, Any], before: Mapping[str, Any], workdir: epath.Path
) -> dict[str, Any]:
    """The content, and of an earlier one with the same metrics the models that go with it.

    These have other names, are compared with models that are listed, and are attacked in the same
    way or not at all. The rest is told.
    """
    names_listed = {entry["model"] for entry in content["models"]}
    listed = {entry["artifact"] for entry in content["artifacts"]}
    alike = before.get("attacks", content["attacks"]) == content["attacks"]
    if gone := [name for name in before.get("attacks") or () if name not in content["attacks"]]:
        console.print(
            f"attacks {', '.join(gone)} of {content['name']} were listed before, and are not "
            "reported: give the experiment another --name to have both",
            soft_wrap=True,
        )
    earlier = [
        entry
        for entry in before["models"]
        if entry["model"] not in names_listed
        and (alike or not (entry["attacks"] or entry.get("controls")))
    ]
    count = -1
    while count != len(earlier):  # what an entry is compared with is listed, or stays, too
        count = len(earlier)
        folders = listed | {entry["artifact"] for entry in earlier} | {None}
        earlier = [e for e in earlier if {e["unlearned"], e["oracle"]} <= folders]
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
