"""TensorBoard: `tensorboard --logdir WORKDIR/tensorboard` shows each member as a run.

tensorboardX has the format and, unlike TensorBoard itself, needs no package that is not here
anyway. Its SummaryWriter stays out: a thread writes, and where the disk is full it ends and the
training waits for it, for good.

What an interrupted training has written stays there, for a server that reads it would not notice
that it is gone; the start of a session says that it no longer counts.
"""

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from undo_jax.logs.log import Tags, Target, Write
from undo_jax.sinks import flatten_numbers, format_tags

try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
    from tensorboardX.record_writer import masked_crc32c
except ImportError as error:
    raise ImportError(f"sink tensorboard: {error}: pip install 'undo-jax[tensorboard]'") from error


@contextmanager
def tensorboard(target: Target) -> Iterator[Write]:
    """Each record is an event in WORKDIR/tensorboard/ARTIFACT/TAGS/, at its step."""
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
    with ExitStack() as stack:
        files = {}
        for tags in target.members:
            folder = target.folder.parent / "tensorboard" / target.folder.name / format_tags(tags)
            folder.mkdir(parents=True, exist_ok=True)
            file = files[format_tags(tags)] = stack.enter_context((folder / name).open("wb"))
            _put(file, file_version="brain.Event:2")
            _put(file, step=0, session_log=SessionLog(status=SessionLog.START))

        def write(tags: Tags, fields: Mapping[str, Any]) -> None:
            found = flatten_numbers(fields).items()
            values = [Summary.Value(tag=name, simple_value=number) for name, number in found]
            _put(files[format_tags(tags)], step=fields["step"], summary=Summary(value=values))

        yield write


def _put(file: IO[bytes], **content: Any) -> None:
    """Append an event, as a record of the TFRecord format, at once."""
    event = Event(wall_time=time.time(), **content).SerializeToString()
    length = struct.pack("<Q", len(event))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
    file.write(length + sums[0] + event + sums[1])
    file.flush()
