"""Checkpoints of a training loop ("saves"), from which it resumes.

FOLDER/STEP/    written under a temporary name and then renamed, so that no partial save is read
    state/      arrays; restored onto any mesh
    notes/      JSON: the rest of the loop's state, and hashes of both
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from undo_jax.logs.log import console
from undo_jax.runtime import signals
from undo_jax.runtime.atomic_files import (
    DiskFullError,
    absolute_path,
    add_checksum,
    fsync_tree,
    report_full_disk,
    verify_checksum,
)
from undo_jax.runtime.preemption import Stop
from undo_jax.runtime.processes import agree_on
from undo_jax.store.array_digest import digest


@dataclass(frozen=True)
class CheckpointPolicy:
    """How often a training loop is saved. It is also saved when it is asked to stop.

    Args:
        every: steps between two points at which the loop may be saved.
        minutes: minutes since the last save before the next; 0 saves at every such point.
        keep: number of saves to keep; older ones are deleted.

    Raises:
        ValueError: for values out of range.
    """

    every: int = 10  # steps between two points at which it may be saved
    minutes: float = 5.0  # since the last save, at least; 0 saves at every such point
    keep: int = 2  # number of saves

    def __post_init__(self):
        if self.every < 1 or self.keep < 1 or not self.minutes >= 0:
            raise ValueError(
                f"every={self.every}, minutes={self.minutes}, keep={self.keep}: every and keep "
                "must be at least 1, minutes at least 0"
            )


class SavedState(NamedTuple):
    """The state of a loop before `step`."""

    step: int
    state: Any  # a pytree of arrays
    notes: Any  # JSON


class TrainCheckpoints:
    """Writes and reads the saves of one training loop.

    Args:
        folder: the folder of the saves.
        policy: when to save, and how many saves to keep.
        stop: whether the loop has been asked to stop.
        last: False if another loop follows, so that the state at the end is saved, too.
    """

    def __init__(self, folder: epath.Path, policy: CheckpointPolicy, stop: Stop, last: bool = True):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=policy.keep, cleanup_tmp_directories=True, save_root_metadata=False
        )
        self.folder, self.policy, self.stop, self.last = absolute_path(folder), policy, stop, last
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.step, self.time = 0, time.monotonic()  # of the last save, at first of the start

    def restore(self, like: Callable[[Any], Any]) -> SavedState | None:
        """Returns the newest save that can be read, None if there is none.

        A save that cannot be read is renamed, and reported in a line.

        Args:
            like: returns the shapes and shardings of the state, from the notes.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                checked = verify_checksum(self._read(step, notes=ocp.args.JsonRestore()))
                notes = checked["notes"]
                state = self._read(step, state=ocp.args.StandardRestore(like(notes)))
                if digest(state) != checked["state"]:
                    raise ValueError("its arrays are not those that were saved")
            except Exception as error:  # Orbax and TensorStore raise many types
                signals.reraise_swallowed()
                aside = self.folder / f"unreadable-{step}"
                console.print(
                    f"cannot read a save, renamed to {aside}: {_first_line(error)}", soft_wrap=True
                )
                self._set_aside(step, aside)
                continue
            self.step, self.time = step, time.monotonic()
            return SavedState(step, state, notes)
        return None

    def save_if_due(self, step: int, capture: Callable[[], tuple[Any, Any]]) -> None:
        """Saves before a step if a save is due, and stops the loop if it has been asked to stop.

        Args:
            step: the step that comes next.
            capture: returns the state and the notes to save.

        Raises:
            Preempted: if SIGTERM has asked to stop; everything is saved then.
            KeyboardInterrupt: the same, after Ctrl-C.
            OSError: if saving fails.
        """
        stops = self.stop.is_requested()
        if step > self.step and (stops or self._is_due(step)):
            self.save(step, *capture())
        if stops:
            self.close()
            self.stop.leave(f"saved at step {self.step}" if self.step else "before the first step")

    def save_at_end(self, step: int, capture: Callable[[], tuple[Any, Any]]) -> None:
        """Saves after the last step unless `last`. Raises OSError if saving fails."""
        if step > self.step and not self.last:
            self.save(step, *capture())

    def save(self, step: int, state: Any, notes: Any) -> None:
        """Starts a save; when it is complete, all but the newest `policy.keep` are deleted.

        Raises OSError if this or the previous save failed.
        """
        checked = add_checksum({"notes": notes, "state": digest(state)})
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(checked)
        )
        with self._report_failure():
            self._flush()
            self.manager.save(step, args=content, force=True)
        self.step, self.time = step, time.monotonic()

    def close(self) -> None:
        """Waits for the last save. Raises OSError if it failed."""
        with self._report_failure():
            try:
                self._flush()
            finally:
                self.manager.close()

    def _flush(self) -> None:
        """Waits for the previous save, and flushes it to disk."""
        self.manager.wait_until_finished()
        if self.step and jax.process_index() == 0:
            fsync_tree(self.folder)

    def _is_due(self, step: int) -> bool:
        if step % self.policy.every:
            return False
        is_late = time.monotonic() - self.time >= 60 * self.policy.minutes
        return bool(agree_on(is_late)) if self.policy.minutes else is_late  # one clock decides

    def _read(self, step: int, **part: Any) -> Any:
        (name,) = part
        return self.manager.restore(step, args=ocp.args.Composite(**part))[name]

    def _set_aside(self, step: int, aside: epath.Path) -> None:
        if jax.process_index() == 0:
            if aside.exists():
                aside.rmtree()
            (self.folder / str(step)).rename(aside)
        self.manager.reload()

    @contextmanager
    def _report_failure(self) -> Iterator[None]:
        try:
            with report_full_disk(self.folder):
                yield
        except DiskFullError:
            raise
        except Exception as error:
            signals.reraise_swallowed()
            raise OSError(
                f"cannot save to {self.folder}: {_first_line(error)}; older saves are intact, and "
                "the same command goes on from the last of them"
            ) from error


@contextmanager
def open_checkpoints(
    folder: epath.Path, policy: CheckpointPolicy, stop: Stop, last: bool = True
) -> Iterator[TrainCheckpoints]:
    """Opens the saves of one loop in a folder; they are complete when the block ends."""
    checkpoints = TrainCheckpoints(folder, policy, stop, last)
    try:
        yield checkpoints
    except Exception:
        with suppress(OSError):
            checkpoints.close()
        raise
    checkpoints.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
