"""Losses of a model on packed rows: weighted sums over tokens, accumulated in fp32."""

from jaxtyping import Array, Float

from undo_jax.ops import head
from undo_jax.types import LM, Batch, Frozen, Key, Metrics, Params, Refs, Rows

Scalar = Float[Array, ""]


def cross_entropy(lm: LM, params: Params, rows: Rows) -> Scalar:
    """Next-token cross entropy, in nats."""
    hidden, table = lm.hidden(params, rows.inputs), lm.table(params)
    return head.cross_entropy(hidden, table, rows.targets, rows.weights, lm.softcap)


def forward_kl(lm: LM, params: Params, teacher: Frozen, rows: Rows) -> Scalar:
    """KL(teacher ‖ student) at temperature 1, in nats; the two may differ in width and depth.

    No gradient reaches the teacher.
    """
    student = lm.hidden(params, rows.inputs), lm.table(params)
    of_teacher = teacher.lm.hidden(teacher.params, rows.inputs), teacher.lm.table(teacher.params)
    return head.kl_to_teacher(*student, *of_teacher, rows.weights, lm.softcap, teacher.lm.softcap)


def uniform_kl(lm: LM, params: Params, rows: Rows) -> Scalar:
    """KL(uniform ‖ model), in nats: zero when every next token is equally likely."""
    hidden, table = lm.hidden(params, rows.inputs), lm.table(params)
    return head.kl_to_uniform(hidden, table, rows.weights, lm.softcap)


def language_modelling(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
) -> tuple[Scalar, Metrics]:
    """Pretraining and the relearning attack: cross entropy on `train`."""
    return cross_entropy(lm, params, batch["train"]), {}


def distillation(
    lm: LM, params: Params, refs: Refs, batch: Batch, key: Key
) -> tuple[Scalar, Metrics]:
    """Forward KL to `teacher` on `train`, no cross-entropy term (paper §3)."""
    return forward_kl(lm, params, refs["teacher"], batch["train"]), {}
