"""What `undo-jax fit` compiles: a stage of an experiment, or a distillation between presets."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from undo_jax import graph
from undo_jax.cli import experiment as experiments
from undo_jax.experiment import Experiment
from undo_jax.experiment_file import Knobs, load
from undo_jax.fit.advice import Names
from undo_jax.fit.flags import PRESETS as XLA
from undo_jax.fit.step import distillation, on_chips
from undo_jax.graph import Work
from undo_jax.mesh import MeshShape
from undo_jax.models import hf_folder
from undo_jax.models.architecture import REMAT
from undo_jax.models.transformer import Transformer
from undo_jax.optim import AdamW
from undo_jax.train import Training

GEMMA2 = "gemma2"  # the family of presets that name none
MOST = 2**31  # rows, and tokens of a row: sizes are counted in 32 bits
OF_EXPERIMENTS = ("stage", "all")
OF_PRESETS = {  # flags, and what sets the same for an experiment
    "teacher": "",
    "length": "--setting.row-length",
    "rows": "--STAGE.training.batch-size",
    "remat": "--model.remat",
}


@dataclass(frozen=True)
class Program:
    """A step to compile, and how a reader changes it."""

    title: Mapping[str, Any]
    work: Work
    names: Names


@dataclass(frozen=True)
class Source:
    """What is asked for."""

    name: str
    programs: Sequence[Program]
    mesh: MeshShape | None = None  # its own; None: it has none
    sized: bool = True  # False: the rows are not given


def parse(words: list[str], described: str | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of the command, and the words that it does not know."""
    parser = argparse.ArgumentParser(prog="undo-jax fit", allow_abbrev=False, description=described)
    of_presets = any(word.partition("=")[0] == "--preset" for word in words)
    if not of_presets:
        parser.add_argument(
            "experiment",
            metavar="EXPERIMENT|--preset",
            help="a Python file that defines `experiment`; with --preset no file is needed",
        )
    parser.add_argument("--topology", required=True, help="e.g. v5e:4x4, v5e-16 or h100:8")
    parser.add_argument(
        "--mesh", help="e.g. data=4,fsdp=4 (default: the experiment's; of presets: one that fits)"
    )
    parser.add_argument(
        "--search", action="store_true", help="find the largest batch for each remat policy"
    )
    parser.add_argument("--xla-flags", help="compile for TPU with a preset: " + ", ".join(XLA))
    parser.add_argument("--json", action="store_true", help="for machines")
    file = parser.add_argument_group("of an experiment")
    file.add_argument("--stage", help="the kind of recipe (default: distill)")
    file.add_argument(
        "--all", action="store_true", help="every program of the experiment, a line each"
    )
    presets = parser.add_argument_group("without an experiment: distillation between presets")
    presets.add_argument("--preset", help="the student: " + "; ".join(_presets()))
    presets.add_argument("--teacher", help="its teacher, a preset, too (default: the student's)")
    presets.add_argument("--length", type=int, help="tokens of a row (default: 2048)")
    presets.add_argument(
        "--rows", type=int, help="of a batch, over all devices (default: one for each data×fsdp)"
    )
    presets.add_argument("--remat", help=f"{', '.join(REMAT)} (default: the preset's own)")
    parser.error = experiments.refuse
    return parser.parse_known_args(words)


def find(options: argparse.Namespace, rest: list[str]) -> Source:
    """What these flags ask for. Raises ValueError for flags that do not belong together."""
    if options.preset is None:
        return _of_experiment(options, rest)
    return _of_presets(options, rest)


def _preset(name: str) -> Transformer:
    """The model of a name such as llama:3.2-1B; without a family it is of Gemma-2.

    Raises ValueError for an unknown one.
    """
    family, colon, size = name.rpartition(":")
    return hf_folder.family(family if colon else GEMMA2, f"--preset {name}").preset(size)


def _presets() -> list[str]:
    """All names, by family."""
    known = {name: ", ".join(hf_folder.family(name).PRESETS) for name in hf_folder.families()}
    others = [f"{name}:{sizes}" for name, sizes in known.items() if name != GEMMA2]
    return [known[GEMMA2], *others]


def _of_experiment(options: argparse.Namespace, rest: list[str]) -> Source:
    for name, instead in OF_PRESETS.items():
        if getattr(options, name) is not None:
            stage = options.stage or "distill"
            other = f", or give {instead}".replace("STAGE", stage) if instead else ""
            raise ValueError(f"--{name} is for --preset: leave it out{other}")
    if options.all and (options.stage or options.search):
        raise ValueError("--all is every stage as it is: leave out --stage and --search")
    loaded, stage = load(options.experiment), options.stage or "distill"
    experiment, knobs = experiments.graph_with(loaded, rest), experiments.override(loaded, rest)
    if options.all:
        works = [
            ({"stage": recipe.kind, "models": names}, graph.work(recipe, experiment.setting))
            for names, recipe in _recipes(experiment)
        ]
    else:
        recipes = experiment.recipes().values()
        works = [({"stage": stage}, graph.largest(recipes, stage, experiment.setting))]
    programs = [
        Program(
            {"experiment": experiment.name, **title},
            on_chips(work),
            _names(knobs, options.experiment, title["stage"], work),
        )
        for title, work in works
    ]
    return Source(experiment.name, programs, experiment.mesh)


def _names(knobs: Knobs, file: str, stage: str, work: Work) -> Names:
    """What sets the work of a stage."""
    if isinstance(knobs, Experiment):
        return Names("batch_size", "accumulation", "remat", file)
    lms, training = getattr(knobs, "lms", {}), f"--{stage}.training"
    model = next((name for name, lm in lms.items() if lm == work.lm), "model")
    return Names(f"{training}.batch-size", f"{training}.accumulation", f"--{model}.remat")


def _recipes(experiment: Experiment) -> list[tuple[list[str], Any]]:
    """The programs of an experiment: the models that each trains or attacks, and one of them."""
    names = {id(recipe): name for (name, _), recipe in experiment.recipes().items()}
    found: dict[str, list[Any]] = {}
    for recipe in graph.ancestry(experiment.recipes().values()):
        if graph.is_trained(recipe):
            key = graph.group_key(recipe, experiment.setting)  # type: ignore[arg-type]
            found.setdefault(key, []).append(recipe)
    return [
        (list(dict.fromkeys(names.get(id(r), "an ancestor") for r in some)), some[0])
        for some in found.values()
    ]


def _of_presets(options: argparse.Namespace, rest: list[str]) -> Source:
    strange = [f"--{name}" for name in OF_EXPERIMENTS if getattr(options, name)] + rest
    if strange and strange[0].startswith("-"):
        raise ValueError(
            f"{strange[0]} is for an experiment's file: leave it out beside --preset, which takes "
            + ", ".join(f"--{name}" for name in OF_PRESETS)
        )
    if strange:
        raise ValueError(
            f"{strange[0]!r} beside --preset {options.preset}: give the file of an experiment or "
            "a preset, not both"
        )
    for name in ("rows", "remat"):
        if options.search and getattr(options, name) is not None:
            raise ValueError(f"--{name} beside --search, which finds it: leave out one of them")
    for name in ("length", "rows"):
        value = getattr(options, name)
        if value is not None and not 1 <= value < MOST:
            raise ValueError(f"--{name} {value}: it must be at least 1 and below 2^31")
    student = options.preset
    teacher = student if options.teacher is None else options.teacher
    lm, of_teacher = map(_preset, (student, teacher))
    if lm.vocabulary != of_teacher.vocabulary:
        raise ValueError(
            f"--preset {student} has a vocabulary of {lm.vocabulary} and --teacher {teacher} of "
            f"{of_teacher.vocabulary}: they meet there, choose two of the same"
        )
    lm = replace(lm, remat=options.remat) if options.remat is not None else lm
    training = Training(1000, options.rows or 1, AdamW(), eval_every=100)
    name = f"{student} from {teacher}"
    title = {"experiment": name, "stage": "distill", "student": student, "teacher": teacher}
    work = on_chips(distillation(lm, of_teacher, training, options.length or 2048))
    program = Program(title, work, Names("--rows", None, "--remat"))
    return Source(name, [program], sized=options.rows is not None)
