"""Scalars for TensorBoard."""

import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventsFile:
    """A new events file in a directory.

    Written in this thread, unlike by `SummaryWriter`: the thread of that one dies on a full disk, and then its queue
    blocks the run.
    """

    def __init__(self, directory: Path, *, purge_step: int):
        """TensorBoard drops what older files hold from `purge_step` on."""
        self._writer = EventsWriter(str(directory / "events"))
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float | int, step: int) -> None:
        self._write(step, summary=summary.scalar(name, value))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
