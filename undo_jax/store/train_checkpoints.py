"""Checkpoints of a training under way ("saves"), from which it resumes.

FOLDER/STEP/    written under another name and then renamed, so that no partial save is read
    state/      arrays; restored onto any mesh
    notes/      JSON: the rest of the loop's state, and hashes of both
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

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
from undo_jax.store.array_digest import digest


@dataclass(frozen=True)
class CheckpointPolicy:
    """How often a loop is saved. It is also saved when it is asked to stop.

    Raises ValueError for values out of range.
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
    state: Any
    notes: Any


class TrainCheckpoints:
    """The saves of one loop: writes and reads them.

    If `last` is False, another loop follows, and the state at the end is saved, too.
    """

    def __init__(self, folder: epath.Path, saving: CheckpointPolicy, stop: Stop, last: bool = True):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=saving.keep, cleanup_tmp_directories=True, save_root_metadata=False
        )
        self.folder, self.saving, self.stop, self.last = absolute_path(folder), saving, stop, last
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.step, self.time = 0, time.monotonic()  # of the last save, at first of the start

    def restore(self, like: Callable[[Any], Any]) -> SavedState | None:
        """The newest save that can be read; `like(notes)` gives its state's shapes and shardings.

        A save that cannot be read is renamed, and reported in a line.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                known = verify_checksum(self._read(step, notes=ocp.args.JsonRestore()))
                notes = known["notes"]
                state = self._read(step, state=ocp.args.StandardRestore(like(notes)))
                if digest(state) != known["state"]:
                    raise ValueError("its arrays are not those that were saved")
            except Exception as error:  # Orbax and TensorStore raise many types
                signals.reraise_swallowed()
                aside = self.folder / f"unreadable-{step}"
                console.print(f"cannot read a save, now {aside}: {_line(error)}", soft_wrap=True)
                self._set_aside(step, aside)
                continue
            self.step, self.time = step, time.monotonic()
            return SavedState(step, state, notes)
        return None

    def between(self, step: int, capture: Callable[[], tuple[Any, Any]]) -> None:
        """Before a step: save the state and notes that `capture` returns, if a save is due.

        Raises Preempted or KeyboardInterrupt, once all is saved, if asked to stop; OSError if
        saving fails.
        """
        leaving = self.stop.asked()
        if step > self.step and (leaving or self._due(step)):
            self.save(step, *capture())
        if leaving:
            self.close()
            self.stop.leave(f"saved at step {self.step}" if self.step else "before the first step")

    def end(self, step: int, capture: Callable[[], tuple[Any, Any]]) -> None:
        """After the last step: save unless `last`. Raises OSError if saving fails."""
        if step > self.step and not self.last:
            self.save(step, *capture())

    def save(self, step: int, state: Any, notes: Any) -> None:
        """Start a save; when it is complete, all but the newest `Saving.keep` are deleted.

        Raises OSError if this or the previous save failed.
        """
        known = add_checksum({"notes": notes, "state": digest(state)})
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(known)
        )
        with self._failing():
            self._flush()
            self.manager.save(step, args=content, force=True)
        self.step, self.time = step, time.monotonic()

    def close(self) -> None:
        """Wait for the last save. Raises OSError if it failed."""
        with self._failing():
            try:
                self._flush()
            finally:
                self.manager.close()

    def _flush(self) -> None:
        """Wait for the previous save, and flush it to the disk."""
        self.manager.wait_until_finished()
        if self.step and jax.process_index() == 0:
            fsync_tree(self.folder)

    def _due(self, step: int) -> bool:
        if step % self.saving.every:
            return False
        late = time.monotonic() - self.time >= 60 * self.saving.minutes
        if jax.process_count() == 1 or not self.saving.minutes:
            return late
        return bool(multihost_utils.broadcast_one_to_all(np.array(late)))  # one clock decides

    def _read(self, step: int, **item: Any) -> Any:
        (name,) = item
        return self.manager.restore(step, args=ocp.args.Composite(**item))[name]

    def _set_aside(self, step: int, aside: epath.Path) -> None:
        if jax.process_index() == 0:
            if aside.exists():
                aside.rmtree()
            (self.folder / str(step)).rename(aside)
        self.manager.reload()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            with report_full_disk(self.folder):
                yield
        except DiskFullError:
            raise
        except Exception as error:
            signals.reraise_swallowed()
            raise OSError(
                f"cannot save to {self.folder}: {_line(error)}; older saves are intact, and the "
                "same command goes on from the last of them"
            ) from error


@contextmanager
def open_checkpoints(
    folder: epath.Path, saving: CheckpointPolicy, stop: Stop, last: bool = True
) -> Iterator[TrainCheckpoints]:
    """The saves of one loop in a folder; complete when the block ends."""
    saves = TrainCheckpoints(folder, saving, stop, last)
    try:
        yield saves
    except Exception:
        with suppress(OSError):
            saves.close()
        raise
    saves.close()


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
