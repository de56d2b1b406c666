"""A student distilled from a teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from undo_jax.checks import check_function
from undo_jax.graph.recipe import Recipe, Stream, TrainedRecipe
from undo_jax.losses import distillation
from undo_jax.setting import Setting
from undo_jax.training.train_step import Training
from undo_jax.types import LM, Loss, Scores, table_shape


@dataclass(frozen=True)
class Distill(TrainedRecipe):
    """Train the student on the teacher's logits on a stream, without labels (paper §3).

    The student has recovered once its retain score is within `tolerance` of the teacher's. Raises
    ValueError for what is no loss, a tolerance that is not positive, and vocabularies that differ.
    """

    kind: ClassVar[str] = "distill"
    role: ClassVar[str] = "distilled"
    stop_word: ClassVar[str] = "recovered"
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
        if self.stop_early and not self.teacher.is_scored:
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
    def default_title(self) -> str:
        return f"{self.teacher.title} into {self.student.title}"

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

    @property
    def may_stop_early(self) -> bool:
        return self.stop_early

    def should_stop(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> bool:
        return self.stop_early and self._recovered(setting, parent_scores, scores)

    def summary_fields(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> dict[str, Any]:
        teacher_score = parent_scores["teacher"].get(setting.headline[0])
        if teacher_score is None:
            return {"recovered": None, "bar": None}
        recovered = self._recovered(setting, parent_scores, scores)
        return {"recovered": recovered, "bar": teacher_score}

    def _recovered(
        self, setting: Setting, parent_scores: Mapping[str, Scores], scores: Scores
    ) -> bool:
        retain, _ = setting.headline
        return setting.recovered(scores[retain], parent_scores["teacher"][retain], self.tolerance)
