"""The base class of settings: what is retained, what is forgotten, and how models are scored."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from undo_jax.checks import check_function
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.types import LM, Metric, Metrics, Params, Scores

BatchField = Literal["weights", "segments"]


class Example(NamedTuple):
    """A question for the demo: the beginning of a document, and how it should go on."""

    prompt: str
    answer: str
    part: Literal["retain", "forget"]
    ends: bool = True  # whether the document ends after the answer


class Setting(ABC):
    """Base class of settings, which define the data streams and the scores of an experiment.

    A setting is a frozen dataclass that inherits from this class. All its fields are part of the
    fingerprint of every artifact. The abstract members must be defined; the others have defaults.
    """

    row_length: int  # T, tokens predicted in a row
    tokenizer: Any  # the one of the streams, unless `get_tokenizer` returns another one
    answers_only: bool = False  # losses count only answers and the tokens that end them
    segments: bool = False  # a sequence is a document, not a row
    lists: ClassVar[tuple[str, ...]] = ()  # names of the lists of numbers that `at_end` returns

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that are reported, by the names of their scores."""

    def get_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the streams."""
        return self.tokenizer

    @abstractmethod
    def stream(self, name: str, batch_size: int, seed: int) -> Any:
        """Returns the batches of a stream, a function of the step and the seed alone.

        Args:
            name: pretrain, oracle, retain, forget, or another stream that the setting has.
            batch_size: rows of a batch, B.
            seed: of the order of the rows.

        Returns:
            A value for which `stream[step]` is a batch: tokens, int32 [B, T+1], or a `Packed` of
            them if `batch_fields` is not empty. `stream[step, start:stop]` is some of its rows, for
            a process that needs only these.

        Raises:
            ValueError: if the setting has no stream of this name.
        """

    @abstractmethod
    def eval_data(self) -> Any:
        """Returns the arrays that `evaluate` needs, as a pytree."""

    @abstractmethod
    def evaluate(self, lm: LM, params: Params, eval_data: Any) -> Metrics:
        """Returns the scores of a model at an evaluation. Pure: it is jitted.

        Scores that are not in `metrics` are logged, but not reported.
        """

    @property
    def headline(self) -> tuple[str, str]:
        """Names of the main metric of retained and of forgotten knowledge; `at="evaluation"`."""
        return "retain", "forget"

    @property
    def batch_fields(self) -> tuple[BatchField, ...]:
        """The fields of `Packed` that the streams have beside tokens."""
        return name_batch_fields(weights=self.answers_only, segments=self.segments)

    @property
    def document_start(self) -> int | None:
        """The token that opens a segment; None for streams without segments."""
        return self.get_tokenizer().bos_id if self.segments else None

    @property
    def row_lengths(self) -> Mapping[str, int]:
        """Row lengths of the streams that have another one than `row_length`, by stream name."""
        return {}

    def recovered(self, student: float, teacher: float, tolerance: float) -> bool:
        """Whether a student has recovered its teacher's main retain score.

        By default a score that should be high may be lower by less than `tolerance` (absolute, as
        in the official code), and a loss may be higher by less than `tolerance` times the teacher's
        (relative, as in the paper).
        """
        if self.metrics[self.headline[0]].higher_is_better:
            return teacher - student < tolerance
        return student - teacher < tolerance * teacher

    def at_end(self, lm: LM, params: Params) -> Mapping[str, Any]:
        """Returns scores of the metrics with `at="end"`, and the lists of numbers in `lists`.

        It is called once a model is finished, on the host, in every process and with the mesh set.
        It may do what cannot be jitted, e.g. judge generated text or call another program.
        """
        return {}

    def compare(self, model: Mapping[str, Any], oracle: Mapping[str, Any] | None) -> Scores:
        """Returns scores of the metrics with `at="comparison"`.

        Args:
            model: the model's scores and lists, by name.
            oracle: those of the oracle; None: there is no oracle, and scores that need one are
                left out.
        """
        return {}

    def examples(self) -> Sequence[Example]:
        """Returns a few questions of each part, for the demo."""
        return ()


def check_stream(name: str, names: Iterable[str]) -> None:
    """Raises ValueError if a stream's name is not among those that a setting has."""
    if name not in (names := list(names)):
        raise ValueError(f"no stream {name!r}: choose one of {', '.join(names)}")


def name_batch_fields(*, weights: bool, segments: bool) -> tuple[BatchField, ...]:
    """Returns the names of the fields that are present."""
    present: dict[BatchField, bool] = {"weights": weights, "segments": segments}
    return tuple(name for name, is_present in present.items() if is_present)


def check_metrics(setting: Setting) -> None:
    """Raises ValueError for invalid metrics, and for a headline that does not name two of them."""
    metrics = setting.metrics
    for name, metric in metrics.items():
        if not isinstance(name, str) or not isinstance(metric, Metric):
            raise ValueError(f"metrics: {name!r} is {metric!r}: give Metric(label, ...) by names")
        if metric.at == "end" and type(setting).at_end is Setting.at_end:
            raise ValueError(f"metric {name} is taken at the end: give the setting an at_end(...)")
        if metric.at == "end":
            check_function("the setting's at_end", setting.at_end, "lm", "params")
        if metric.at == "comparison" and type(setting).compare is Setting.compare:
            raise ValueError(f"metric {name} compares: give the setting a compare(model, oracle)")
    if len({*setting.headline}) != 2:
        raise ValueError(f"headline={setting.headline}: give the names of two metrics")
    for name in setting.headline:
        if name not in metrics or metrics[name].at != "evaluation":
            choices = ", ".join(n for n, metric in metrics.items() if metric.at == "evaluation")
            raise ValueError(
                f"headline names {name!r}: choose a metric with at='evaluation': {choices}"
            )


def check_score_names(scores: Iterable[str], names: Iterable[str]) -> list[str]:
    """Returns `names` as a list. Raises ValueError if `scores` lacks one of them."""
    for name in (names := list(names)):
        if name not in scores:
            raise ValueError(
                f"the setting gives no score {name!r}, but {', '.join(scores) or 'none'}: add it, "
                "or remove it from metrics"
            )
    return names
