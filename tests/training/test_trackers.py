"""Trackers: what they are told, and that nothing they do ends a run."""

import re
import struct
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.errors import UserError
from mvlm_jax.training.environment import read_environment
from mvlm_jax.training.loop import train
from mvlm_jax.training.tensorboard import TensorBoard
from mvlm_jax.training.tracker import Examples, TrackedRun, Tracker, Trackers

ROOT = Path(__file__).parents[2]
RUN = TrackedRun(directory=Path("run"), identity="0123", resumed_step=0, config={"steps": 9}, environment={})
EXAMPLES = Examples({"examples/picture": np.zeros((4, 6, 3), np.uint8)}, {"examples/text": "a | b"})


def events(directory):
    """What TensorBoard reads: records of a length, its checksum, an event and its checksum."""
    for path in sorted(directory.glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            [length] = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16


class Recorder(Tracker):
    def __init__(self, run):
        self.run, self.steps, self.shown, self.closed = run, [], [], False

    def log(self, step, values):
        self.steps.append(step)

    def show(self, step, examples):
        self.shown.append((step, examples))

    def close(self):
        self.closed = True


class Failing(Recorder):
    def log(self, step, values):
        super().log(step, values)
        raise OSError("no route to host")


@pytest.fixture
def own(monkeypatch):
    """A module on the path, whose trackers are kept in it."""
    module = types.ModuleType("own_tracker")
    module.opened = []
    for kind in (Recorder, Failing):
        setattr(module, kind.__name__, lambda run, kind=kind: module.opened.append(kind(run)) or module.opened[-1])
    monkeypatch.setitem(sys.modules, "own_tracker", module)
    return module


def test_a_tracker_of_ones_own_gets_every_line_and_examples_and_is_closed(tmp_path, own):
    devices = []

    def illustrate(params):
        devices.append({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)})
        return EXAMPLES

    config = toy_config(**{"log.tracker": "own_tracker:Recorder", "eval.every": 3})
    train(ToyTask(), config=config, workdir=tmp_path, illustrate=illustrate)
    [tracker] = own.opened
    assert tracker.steps == [line["step"] for line in metrics_lines(tmp_path)] and tracker.closed
    assert tracker.shown == [(3, EXAMPLES), (6, EXAMPLES), (9, EXAMPLES)]
    assert devices == [{1}] * 3  # one copy of the parameters is enough
    assert (tracker.run.directory, tracker.run.resumed_step) == (tmp_path, 0)
    assert tracker.run.config["batch_size"] == 16 and tracker.run.environment["devices"] > 0
    assert tracker.run.identity == read_environment(tmp_path)["run"]
    # TensorBoard has them too.
    pictures = [event.step for event in events(tmp_path) for value in event.summary.value if value.HasField("image")]
    assert pictures == [3, 6, 9]
    # A finished run has nothing to tell.
    train(ToyTask(), config=config, workdir=tmp_path)
    assert len(own.opened) == len(read_environment(tmp_path)["starts"]) == 1


def test_neither_a_tracker_that_fails_nor_examples_that_cannot_be_made_end_a_run(tmp_path, own, caplog):
    def illustrate(params):
        raise ValueError("no image")

    config = toy_config(**{"log.tracker": "own_tracker:Failing"})
    outcome = train(ToyTask(), config=config, workdir=tmp_path, illustrate=illustrate)
    assert outcome.results["toy-val"] and metrics_lines(tmp_path)[-1]["step"] == 9
    assert own.opened[0].steps == [1, 2, 3] and not own.opened[0].closed
    told = [record.message for record in caplog.records if "has failed" in record.message]
    assert told[0] == "the tracker Failing has failed (OSError: no route to host)"
    assert told[2].startswith("the tracker Failing has failed 3 times in a row, and is left out from here on (")
    assert len(told) == 3 and "examples cannot be shown (ValueError: no image)" in caplog.text


def test_a_tracker_that_cannot_be_opened_is_one_warning(caplog):
    def broken(run):
        raise TimeoutError("90 s")

    trackers = Trackers([broken, Recorder], run=RUN)
    trackers.log(1, {})
    [only] = trackers._used
    assert only.steps == [1]
    assert "the tracker broken cannot be opened, and the run goes on without it (TimeoutError: 90 s)" in caplog.text


def test_a_failure_that_passes_is_forgotten():
    class Shaky(Recorder):
        def log(self, step, values):
            super().log(step, values)
            if step % 3:
                raise OSError

    tracker = Shaky(RUN)
    trackers = Trackers([lambda run: tracker], run=RUN)
    for step in range(1, 8):
        trackers.log(step, {})
    assert tracker.steps == [*range(1, 8)]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"log.wandb": "mvlm"}, "config.log.wandb='mvlm' needs wandb, .*: pip install 'mvlm-jax.wandb.'"),
        ({"log.tracker": "own_tracker"}, "config.log.tracker='own_tracker' is not of the form module:name"),
        ({"log.tracker": "own_tracker:None"}, "cannot be imported .AttributeError: "),
        ({"log.tracker": "own_tracker:opened"}, "config.log.tracker='own_tracker:opened' is a list; give module:name"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_written(tmp_path, own, monkeypatch, fields, message):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UserError, match=message):
        train(ToyTask(), config=toy_config(**fields), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_tracker_of_the_documentation_is_one(monkeypatch):
    told = []
    mlflow = types.ModuleType("mlflow")
    for name in ("start_run", "log_metrics", "end_run"):
        setattr(mlflow, name, lambda *values, _name=name, **options: told.append((_name, *values, options)))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    [code] = re.findall(r"```python\n(import mlflow.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    with Trackers([names["Mlflow"]], run=RUN) as trackers:
        trackers.log(5, {"loss/total": 0.5})
        trackers.show(5, EXAMPLES)
    assert told == [
        ("start_run", {"run_name": "run"}),
        ("log_metrics", {"loss/total": 0.5}, {"step": 5}),
        ("end_run", {}),
    ]


def test_weights_and_biases_gets_the_run_under_one_identity_at_each_start(tmp_path, monkeypatch):
    class FakeRun:
        logged, finished = [], 0

        def define_metric(self, name, *, step_metric):
            assert (name, step_metric) == ("*", "step")

        def log(self, values):
            self.logged.append(values)

        def finish(self):
            FakeRun.finished += 1

    starts = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: starts.append(options) or FakeRun()
    wandb.Settings = lambda **options: options
    wandb.Image = wandb.Html = lambda content: content
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt

    config = toy_config(**{"log.wandb": "mvlm"})
    with pytest.raises(KeyboardInterrupt):
        train(ToyTask(before_batch=stop), config=config, workdir=tmp_path)
    train(ToyTask(), config=config, workdir=tmp_path, illustrate=lambda params: EXAMPLES)
    assert FakeRun.finished == 2
    assert [start["id"] for start in starts] == [read_environment(tmp_path)["run"]] * 2
    assert (starts[0]["project"], starts[0]["resume"], starts[0]["dir"]) == ("mvlm", "allow", str(tmp_path))
    assert starts[0]["config"]["batch_size"] == 16 and starts[1]["config"]["environment"]["step"] == 3
    again = [values["step"] for values in FakeRun.logged if "loss/total" in values]
    assert again == [1, 2, 3, 4, 5, 6, 7, 8, 9] or again == [1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    assert FakeRun.logged[-1]["examples/text"] == "<pre>a | b</pre>"


def test_tensorboard_has_scalars_images_texts_and_the_config(tmp_path):
    run = TrackedRun(tmp_path, "0123", 4, {"steps": 9, "dtype": "auto", "image.mean": [0.5, 0.5]}, {})
    with Trackers([TensorBoard], run=run) as trackers:
        trackers.log(5, {"loss/total": 0.5})
        trackers.show(5, EXAMPLES)
    _, purged, start, *logged = events(tmp_path)
    assert purged.step == 5  # from which on TensorBoard forgets what older files hold
    [value] = start.summary.value
    hparams = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info.hparams
    assert (hparams["steps"].number_value, hparams["dtype"].string_value) == (9, "auto")
    assert hparams["image.mean"].string_value == "[0.5, 0.5]"
    scalar, image, text = (value for event in logged for value in event.summary.value)
    assert (scalar.tag, scalar.simple_value) == ("loss/total", 0.5)
    assert (image.tag, image.image.height, image.image.width) == ("examples/picture", 4, 6)
    assert (text.tag, list(text.tensor.string_val)) == ("examples/text/text_summary", [b"a | b"])
