"""TensorBoard: `tensorboard --logdir WORKDIR/tensorboard` shows each trial as a run.

tensorboardX has the file format and, unlike TensorBoard itself, needs no further packages. Its
SummaryWriter is not used: it writes in a thread, which ends when the disk is full, and then the
training waits for it forever.

The files of an interrupted training stay, because a server that has read them would not notice
that they are gone; the start of a new session tells it to drop their records.
"""

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from undo_jax.logs.sink import Tags, Target, Write, flatten_numbers, format_tags
from undo_jax.runtime.install import install_command

try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
    from tensorboardX.record_writer import masked_crc32c
except ImportError as error:
    raise ImportError(f"sink tensorboard: {error}: {install_command('tensorboard')}") from error


@contextmanager
def tensorboard(target: Target) -> Iterator[Write]:
    """Writes each record as an event in WORKDIR/tensorboard/ARTIFACT/TAGS/, at its step."""
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
    with ExitStack() as stack:
        files = {}
        for tags in target.members:
            folder = target.folder.parent / "tensorboard" / target.folder.name / format_tags(tags)
            folder.mkdir(parents=True, exist_ok=True)
            file = files[format_tags(tags)] = stack.enter_context((folder / name).open("wb"))
            _write_event(file, file_version="brain.Event:2")
            _write_event(file, step=0, session_log=SessionLog(status=SessionLog.START))

        def write(tags: Tags, fields: Mapping[str, Any]) -> None:
            numbers = flatten_numbers(fields).items()
            values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers]
            _write_event(
                files[format_tags(tags)], step=fields["step"], summary=Summary(value=values)
            )

        yield write


def _write_event(file: IO[bytes], **content: Any) -> None:
    """Appends an event, as a record of the TFRecord format, and flushes it."""
    event = Event(wall_time=time.time(), **content).SerializeToString()
    length = struct.pack("<Q", len(event))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
    file.write(length + checksums[0] + event + checksums[1])
    file.flush()
