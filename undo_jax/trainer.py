"""Trains models of one work together: a population, whose members become finished artifacts."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from undo_jax import checkpoint, memory
from undo_jax.fit import least
from undo_jax.graph import Model, Work, work
from undo_jax.log import Log, Sink, Target, open_log
from undo_jax.population import Member, Result, Source, Task, fit
from undo_jax.progress import Saving, Stop, open_progress, stoppable
from undo_jax.recipe import Scores
from undo_jax.sharding import placement
from undo_jax.sinks.jsonl import jsonl
from undo_jax.types import Lazy


@dataclass(frozen=True)
class Run:
    """Where models are made, and how they are scored."""

    setting: Any
    mesh: Mesh
    material: Any  # of the setting's evaluation
    saving: Saving
    together: int  # lanes trained side by side at most
    experiment: str  # its name
    sinks: Sequence[Sink] = ()  # of records, besides the one that the report reads
    readers: dict[Model, Lazy] = field(default_factory=dict)

    def load(self, model: Model) -> Lazy:
        """What reads a finished model, the same for all that ask. Raises FileNotFoundError."""
        model.artifact.summary()
        if model not in self.readers:
            self.readers[model] = partial(
                checkpoint.load, model.artifact, model.recipe.lm, self.mesh
            )
        return self.readers[model]


Best = dict[Model, tuple[int, Result]]  # of a model's lanes: which, and its result


class Lane(NamedTuple):
    """One training: of a model with one learning rate."""

    model: Model
    member: Member
    rate: float


def train(run: Run, company: Sequence[Model], finished: Sequence[Model] = ()) -> None:
    """Train models together, each with all its rates, of which the strongest becomes it.

    Those that are `finished` train along, so that the others are trained in the company that was
    interrupted, and are left as they are. If asked to stop, training is saved and stops before a
    step; what follows its last step is not interrupted.
    """
    recipe: Any = company[0].recipe
    lanes, parents = _lanes(run, company), {m: _parents(m) for m in company}
    folder = checkpoint.gather([model.artifact for model in company])
    for model in company:
        if model not in finished:
            checkpoint.begin(model.artifact)
    targets = list(_targets(run, company, finished, checkpoint.training(folder)))
    setting, training, size = run.setting, recipe.training, run.together
    stops = [partial(_ends, run, lane.model, parents[lane.model]) for lane in lanes]
    how = recipe.loss, training, setting.evaluate, run.material, stops, setting.row_length
    task = Task(recipe.lm, *how, recipe.trains)
    title = f"{recipe.kind} × {len(lanes)}"

    def fit_from(first: int, log: Log, stop: Stop) -> list[Result]:
        """As many lanes as train side by side."""
        group, last = slice(first, first + size), first + size >= len(lanes)
        own, some = replace(log, targets=targets[group]), task._replace(stops=stops[group])
        members = [lane.member for lane in lanes[group]]
        with open_progress(folder / f"from-{first}", run.saving, stop, last) as progress:
            return fit(some, run.mesh, members, own, progress)

    best: Best = {}
    with stoppable() as stop:
        with open_log(title, training.steps, targets, (jsonl, *run.sinks)) as log:
            for first in range(0, len(lanes), size):
                # what the others have learned is let go
                best = {model: (index, _taken(result)) for model, (index, result) in best.items()}
                best = _strongest(run, best, fit_from(first, log, stop), first, lanes)
        for model, (index, result) in best.items():
            if model not in finished:
                _finish(run, lanes[index], parents[model], result)
        checkpoint.scatter(folder)


def companies(run: Run, group: Sequence[Model]) -> list[list[Model]]:
    """Models of one work, cut so that a company has at most `together` lanes, and fits memory."""
    recipe: Any = group[0].recipe
    size = max(1, run.together // len(recipe.rates))
    there, doing = memory.of_device(run.mesh), work(recipe, run.setting.row_length)
    while size > 1 and _bytes(run, doing, group[:size]) > there:
        size -= 1
    return [list(group[first : first + size]) for first in range(0, len(group), size)]


def _bytes(run: Run, doing: Work, company: Sequence[Model]) -> float:
    """Of a device, at the least: the states of its lanes, and the references of all of them."""
    recipe: Any = company[0].recipe
    lanes = len(company) * len(recipe.rates)
    alone, batch = least.least(replace(doing, refs={}), run.mesh)
    with_refs, _ = least.least(doing, run.mesh)
    refs = {model.parent(ref) for model in company for ref in model.recipe.references.values()}  # type: ignore[attr-defined]
    each = (with_refs - alone) / max(len(doing.refs), 1)
    return alone * -(-lanes // run.mesh.shape["sweep"]) + each * len(refs) + batch


def _lanes(run: Run, company: Sequence[Model]) -> list[Lane]:
    """Every model with each of its rates."""
    sources: dict[Any, Source] = {}
    lanes = []
    for model in company:
        recipe: Any = model.recipe
        seed, batch = model.artifact.seed, recipe.training.batch_size
        streams = {
            name: (stream.name, zlib.crc32(f"{stream.order}/{seed}".encode()))
            for name, stream in recipe.streams.items()
        }
        references = {name: model.parent(ref) for name, ref in recipe.references.items()}
        shared = tuple(streams.items()), tuple(references.items())
        if shared not in sources:
            rows = {n: run.setting.stream(of, batch, order) for n, (of, order) in streams.items()}
            refs = {n: (ref.recipe.lm, run.load(ref)) for n, ref in references.items()}
            sources[shared] = Source(rows, refs)
        params = _first(run, model)
        for rate in recipe.rates:
            member = Member(params, model.key, rate, sources[shared])
            lanes.append(Lane(model, member, rate))
    return lanes


def _first(run: Run, model: Model) -> Lazy:
    """The parameters that a model begins with."""
    recipe: Any = model.recipe
    if recipe.start is None:
        init = jax.jit(recipe.lm.init, out_shardings=placement(recipe.lm, run.mesh))
        return partial(init, model.key)
    load = run.load(model.parent(recipe.start))
    if recipe.prepares:
        return lambda: recipe.make(run.mesh, model.key, load())
    return load


def _parents(model: Model) -> dict[str, Scores]:
    """The last scores of what a model learns from, by name."""
    recipe: Any = model.recipe
    named = {**recipe.references, **({"start": recipe.start} if recipe.start else {})}
    return {n: model.parent(of).artifact.summary().get("eval", {}) for n, of in named.items()}


def _ends(run: Run, model: Model, parents: Mapping[str, Scores], scores: Scores) -> bool:
    recipe: Any = model.recipe
    return recipe.ends(run.setting, parents, scores)


def _targets(run: Run, company: Sequence[Model], finished: Sequence[Model], training: str):
    """Of each lane, with its tags; none where its model is finished."""
    for model in company:
        recipe: Any = model.recipe
        tags = [recipe.tags(rate) for rate in recipe.rates]
        name = f"{training}-{model.artifact.fingerprint}"
        target = Target(model.artifact.folder, tags, run.experiment, name)
        yield from ((None if model in finished else target, own) for own in tags)


def _strongest(
    run: Run, best: Best, found: Sequence[Result], first: int, lanes: Sequence[Lane]
) -> Best:
    """The best of those before and of those found from lane `first` on; the first of equals."""
    best = dict(best)
    for index, result in enumerate(found, first):
        model = lanes[index].model
        recipe: Any = model.recipe
        known, strength = best.get(model), partial(recipe.strength, run.setting)
        if known is None or strength(result.scores) > strength(known[1].scores):
            best[model] = index, result
    return best


def _taken(result: Result) -> Result:
    params = result.params()
    return result._replace(params=lambda: params)


def _finish(run: Run, lane: Lane, parents: Mapping[str, Scores], result: Result) -> None:
    """Save a trained model and mark its artifact as finished.

    FLOPs count a training pass as three forward passes and a reference model as one: an upper
    bound, for a loss may not run all of them, or not all layers.
    """
    recipe: Any = lane.model.recipe
    described, time = work(recipe, run.setting.row_length), run.setting.row_length
    tokens = result.steps * described.tokens
    passes = 3 * recipe.lm.forward_flops(time)
    passes += sum(lm.forward_flops(time) for lm in described.refs.values())
    cost = {"steps": result.steps, "tokens": tokens, "flops": tokens * passes}
    facts = recipe.facts(run.setting, parents, result.scores) | recipe.tags(lane.rate)
    checkpoint.keep(lane.model.artifact, result.params(), result.scores, **cost, **facts)
