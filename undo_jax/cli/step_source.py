"""The step that `fit` compiles and `bench` measures: of an experiment, or between presets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from jax.sharding import Mesh
from tyro.conf import arg

from undo_jax.cli import experiment as experiments
from undo_jax.cli.flags import MaybeInt, MaybeText
from undo_jax.fit.advice import Names
from undo_jax.fit.search import variant
from undo_jax.fit.step import distillation
from undo_jax.graph.model_graph import ancestry
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.graph.train_specs import group_key, train_spec
from undo_jax.models import hf_folder
from undo_jax.models.transformer import Transformer
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import ExperimentSource, load
from undo_jax.runtime.mesh import MeshShape
from undo_jax.training.optim import AdamW
from undo_jax.training.train_spec import TrainSpec
from undo_jax.training.train_step import Training

GEMMA2 = "gemma2"  # the family of presets that name none
MOST = 2**31  # rows, and tokens of a row: sizes are counted in 32 bits
OF_EXPERIMENTS = ("stage", "all")
OF_PRESETS = {  # flags, and what sets the same for an experiment
    "teacher": "",
    "length": "--setting.row-length",
    "rows": "--STAGE.training.batch-size",
    "remat": "--model.remat",
}


def presets() -> list[str]:
    """All names, by family."""
    known = {name: ", ".join(hf_folder.family(name).PRESETS) for name in hf_folder.families()}
    others = [f"{name}:{sizes}" for name, sizes in known.items() if name != GEMMA2]
    return [known[GEMMA2], *others]


Preset = Annotated[MaybeText, arg(help="the student: " + "; ".join(presets()))]


@dataclass(frozen=True)
class Presets:
    """Without an experiment: a distillation between presets."""  # a heading in help

    preset: Preset = None
    teacher: MaybeText = None  # its teacher, a preset, too; the student's by default
    length: MaybeInt = None  # tokens of a row; 2048 by default
    rows: MaybeInt = None  # of a batch, over all devices; one for each data×fsdp by default
    remat: MaybeText = None  # none, dots or full; the preset's own by default


NO_PRESETS = Presets()


class Asked(NamedTuple):
    """What is asked for, as flags say it."""

    experiment: str | None
    stage: str | None
    all: bool
    search: bool
    presets: Presets


@dataclass(frozen=True)
class Program:
    """A step, and how a reader changes it."""

    title: Mapping[str, Any]
    work: TrainSpec
    names: Names


@dataclass(frozen=True)
class Source:
    """What is asked for."""

    name: str
    programs: Sequence[Program]
    mesh: MeshShape | None = None  # its own; None: it has none
    sized: bool = True  # False: the rows are not given


def find(asked: Asked, rest: Sequence[str]) -> Source:
    """What these flags ask for. Raises ValueError for flags that do not belong together."""
    if asked.presets.preset is None:
        return _of_experiment(asked, rest)
    return _of_presets(asked, rest)


def first(source: Source, mesh: Mesh) -> Program:
    """Its first program; of presets without a number of rows, one for each data×fsdp."""
    program = source.programs[0]
    if source.sized:
        return program
    remat = getattr(program.work.lm, "remat", "none")
    return replace(program, work=variant(program.work, mesh, remat, 1))


def _preset(name: str) -> Transformer:
    """The model of a name such as llama:3.2-1B; without a family it is of Gemma-2.

    Raises ValueError for an unknown one.
    """
    family, colon, size = name.rpartition(":")
    if not colon and name not in hf_folder.family(GEMMA2).PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {'; '.join(presets())}")
    return hf_folder.family(family if colon else GEMMA2, f"--preset {name}").preset(size)


def _of_experiment(asked: Asked, rest: Sequence[str]) -> Source:
    for name, instead in OF_PRESETS.items():
        if getattr(asked.presets, name) is not None:
            stage = asked.stage or "distill"
            other = f", or give {instead}".replace("STAGE", stage) if instead else ""
            raise ValueError(f"--{name} is for --preset: leave it out{other}")
    if asked.all and (asked.stage or asked.search):
        raise ValueError("--all is every stage as it is: leave out --stage and --search")
    if asked.experiment is None:
        raise ValueError("which experiment? give its file, or a preset with --preset")
    loaded, stage = load(asked.experiment), asked.stage or "distill"
    experiment, config = (
        experiments.experiment_with(loaded, rest),
        experiments.override(loaded, rest),
    )
    if asked.all:
        works = [
            ({"stage": one.kind, "models": names}, train_spec(one, experiment.setting))
            for names, one in trained(experiment)
        ]
    else:
        works = [of_stage(experiment, stage)]
    programs = [
        Program(
            {"experiment": experiment.name, **title},
            work,
            _names(config, asked.experiment, title["stage"], work),
        )
        for title, work in works
    ]
    return Source(experiment.name, programs, experiment.mesh)


def _names(config: ExperimentSource, file: str, stage: str, work: TrainSpec) -> Names:
    """What sets the work of a stage."""
    if isinstance(config, Experiment):
        return Names("batch_size", "accumulation", "remat", file)
    lms, training = getattr(config, "lms", {}), f"--{stage}.training"
    model = next((name for name, lm in lms.items() if lm == work.lm), "model")
    return Names(f"{training}.batch-size", f"{training}.accumulation", f"--{model}.remat")


def trained(experiment: Experiment) -> list[tuple[list[str], Any]]:
    """The programs of an experiment: the models that each trains or attacks, and one recipe."""
    named = experiment.recipes()
    names = {id(recipe): name for (name, _), recipe in named.items()}
    found: dict[str, list[Any]] = {}
    for recipe in ancestry(named.values()):
        if not isinstance(recipe, TrainedRecipe):
            continue
        key = group_key(recipe, experiment.setting)
        found.setdefault(key, []).append(recipe)
    return [
        (list(dict.fromkeys(names.get(id(recipe), "an ancestor") for recipe in some)), some[0])
        for some in found.values()
    ]


def of_stage(experiment: Experiment, stage: str) -> tuple[dict[str, Any], TrainSpec]:
    """The largest program of a stage, with what says which it is.

    That is the one with the largest model, of equal ones one that trains all of it, beside the most
    references. Raises ValueError for a stage that trains nothing.
    """
    found = trained(experiment)
    if stage not in (kinds := list(dict.fromkeys(one.kind for _, one in found))):
        raise ValueError(f"stage {stage!r} trains nothing: choose one of {', '.join(kinds)}")
    own = [
        (names, train_spec(one, experiment.setting)) for names, one in found if one.kind == stage
    ]

    def size(program: tuple[list[str], TrainSpec]) -> tuple[float, bool, int]:
        work = program[1]
        return work.lm.forward_flops(1), work.trains is None, len(work.refs)

    names, work = max(own, key=size)
    return {"stage": stage, "models": names, "programs": len(own)}, work


def _of_presets(asked: Asked, rest: Sequence[str]) -> Source:
    given, preset = asked.presets, str(asked.presets.preset)
    file = [] if asked.experiment is None else [asked.experiment]
    strange = [f"--{name}" for name in OF_EXPERIMENTS if getattr(asked, name)] + [*file, *rest]
    if strange and strange[0].startswith("-"):
        raise ValueError(
            f"{strange[0]} is for an experiment's file: leave it out beside --preset, which takes "
            + ", ".join(f"--{name}" for name in OF_PRESETS)
        )
    if strange:
        raise ValueError(
            f"{strange[0]!r} beside --preset {preset}: give the file of an experiment or "
            "a preset, not both"
        )
    for name in ("rows", "remat"):
        if asked.search and getattr(given, name) is not None:
            raise ValueError(f"--{name} beside --search, which finds it: leave out one of them")
    for name in ("length", "rows"):
        value = getattr(given, name)
        if value is not None and not 1 <= value < MOST:
            raise ValueError(f"--{name} {value}: it must be at least 1 and below 2^31")
    student = preset
    teacher = student if given.teacher is None else given.teacher
    lm, of_teacher = map(_preset, (student, teacher))
    if lm.vocabulary != of_teacher.vocabulary:
        raise ValueError(
            f"--preset {student} has a vocabulary of {lm.vocabulary} and --teacher {teacher} of "
            f"{of_teacher.vocabulary}: they meet there, choose two of the same"
        )
    lm = replace(lm, remat=given.remat) if given.remat is not None else lm
    training = Training(1000, given.rows or 1, AdamW(), eval_every=100)
    name = f"{student} from {teacher}"
    title = {"experiment": name, "stage": "distill", "student": student, "teacher": teacher}
    work = distillation(lm, of_teacher, training, given.length or 2048)
    program = Program(title, work, Names("--rows", None, "--remat"))
    return Source(name, [program], sized=given.rows is not None)
