"""TensorBoard as a tracker."""

import json
import time
from collections.abc import Mapping

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mvlm_jax.training.tracker import Examples, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Scalars, images, texts and the config's values as hyperparameters, in a new events file of the run's directory.

    It is written in this thread. The thread of tensorboardX's `SummaryWriter` dies on a full disk, and its queue then
    blocks the run.
    """

    def __init__(self, run: TrackedRun):
        self._file = EventsWriter(str(run.directory / "events"))
        # TensorBoard ignores what older files hold of steps from here on.
        self._add(run.resumed_step + 1, session_log=SessionLog(status=SessionLog.START))
        _, start, _ = summary.hparams({name: _hparam(value) for name, value in run.config.items()}, {})
        self._add(0, summary=start)
        self._file.flush()

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        for name, value in values.items():
            self._add(step, summary=summary.scalar(name, value))
        self._file.flush()

    def show(self, step: int, examples: Examples) -> None:
        for name, image in examples.images.items():
            self._add(step, summary=summary.image(name, image, dataformats="HWC"))
        for name, text in examples.texts.items():
            self._add(step, summary=summary.text(name, text))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, **content) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), **content))


def _hparam(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
