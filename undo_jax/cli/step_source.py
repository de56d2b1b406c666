"""The step that `fit` compiles and `bench` measures: of an experiment, or between presets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from jax.sharding import Mesh
from tyro.conf import arg

from undo_jax.cli.experiment_flags import experiment_with, override
from undo_jax.cli.flags import MaybeInt, MaybeText
from undo_jax.fit.advice import Names
from undo_jax.fit.search import variant
from undo_jax.fit.step import distillation
from undo_jax.graph.model_graph import ancestry, group_key, train_spec
from undo_jax.graph.recipe import TrainedRecipe
from undo_jax.models import hf_folder
from undo_jax.models.transformer import Transformer
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import ExperimentSource, load
from undo_jax.runtime.mesh import MeshShape
from undo_jax.training.optim import AdamW
from undo_jax.training.programs import TrainSpec
from undo_jax.training.train_step import Training

DEFAULT_FAMILY = "gemma2"  # of presets that name none
SIZE_LIMIT = 2**31  # of rows, and of tokens in a row: they are counted in 32 bits
PRESET_FLAGS = {  # and the flag of an experiment that sets the same
    "teacher": "",
    "length": "--setting.row-length",
    "rows": "--STAGE.training.batch-size",
    "remat": "--model.remat",
}


def preset_names() -> list[str]:
    """Returns the names of all presets, a text for each family."""
    names = {family: ", ".join(hf_folder.family(family).PRESETS) for family in hf_folder.families()}
    sizes = names.pop(DEFAULT_FAMILY)
    return [sizes, *(f"{family}:{sizes}" for family, sizes in names.items())]


Preset = Annotated[MaybeText, arg(help="the student: " + "; ".join(preset_names()))]


@dataclass(frozen=True)
class Presets:
    """Without an experiment: a distillation between presets."""  # a heading in help

    preset: Preset = None
    teacher: MaybeText = None  # its teacher, a preset, too; the student's by default
    length: MaybeInt = None  # tokens of a row; 2048 by default
    rows: MaybeInt = None  # of a batch, over all devices; one for each data×fsdp by default
    remat: MaybeText = None  # none, dots or full; the preset's own by default


NO_PRESETS = Presets()


class StepRequest(NamedTuple):
    """The flags that say which step a command is about."""

    experiment: str | None
    stage: str | None
    all: bool
    search: bool
    presets: Presets


@dataclass(frozen=True)
class TitledStep:
    """A step, what it is called, and how a reader changes it."""

    title: Mapping[str, Any]
    spec: TrainSpec
    names: Names


@dataclass(frozen=True)
class StepSource:
    """The steps that a command is about, of one experiment or of presets."""

    name: str
    steps: Sequence[TitledStep]
    mesh: MeshShape | None = None  # the experiment's; None: presets have none
    has_rows: bool = True  # False: the number of rows follows from the mesh


def find_steps(request: StepRequest, flags: Sequence[str]) -> StepSource:
    """Returns the steps that flags ask for. Raises ValueError for flags that do not fit together.

    Args:
        request: the flags of the command itself.
        flags: the other flags, which are those of the experiment.
    """
    if request.presets.preset is None:
        return _of_experiment(request, flags)
    return _of_presets(request, flags)


def first_step(source: StepSource, mesh: Mesh) -> TitledStep:
    """Returns the first step; of presets without a number of rows, one row for each data×fsdp."""
    step = source.steps[0]
    if source.has_rows:
        return step
    remat = getattr(step.spec.lm, "remat", "none")
    return replace(step, spec=variant(step.spec, mesh, remat, 1))


def _of_experiment(request: StepRequest, flags: Sequence[str]) -> StepSource:
    stage = request.stage or "distill"
    for name, flag in PRESET_FLAGS.items():
        if getattr(request.presets, name) is not None:
            remedy = f", or give {flag}".replace("STAGE", stage) if flag else ""
            raise ValueError(f"--{name} is for --preset: leave it out{remedy}")
    if request.all and (request.stage or request.search):
        raise ValueError("--all is every stage as it is: leave out --stage and --search")
    if request.experiment is None:
        raise ValueError("which experiment? give its file, or a preset with --preset")
    loaded = load(request.experiment)
    experiment, config = experiment_with(loaded, flags), override(loaded, flags)
    if request.all:
        specs = [
            ({"stage": recipe.kind, "models": models}, train_spec(recipe, experiment.setting))
            for models, recipe in trained(experiment)
        ]
    else:
        specs = [of_stage(experiment, stage)]
    steps = [
        TitledStep(
            {"experiment": experiment.name, **title},
            spec,
            _names(config, request.experiment, title["stage"], spec),
        )
        for title, spec in specs
    ]
    return StepSource(experiment.name, steps, experiment.mesh)


def _names(config: ExperimentSource, file: str, stage: str, spec: TrainSpec) -> Names:
    """Returns what a reader sets to change the step of a stage."""
    if isinstance(config, Experiment):
        return Names("batch_size", "accumulation", "remat", file)
    lms, training = getattr(config, "lms", {}), f"--{stage}.training"
    model = next((name for name, lm in lms.items() if lm == spec.lm), "model")
    return Names(f"{training}.batch-size", f"{training}.accumulation", f"--{model}.remat")


def trained(experiment: Experiment) -> list[tuple[list[str], Any]]:
    """Returns the programs of an experiment: the models that each trains or attacks, a recipe."""
    recipes = experiment.recipes()
    names = {id(recipe): name for (name, _), recipe in recipes.items()}
    groups: dict[str, list[Any]] = {}
    for recipe in ancestry(recipes.values()):
        if isinstance(recipe, TrainedRecipe):
            groups.setdefault(group_key(recipe, experiment.setting), []).append(recipe)
    return [
        (list(dict.fromkeys(names.get(id(recipe), "an ancestor") for recipe in group)), group[0])
        for group in groups.values()
    ]


def of_stage(experiment: Experiment, stage: str) -> tuple[dict[str, Any], TrainSpec]:
    """Returns what says which program of a stage is the largest, and that program.

    That is the one with the largest model, of equal ones one that trains all of it, beside the most
    references. Raises ValueError for a stage that trains nothing.
    """
    programs = trained(experiment)
    if stage not in (kinds := list(dict.fromkeys(recipe.kind for _, recipe in programs))):
        raise ValueError(f"stage {stage!r} trains nothing: choose one of {', '.join(kinds)}")
    of_kind = [
        (models, train_spec(recipe, experiment.setting))
        for models, recipe in programs
        if recipe.kind == stage
    ]

    def size(program: tuple[list[str], TrainSpec]) -> tuple[float, bool, int]:
        spec = program[1]
        return spec.lm.forward_flops(1), spec.trains is None, len(spec.refs)

    models, spec = max(of_kind, key=size)
    return {"stage": stage, "models": models, "programs": len(of_kind)}, spec


def _of_presets(request: StepRequest, flags: Sequence[str]) -> StepSource:
    presets, student = request.presets, str(request.presets.preset)
    _check_presets(request, flags)
    teacher = student if presets.teacher is None else presets.teacher
    lm, teacher_lm = _preset(student), _preset(teacher)
    if lm.vocabulary != teacher_lm.vocabulary:
        raise ValueError(
            f"--preset {student} has a vocabulary of {lm.vocabulary} and --teacher {teacher} of "
            f"{teacher_lm.vocabulary}: they meet there, choose two of the same"
        )
    lm = replace(lm, remat=presets.remat) if presets.remat is not None else lm
    training = Training(1000, presets.rows or 1, AdamW(), eval_every=100)
    name = f"{student} from {teacher}"
    title = {"experiment": name, "stage": "distill", "student": student, "teacher": teacher}
    spec = distillation(lm, teacher_lm, training, presets.length or 2048)
    step = TitledStep(title, spec, Names("--rows", None, "--remat"))
    return StepSource(name, [step], has_rows=presets.rows is not None)


def _check_presets(request: StepRequest, flags: Sequence[str]) -> None:
    """Raises ValueError for flags that cannot stand beside --preset, and for sizes out of range."""
    of_experiments = [f"--{name}" for name in ("stage", "all") if getattr(request, name)]
    file = [] if request.experiment is None else [request.experiment]
    unexpected = [*of_experiments, *file, *flags]
    if unexpected and unexpected[0].startswith("-"):
        raise ValueError(
            f"{unexpected[0]} is for an experiment's file: leave it out beside --preset, which "
            "takes " + ", ".join(f"--{name}" for name in PRESET_FLAGS)
        )
    if unexpected:
        raise ValueError(
            f"{unexpected[0]!r} beside --preset {request.presets.preset}: give the file of an "
            "experiment or a preset, not both"
        )
    for name in ("rows", "remat"):
        if request.search and getattr(request.presets, name) is not None:
            raise ValueError(f"--{name} beside --search, which finds it: leave out one of them")
    for name in ("length", "rows"):
        value = getattr(request.presets, name)
        if value is not None and not 1 <= value < SIZE_LIMIT:
            raise ValueError(f"--{name} {value}: it must be at least 1 and below 2^31")


def _preset(name: str) -> Transformer:
    """Returns the model of a name such as llama:3.2-1B; without a family it is of Gemma-2.

    Raises ValueError for an unknown one.
    """
    family, colon, size = name.rpartition(":")
    if not colon and name not in hf_folder.family(DEFAULT_FAMILY).PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {'; '.join(preset_names())}")
    return hf_folder.family(family if colon else DEFAULT_FAMILY, f"--preset {name}").preset(size)
