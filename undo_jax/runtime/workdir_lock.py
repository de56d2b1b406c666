"""One run at a time writes into a workdir."""

import fcntl
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from undo_jax.runtime.atomic_files import absolute_path, is_remote

PATIENCE = 60  # seconds that a run waits for another one to leave its workdir
BUSY = "another process writes into {}: wait until it has ended"


@contextmanager
def lock_workdir(workdir: epath.Path, patience: float | None = None) -> Iterator[None]:
    """Keep other runs from writing into a workdir, as long as this process lives.

    Enter it before reading anything there. A block that fails leaves no empty folder behind. It
    works only on file systems with locks, not in buckets. Raises OSError, on every process of this
    run, where another run still holds the lock after `patience` seconds, by default `PATIENCE`.
    """
    workdir = absolute_path(workdir)
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    seconds = PATIENCE if patience is None else patience
    taken = jax.process_index() == 0 and _taken(workdir, seconds)
    if jax.process_count() > 1:
        taken = bool(multihost_utils.broadcast_one_to_all(np.array(taken)))
    if taken:
        raise OSError(BUSY.format(workdir) + ", or give another workdir")
    try:
        yield
    except BaseException:
        if jax.process_index() == 0 and not is_remote(workdir):
            with suppress(OSError):  # it is not empty, or gone
                for folder in missing:
                    os.rmdir(folder)
        raise


def lock_folder(folder: epath.Path) -> None:
    """Keep others that hold it from writing into a folder, as long as this process lives.

    For a command that needs no devices. The folder is made. Raises OSError as `claimed` does.
    """
    if _taken(absolute_path(folder), PATIENCE):
        raise OSError(BUSY.format(folder))


def _taken(workdir: epath.Path, seconds: float) -> bool:
    """Lock a workdir; whether another process still holds it after so many seconds."""
    end = time.monotonic() + seconds
    while not is_remote(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            found = os.stat(workdir)
            _hold(workdir, found.st_dev, found.st_ino)
            break
        except (BlockingIOError, FileNotFoundError):
            if time.monotonic() > end:
                return True
            time.sleep(0.2)
    return False


def is_locked(workdir: epath.Path) -> bool:
    """Whether another process writes into a workdir at this moment, as far as a lock tells."""
    if is_remote(workdir):
        return False
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(descriptor)
    return False


@functools.cache
def _hold(workdir: epath.Path, device: int, inode: int) -> None:
    """Lock the folder with this inode. Raises BlockingIOError if another process holds the lock.

    Also where the path is another folder by now: a run that failed may have removed this one, and
    another run made it anew.
    """
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is held while it is open
        found = os.stat(workdir)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:  # no locks here
        os.close(descriptor)
