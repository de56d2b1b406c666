"""What a step would be with its teacher's hidden states stored (docs/decisions/0012-cache.md)."""

from dataclasses import replace
from typing import NamedTuple

from undo_jax.graph.loss_trace import traced_loss
from undo_jax.models.head_only import HeadOnly, states_like
from undo_jax.training.programs import TrainSpec
from undo_jax.types import LM

TEACHER = "teacher"  # the reference whose states are stored
STATES = "states"  # what rows carry then


def possible(work: TrainSpec) -> bool:
    """Whether a work's loss reads nothing of its teacher but its hidden states and its head."""
    if TEACHER not in work.refs:
        return False
    try:
        traced_loss(with_states(work))
    except ValueError:
        return False
    return True


def with_states(work: TrainSpec) -> TrainSpec:
    """The work on rows with its teacher's hidden states, and with only the teacher's head."""
    refs = {**work.refs, TEACHER: HeadOnly(work.refs[TEACHER])}
    return replace(work, refs=refs, batch_fields=(*work.batch_fields, STATES))


class PerToken(NamedTuple):
    """FLOPs and bytes of a token of a training; a training pass counts as three forward passes."""

    beside: float  # FLOPs, the teacher computed beside the student
    stored: float  # FLOPs, its states read
    storing: float  # FLOPs of computing them, once
    bytes: float  # of its states


def per_token(work: TrainSpec) -> PerToken | None:
    """A token of a step, with its teacher and with stored states; None if they cannot be stored."""
    if not possible(work):
        return None
    teacher, time = work.refs[TEACHER], work.row_length
    head: LM = HeadOnly(teacher)
    student_and_refs = 3 * work.lm.forward_flops(time)
    student_and_refs += sum(
        lm.forward_flops(time) for name, lm in work.refs.items() if name != TEACHER
    )
    like, forward = states_like(teacher, (1,)), teacher.forward_flops(time)
    return PerToken(
        student_and_refs + forward,
        student_and_refs + head.forward_flops(time),
        forward,
        like.size * like.dtype.itemsize,
    )
