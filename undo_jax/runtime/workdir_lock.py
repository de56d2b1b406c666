"""Locks on workdirs: one run at a time writes into a workdir."""

import fcntl
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax
from etils import epath

from undo_jax.runtime.atomic_files import absolute_path, is_remote
from undo_jax.runtime.processes import agree_on

PATIENCE = 60  # seconds that a run waits for another one to leave its workdir
BUSY = "another process writes into {}: wait until it has ended"


@contextmanager
def lock_workdir(workdir: epath.Path, patience: float | None = None) -> Iterator[None]:
    """Keeps other runs from writing into a workdir, as long as this process lives.

    Enter it before reading anything in the workdir. A block that fails leaves no empty folder
    behind. It works only on file systems with locks, not in buckets.

    Args:
        workdir: the folder to lock; it is made if it does not exist.
        patience: seconds to wait for another run to end; by default `PATIENCE`.

    Raises:
        OSError: on every process of this run, if another run still holds the lock then.
    """
    workdir = absolute_path(workdir)
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    seconds = PATIENCE if patience is None else patience
    if not agree_on(jax.process_index() != 0 or _acquire(workdir, seconds)):
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
    """Keeps others that lock it from writing into a folder, as long as this process lives.

    For a command that needs no devices. The folder is made if it does not exist. Raises OSError
    as `lock_workdir` does.
    """
    if not _acquire(absolute_path(folder), PATIENCE):
        raise OSError(BUSY.format(folder))


def is_locked(workdir: epath.Path) -> bool:
    """Returns whether another process holds the lock of a workdir at this moment."""
    if is_remote(workdir):
        return False
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _acquire(workdir: epath.Path, seconds: float) -> bool:
    """Locks a workdir; returns False if another process still holds it after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_remote(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            status = os.stat(workdir)
            _hold(workdir, status.st_dev, status.st_ino)
            break
        except (BlockingIOError, FileNotFoundError):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
    return True


@functools.cache
def _hold(workdir: epath.Path, device: int, inode: int) -> None:
    """Locks the folder with this inode. Raises BlockingIOError if another process holds the lock.

    Also raises it if the path is another folder by now: a run that failed may have removed this
    one, and another run made it anew.
    """
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is held while it is open
        status = os.stat(workdir)
        if (status.st_dev, status.st_ino) != (device, inode):
            raise BlockingIOError
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError | FileNotFoundError):  # else there are no locks here
            raise
