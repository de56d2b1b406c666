"""A student distilled from a teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from undo_jax.checks import check_function
from undo_jax.graph.recipe import Judge, Recipe, Simple, Stream, title
from undo_jax.losses import distillation
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss, Scores, table_shape


@dataclass(frozen=True)
class Distill(Simple):
    """Train the student on the teacher's logits on a stream, without labels (paper §3).

    The student has recovered once its retain score is within `tolerance` of the teacher's. Raises
    ValueError for what is no loss, a tolerance that is not positive, and vocabularies that differ.
    """

    kind: ClassVar[str] = "distill"
    role: ClassVar[str] = "distilled"
    ended: ClassVar[str] = "recovered"
    teacher: Recipe
    student: Recipe
    training: Training
    tolerance: float = 0.05
    stop_early: bool = True  # stop as soon as the student has recovered; False: all steps
    stream: str = "pretrain"
    loss: Loss = distillation
    rng_name: str = "distill"
    seed: int | None = None

    def __post_init__(self):
        check_function("loss", self.loss, "lm", "params", "refs", "batch", "key")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: it must be positive")
        if self.stop_early and not getattr(self.teacher, "scored", True):
            raise ValueError(
                "the teacher is a student that has learned nothing yet, and has no score to "
                "recover: give a trained one, or stop_early=False"
            )
        student, teacher = (table_shape(m.lm).shape[0] for m in (self.student, self.teacher))
        if student != teacher:
            raise ValueError(
                f"the student has vocabulary={student}, its teacher {teacher}: they meet at the "
                "vocabulary, make them equal"
            )

    @property
    def title(self) -> str:
        """The display name of its artifact."""
        return f"{title(self.teacher)} into {title(self.student)}"

    @property
    def lm(self) -> LM:
        return self.student.lm

    @property
    def parents(self) -> tuple[Recipe, ...]:
        return self.student, self.teacher

    @property
    def start(self) -> Recipe | None:
        return self.student

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {"train": Stream(self.stream, "distill")}

    @property
    def references(self) -> Mapping[str, Recipe]:
        return {"teacher": self.teacher}

    def ends(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> bool:
        return self.stop_early and self._recovered(judge, parents, scores)

    def facts(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> dict[str, Any]:
        if (bar := parents["teacher"].get(judge.headline[0])) is None:
            return {"recovered": None, "bar": None}
        return {"recovered": self._recovered(judge, parents, scores), "bar": bar}

    def _recovered(self, judge: Judge, parents: Mapping[str, Scores], scores: Scores) -> bool:
        retain, _ = judge.headline
        return judge.recovered(scores[retain], parents["teacher"][retain], self.tolerance)
