"""What `mvlm train` ends with."""

import json
import shlex

import pytest
from tensorboardX.proto.event_pb2 import Event
from tiny import DEMO_RUN, demo_flags, recipe

from mvlm_jax import cli
from mvlm_jax.cli import train
from mvlm_jax.cli.next_commands import closing_lines, next_commands
from mvlm_jax.training.loop import Outcome

RESULTS = {"retrieval-val": {"tr_r1": 12.3456, "images": 12}, "reconstruction-val": {"mlm_gain": [1.5, -0.25, 3.0]}}


def lines_of(tmp_path, *, steps=6, stopped=False, logged=()):
    lines = [{"step": step, "eval/retrieval-val/tr_r1": value} for step, value in logged]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = recipe("demo")
    config.steps = steps
    argv = ["--config=demo", f"--workdir={tmp_path}", "--config.steps=6"]
    headline = ("ir_r1", "tr_r1", "mlm_gain")
    return closing_lines(Outcome(stopped, RESULTS), headline=headline, config=config, workdir=tmp_path, argv=argv)


def test_a_finished_run_says_what_it_has_reached_where_it_is_and_what_comes_next(tmp_path):
    assert lines_of(tmp_path, logged=[(3, 14.0), (6, 12.3456)]) == [
        "reached at step 6: retrieval-val tr_r1 12.35 (the best tr_r1, 14, was that of step 3)",
        "reached at step 6: reconstruction-val mlm_gain 1.5 [-0.25, 3]",
        f"the run is in {tmp_path}",
        f"to see it as a page: mvlm report --workdir={tmp_path}",
        f"to evaluate it: mvlm evaluate --workdir={tmp_path} --config.data.eval=tfds:shapes:val",
        f"to export it for mvlm_jax.load: mvlm weights export --workdir={tmp_path} --output={tmp_path}-export",
        "to train a new run from its weights: mvlm train --config=demo --config.steps=6 "
        f"--workdir={tmp_path}-next --config.init_from.checkpoint={tmp_path}",
    ]


@pytest.mark.parametrize("logged", [[(3, 12.0), (6, 12.3456)], [(3, 12.3456), (6, 12.3456)], [(3, None)], []])
def test_a_last_evaluation_that_is_the_best_is_not_called_so(tmp_path, logged):
    assert lines_of(tmp_path, logged=logged)[0] == "reached at step 6: retrieval-val tr_r1 12.35"


def test_a_stopped_run_says_how_it_is_continued(tmp_path):
    lines = lines_of(tmp_path, stopped=True)
    assert lines[0] == f"the run is in {tmp_path}"
    assert lines[-1] == f"to continue it: mvlm train --config=demo --workdir={tmp_path} --config.steps=6"


def test_a_new_run_replaces_flags_in_whatever_form_they_were_given(tmp_path):
    config = recipe("demo")
    config.init_from.image = "vit-base"
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run-next").mkdir()
    argv = ["--workdir", "x", "-config.init_from.text=roberta-base", "--config.seed", "3", "--config", "demo"]
    command = next_commands(config=config, workdir=tmp_path / "my run", argv=argv, stopped=False)
    assert shlex.split(command["to train a new run from its weights"]) == [
        *("mvlm", "train", "--config.seed", "3", "--config", "demo"),
        f"--workdir={tmp_path / 'my run-next-2'}",
        f"--config.init_from.checkpoint={tmp_path / 'my run'}",
        "--config.init_from.image=",
    ]


@pytest.mark.slow
def test_a_run_can_be_watched_and_its_next_commands_work(demo_dir, tmp_path, capfd):
    workdir = tmp_path / "run"
    flags = demo_flags(data_dir=demo_dir, workdir=workdir, log__examples=2, **DEMO_RUN)
    assert train.run(flags) == 0
    lines = capfd.readouterr().err.splitlines()
    subjects = [line.partition(":")[0] for line in lines]
    assert subjects.index("devices") < subjects.index("logs") < lines.index("compiling the training step ...")
    assert any(line.startswith("step 6/6  loss ") and " grad_norm " in line and " lr " in line for line in lines)
    commands = [line.partition(": ")[2] for line in lines if line.startswith("to ")]
    assert [shlex.split(command)[1] for command in commands] == ["report", "evaluate", "weights", "train"]
    for command in commands:
        assert cli.main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "run-export" / "model.safetensors").exists()
    assert json.loads((tmp_path / "run-next" / "weights.json").read_text())["at_initial_values"] == []
    [events] = workdir.glob("events*")
    shown = {value.tag for event in read(events) for value in event.summary.value}
    assert {"examples/reconstruction", "examples/captions/text_summary", "loss/mim", "rate/rest"} <= shown


def read(file):
    data, place = file.read_bytes(), 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += length + 16
