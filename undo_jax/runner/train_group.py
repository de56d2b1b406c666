"""Trains models of one work together: a population, whose members become finished artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from undo_jax.fit import least
from undo_jax.fit.cached import STATES, possible
from undo_jax.graph.nodes import Model, Work, row_length, work
from undo_jax.logs.log import Log, open_log, show_waiting
from undo_jax.runner import teacher_cache
from undo_jax.runner.trials import Candidate, Run, candidates, parent_scores
from undo_jax.runtime import device_memory
from undo_jax.runtime.preemption import Stop, defer_signals
from undo_jax.setting import judged_at_end
from undo_jax.sinks.jsonl import jsonl
from undo_jax.store import artifacts, progress_folders, snapshots
from undo_jax.store.train_checkpoints import open_checkpoints
from undo_jax.training.loop import Result, diverged, train_together
from undo_jax.training.population import Task
from undo_jax.training.trial import shares
from undo_jax.types import Scores, parameters


class Outcome(NamedTuple):
    """What came of a candidate."""

    candidate: Candidate
    result: Result


class Ran(NamedTuple):
    """How the training of a candidate ended."""

    steps: int
    diverged: bool


Best = dict[Model, Outcome]


def train(run: Run, company: Sequence[Model], finished: Sequence[Model] = ()) -> None:
    """Train models together, each with all its rates, of which the strongest becomes it.

    Those that are `finished` train along, so that the others are trained in the company that was
    interrupted, and are left as they are. If asked to stop, training is saved and stops before a
    step; what follows its last step is not interrupted.
    """
    recipe: Any = company[0].recipe
    parents = {model: parent_scores(model) for model in company}
    folder = progress_folders.make_progress_folder([model.artifact for model in company])
    name = progress_folders.read_training_name(folder)
    recalls = run.cache_teachers and possible(work(recipe, run.setting))
    recall = partial(teacher_cache.use_stored_states, run) if recalls else None
    tried = candidates(run, company, parents, finished, name, recall)
    goes_on = any(folder.glob("from-*"))
    setting, training, size = run.setting, recipe.training, run.together
    # what a user's code raises after the last step costs no training
    risky = bool(run.sinks) or any(metric.at == "end" for metric in setting.metrics.values())
    keeps = any(model.recipe.keeps for model in company)  # type: ignore[attr-defined]
    for model in company:
        if model not in finished:
            artifacts.prepare_folder(model.artifact, remove_snapshots=not goes_on)
    how = recipe.loss, training, setting.evaluate, run.eval_data, row_length(recipe, setting)
    batch_fields = (*setting.batch_fields, *([STATES] if recalls else []))
    task = Task(recipe.lm, *how, recipe.trains, batch_fields)
    title, targets = f"{recipe.kind} × {len(tried)}", [(c.target, c.tags) for c in tried]
    names, firsts = [model.artifact.model for model in company], range(0, len(tried), size)
    ran: list[Ran] = []

    def fit_from(first: int, log: Log, stop: Stop) -> list[Outcome]:
        """As many candidates as train side by side."""
        group, last = tried[first : first + size], first + size >= len(tried) and not risky
        before = first // size * training.steps
        own = replace(log, targets=targets[first : first + size], before=before)
        with open_checkpoints(folder / f"from-{first}", run.saving, stop, last) as saves:
            seen = partial(_keep, run, group) if keeps else None
            results = train_together(task, run.mesh, [c.member for c in group], own, saves, seen)
        ran.extend(Ran(one.steps, diverged(one.scores)) for one in results)
        return [Outcome(*pair) for pair in zip(group, results, strict=True)]

    best: Best = {}
    with defer_signals() as stop:
        steps, sinks = training.steps * len(firsts), (jsonl, *run.sinks)
        with open_log(title, steps, targets, sinks, some(names)) as log:
            for first in firsts:
                # what the others have learned is let go
                best = {model: _taken(found) for model, found in best.items()}
                best = _strongest(run, best, fit_from(first, log, stop))
            log.ends(ending(getattr(recipe, "ended", "stopped"), ran, training.steps))
        with show_waiting(f"{title}: last scores, and saving"):
            for model, found in best.items():
                if model not in finished:
                    _finish(run, found, parents[model])
        progress_folders.remove_progress(folder)


def some(names: Sequence[str]) -> str:
    """The first names, each once, and the number of the others."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def ending(word: str, ran: Sequence[Ran], steps: int) -> str:
    """How trainings ended that all stopped before the last step, e.g. all recovered at step 850.

    `word` says it of those that the stop rule has ended.
    """
    last = max(one.steps for one in ran)
    if last >= steps:
        return ""
    counts = {word: sum(not one.diverged for one in ran), "diverged": sum(o.diverged for o in ran)}
    told = [f"{'all' if n == len(ran) else n} {what}" for what, n in counts.items() if n]
    return f"{', '.join(told)} at step {last}"


def _keep(run: Run, group: Sequence[Candidate], step: int, evaluated: Mapping[int, Result]) -> None:
    """Keep a model's strongest candidate at this step, where that is wanted."""
    found = [Outcome(group[number], result) for number, result in evaluated.items()]
    for model, (candidate, result) in _strongest(run, {}, found).items():
        recipe: Any = model.recipe
        before = snapshots.read_summary(model.artifact, step)
        strength = partial(recipe.strength, run.setting)
        if step in recipe.keeps and not (
            before and strength(before["eval"]) >= strength(result.scores)
        ):
            tags = recipe.tags(candidate.member.learning_rate)
            snapshots.save_snapshot(model.artifact, step, result.params(), result.scores, **tags)


def companies(run: Run, group: Sequence[Model]) -> list[list[Model]]:
    """Models of one work, cut so that a company has at most `together` lanes, and fits memory."""
    recipe: Any = group[0].recipe
    size = max(1, run.together // len(recipe.rates))
    there, doing = device_memory.device_bytes(run.mesh), work(recipe, run.setting)
    while size > 1 and least_bytes(run, doing, group[:size]) > there:
        size -= 1
    return [list(group[first : first + size]) for first in range(0, len(group), size)]


def least_bytes(run: Run, doing: Work, company: Sequence[Model]) -> float:
    """Bytes of a device that models trained together need: states of its lanes, all references.

    A lower bound, see `fit.least`.
    """
    recipe: Any = company[0].recipe
    lanes = len(company) * len(recipe.rates)
    alone, batch = least.least(replace(doing, refs={}), run.mesh)
    with_refs, _ = least.least(doing, run.mesh)
    refs = {model.parent(ref) for model in company for ref in model.recipe.references.values()}  # type: ignore[attr-defined]
    each = (with_refs - alone) / max(len(doing.refs), 1)
    starts = {model.parent(model.recipe.start) for model in company if recipe.start}  # type: ignore[attr-defined]
    shared, at_once = 0.0, -(-lanes // run.mesh.shape["sweep"])
    if shares(doing.trains, lanes, len(starts), run.mesh):
        split = run.mesh.shape["fsdp"] * run.mesh.shape["tensor"]
        shared = 4 * parameters(doing.lm) / split
    return shared * len(starts) + (alone - shared) * at_once + each * len(refs) + batch


def _strongest(run: Run, best: Best, candidates: Sequence[Outcome]) -> Best:
    """The best of those before and of these; the first of equals."""
    best = dict(best)
    for found in candidates:
        model = found.candidate.model
        recipe: Any = model.recipe
        known, strength = best.get(model), partial(recipe.strength, run.setting)
        if known is None or strength(found.result.scores) > strength(known.result.scores):
            best[model] = found
    return best


def _taken(found: Outcome) -> Outcome:
    params = found.result.params()
    return found._replace(result=found.result._replace(params=lambda: params))


def _finish(run: Run, found: Outcome, parents: Mapping[str, Scores]) -> None:
    """Save a trained model and mark its artifact as finished.

    FLOPs count a training pass as three forward passes and a reference model as one: an upper
    bound, for a loss may not run all of them, or not all layers.
    """
    (model, member, *_), result = found
    recipe: Any = model.recipe
    described, time = work(recipe, run.setting), row_length(recipe, run.setting)
    tokens = result.steps * described.tokens
    passes = 3 * recipe.lm.forward_flops(time)
    passes += sum(lm.forward_flops(time) for lm in described.refs.values())
    cost = {"steps": result.steps, "tokens": tokens, "flops": tokens * passes}
    facts = recipe.facts(run.setting, parents, result.scores) | recipe.tags(member.learning_rate)
    params = result.params()
    scores, lists = judged_at_end(run.setting, recipe.lm, params)
    scores = {**result.scores, **scores}
    artifacts.save_artifact(model.artifact, params, scores, lists, **cost, **facts)
