"""Flags of an experiment: the scalars of its dataclasses, and of the functions in them."""

import contextlib
import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import NoneType, UnionType

from tyro.conf import AvoidSubcommands, Fixed, arg

from undo_jax.cli.flags import parse, plain, sentence
from undo_jax.runner.experiment import Experiment
from undo_jax.runner.load_experiment import ExperimentSource, load
from undo_jax.runtime.mesh import parse_mesh

DESCRIPTION = "Scalars of the experiment, with the values that its file gives them."
FIRST_LINE = "__firstlineno__"  # of a class's source, since Python 3.13
GRAPH_FIELDS = ("name", "seeds", "together", "mesh", "saving")  # flags of a hand-written graph
SCALARS = (int, float, bool, str, NoneType)


def load_with_flags(file: str, mesh: str | None, flags: Sequence[str]) -> Experiment:
    """Returns the experiment in a file, with scalars set by flags; see `experiment_with`.

    Args:
        file: the path of the experiment's Python file.
        mesh: the value of the flag --mesh, e.g. data=4; None: the file's own mesh.
        flags: those that set scalars.
    """
    source: typing.Any = load(file)
    if mesh is not None:
        source = dataclasses.replace(source, mesh=parse_mesh(mesh))
    return experiment_with(source, flags)


def experiment_with(experiment: ExperimentSource, flags: Sequence[str]) -> Experiment:
    """Returns the experiment's graph with scalars set by flags.

    Raises ValueError for a mistake in the flags. The message names a line of the experiment's file
    only if the file has no graph without the flags either.
    """
    try:
        return override(experiment, flags).experiment()
    except ValueError as error:
        if not flags or not _has_graph(experiment):
            raise
        raise ValueError(str(error)) from None


def _has_graph(experiment: ExperimentSource) -> bool:
    """Whether the experiment has a graph without flags: e.g. the folders it names exist."""
    try:
        experiment.experiment()
    except Exception:
        return False
    return True


def override(
    experiment: ExperimentSource, flags: Sequence[str], program: str = "undo-jax run"
) -> ExperimentSource:
    """Returns the experiment with scalars set by flags. Raises ValueError for a mistake in them.

    A graph that is written by hand has flags for its name, seeds, mesh and saves alone.
    """
    names = GRAPH_FIELDS if isinstance(experiment, Experiment) else None
    defaults = _flagged(experiment, names)
    try:
        parsed = parse(
            type(defaults),
            [*flags],
            program,
            default=defaults,
            description=DESCRIPTION,
            config=(AvoidSubcommands,),
        )
    except ValueError as error:
        if names is None or not str(error).startswith("Unrecognized"):
            raise
        raise ValueError(
            f"{error}: the file's `experiment` is an Experiment, a finished graph, in which only "
            f"{', '.join(names)} have flags; change other values in the file, by `replace`"
        ) from error
    return _rebuilt(experiment, parsed)


def show_flags(file: str, program: str) -> None:
    """Print the flags of an experiment."""
    override(load(file), ["--help"], f"{program} EXPERIMENT")


def _flagged(value: typing.Any, names: Sequence[str] | None = None) -> typing.Any:
    """Returns a copy of a dataclass that the parser makes flags of.

    Each field has the type of its value, so a field whose type is a protocol has the flags of its
    value. Only fields in `names` have flags (None: all). The copy's class checks nothing, and
    points to the source of the original, where the parser reads the comments beside fields.
    """
    kind = type(value)
    hints = typing.get_type_hints(kind)
    parts = {}
    for field in dataclasses.fields(value):
        part, hint = getattr(value, field.name), hints[field.name]
        fixed = names is not None and field.name not in names
        parts[field.name] = (part, Fixed[hint]) if fixed else _flagged_part(part, hint)
    return _dataclass(kind, parts, (kind,), {"__post_init__": lambda self: None})


def _flagged_part(part: typing.Any, hint: typing.Any) -> tuple[typing.Any, typing.Any]:
    """Returns what the parser gets as the default and as the type of a field or argument."""
    if dataclasses.is_dataclass(part):
        part = _flagged(part)
    elif _is_function(part) and (arguments := _flagged_arguments(part)):
        part = arguments
    else:
        return part, plain(hint, part)
    return part, type(part)


def _flagged_arguments(function: Callable) -> typing.Any:
    """Returns a dataclass of the keyword arguments of a function that have flags; None without."""
    source = _unwrapped(function)
    hints: dict[str, typing.Any] = {}
    with contextlib.suppress(Exception):  # annotations of a user that cannot be evaluated
        hints = typing.get_type_hints(source)
    parts = {}
    for name, default in _keywords(function).items():
        hint = _scalar_type(hints.get(name, type(default)))
        if dataclasses.is_dataclass(default) or _is_function(default):
            default, hint = _flagged_part(default, None)
            if not dataclasses.is_dataclass(default):
                continue  # a function without flags
        elif hint in (None, NoneType) or not isinstance(default, (*SCALARS, tuple)):
            continue
        else:
            hint = plain(hint, default)
        parts[name] = default, typing.Annotated[hint, arg(help=_argument_help(source, name))]
    return _dataclass(source, parts) if parts else None


def _dataclass(
    source: typing.Any,
    parts: Mapping[str, tuple[typing.Any, typing.Any]],
    bases: tuple[type, ...] = (),
    namespace: Mapping[str, typing.Any] | None = None,
) -> typing.Any:
    """Returns an instance of a new dataclass: `parts` has the value and the type of each field."""
    fields = [
        (name, hint, dataclasses.field(default_factory=partial(_same, value)))
        for name, (value, hint) in parts.items()
    ]
    shape = dataclasses.make_dataclass(
        source.__name__,
        fields,
        bases=bases,
        namespace={"__doc__": sentence(source.__doc__), **(namespace or {})},
        frozen=True,
        eq=False,
    )
    # Python 3.12 and later: `make_dataclass` sets `__module__`; 3.13: setting it drops the line.
    shape.__module__, shape.__qualname__ = source.__module__, source.__qualname__
    if FIRST_LINE in vars(source):
        setattr(shape, FIRST_LINE, vars(source)[FIRST_LINE])
    return shape()


def _same(value: typing.Any) -> typing.Any:
    return value


def _is_function(value: typing.Any) -> bool:
    return inspect.isroutine(_unwrapped(value))


def _unwrapped(function: typing.Any) -> typing.Any:
    """Returns the function of a partial; a function itself."""
    return function.func if isinstance(function, partial) else function


def _keywords(function: Callable) -> dict[str, typing.Any]:
    """Returns the keyword-only arguments of a function that have a value, by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in, or a partial of what does not fit
        return {}
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def _scalar_type(hint: typing.Any) -> typing.Any:
    """Returns what a flag can parse of a type, e.g. float of `float | Array`; None for nothing."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        scalars = [scalar for scalar in map(_scalar_type, options) if scalar is not None]
        return typing.Union[tuple(scalars)] if {*scalars} - {NoneType} else None  # noqa: UP007
    if origin is tuple:
        return hint if all(option in (*SCALARS, ...) for option in options) else None
    return hint if hint in SCALARS or origin is typing.Literal else None


def _argument_help(function: Callable, name: str) -> str:
    """Returns the help of an argument: of the docstring's Args, the comment beside it, or whose."""
    entry = re.search(rf"(?ms)^ *{name}: (.*?)(?=\n *\w+: |\n\n|\Z)", function.__doc__ or "")
    if entry:
        return sentence(entry[1])
    with contextlib.suppress(OSError, TypeError):  # there is no source
        comment = re.search(rf"(?m)^\s*{name}\b[^#\n]*# *(\S+ .*)$", inspect.getsource(function))
        if comment:
            return sentence(comment[1])
    return f"argument of {function.__name__}"


def _rebuilt(value: typing.Any, parsed: typing.Any) -> typing.Any:
    """Returns the value with what the parser changed in `parsed`, the copy made by `_flagged`.

    What did not change is the same object; a function with changed arguments becomes a partial.
    """
    if not dataclasses.is_dataclass(parsed):
        return parsed
    is_function = _is_function(value)
    keywords = _keywords(value) if is_function else {}
    changes = {}
    for field in dataclasses.fields(parsed):
        before = keywords[field.name] if is_function else getattr(value, field.name)
        after = _rebuilt(before, getattr(parsed, field.name))
        if after is not before and after != before:
            changes[field.name] = after
    if not changes:
        return value
    if not is_function:
        return dataclasses.replace(value, **changes)
    # A partial of a partial stays nested if anything has been stored on the inner one.
    args, before = (value.args, value.keywords) if isinstance(value, partial) else ((), {})
    return partial(_unwrapped(value), *args, **{**before, **changes})
