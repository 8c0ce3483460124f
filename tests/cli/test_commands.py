"""The commands as a user runs them: the shipped demo recipe, made smaller, from data to an evaluated checkpoint."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from absl import flags
from tiny import DEMO_RUN, ROOT, demo_flags, recipe

from mvlm_jax import cli
from mvlm_jax.cli import commands, evaluate, train
from mvlm_jax.data.pipeline import stable_hash
from mvlm_jax.errors import UserError
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.heartbeat import Heartbeat
from mvlm_jax.training.workdir import ORIGIN


@pytest.fixture
def copied(demo_run, tmp_path):
    """The demo run, to be written to."""
    return shutil.copytree(demo_run, tmp_path / "copied")


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("timing", "time")} for line in lines]


def read_eval(workdir, stem):
    return json.loads((workdir / "eval" / f"{stem}.json").read_text())


def test_a_run_leaves_everything_behind(demo_run):
    names = {path.name for path in demo_run.iterdir()}
    assert {"config.json", "checkpoints", "metrics.jsonl", "eval", "tokenizer.json"} <= names
    assert any("tfevents" in name for name in names)
    steps = [line for line in metrics(demo_run) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    weights = recipe("demo").loss
    for line in steps:
        total = sum(weights[name] * line[name] for name in ("mim", "mlm", "itc", "itm"))
        assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_evaluation_counts_every_example_and_reports_both_rankings(demo_run):
    retrieval = read_eval(demo_run, "retrieval-shapes-val")
    assert (retrieval["images"], retrieval["captions"], retrieval["step"]) == (12, 12, 6)
    for way in ("tr", "ir"):
        for k in (1, 5, 10):
            for suffix in ("", "_rerank"):
                assert 0 <= retrieval[f"{way}_r{k}{suffix}"] <= 100
    rebuilt = read_eval(demo_run, "reconstruction-shapes-val")
    for name in ("mlm_gain", "mim_gain", "mim_gain_informative"):
        for suffix in ("", "_over_none"):
            value, low, high = rebuilt[name + suffix]
            assert low <= value <= high
    own, wrong = rebuilt["mim_l1_own"][0], rebuilt["mim_l1_wrong"][0]
    assert rebuilt["mim_gain"][0] == pytest.approx(wrong - own, abs=1e-6)
    own, wrong = rebuilt["mim_l1_informative_own"][0], rebuilt["mim_l1_informative_wrong"][0]
    assert rebuilt["mim_gain_informative"][0] == pytest.approx(1 - own / wrong, abs=1e-6)
    assert rebuilt["informative_by"] == "ground" and 50 < rebuilt["informative_patches"] < 100


def test_every_number_of_an_evaluation_is_in_the_log(demo_run):
    logged = metrics(demo_run)[-1]
    for stem in ("retrieval-shapes-val", "reconstruction-shapes-val"):
        found = read_eval(demo_run, stem)
        names = set()
        for name, value in found.items():
            if name not in ORIGIN and not isinstance(value, str | dict):
                names |= {name, f"{name}_low", f"{name}_high"} if isinstance(value, list) else {name}
        assert len(names) > 10
        assert names <= {name.removeprefix(f"eval/{stem.replace('-shapes', '')}/") for name in logged}


def test_evaluation_does_not_depend_on_the_batch_size(copied, demo_dir):
    before = [read_eval(copied, stem) for stem in ("retrieval-shapes-val", "reconstruction-shapes-val")]
    flags = demo_flags(data_dir=demo_dir, workdir=copied, **DEMO_RUN, eval__batch_size=5)
    assert evaluate.run(flags) == 0
    after = [read_eval(copied, stem) for stem in ("retrieval-shapes-val", "reconstruction-shapes-val")]
    for old, new in zip(before, after):
        assert set(old) == set(new)
        for name in set(old) - {"left_out", "rerank_by", "informative_by", *ORIGIN}:
            np.testing.assert_allclose(new[name], old[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow  # the toy's runs are broken off in the same way in training/test_loop.py
def test_an_interrupted_run_gives_bit_for_bit_the_metrics_of_one_that_was_not(
    demo_run, demo_dir, tmp_path, monkeypatch
):
    workdir = tmp_path / "interrupted"
    flags = demo_flags(data_dir=demo_dir, workdir=workdir, **DEMO_RUN)
    whole = Pretrain.train_batches

    def cut_short(self, start_step):
        for count, batch in enumerate(whole(self, start_step)):
            if count == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Pretrain, "train_batches", cut_short)
    assert train.run(flags) == 130
    monkeypatch.undo()
    assert train.run(flags) == 0
    assert metrics(workdir) == metrics(demo_run)


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_exits_as_asked_and_goes_on_bit_for_bit(demo_run, demo_dir, tmp_path, monkeypatch):
    workdir = tmp_path / "stopped"
    flags = [*demo_flags(data_dir=demo_dir, workdir=workdir, **DEMO_RUN), "--stopped_status=75"]
    whole = Pretrain.train_batches

    def signalled(self, start_step):
        for count, batch in enumerate(whole(self, start_step)):
            if count == 3:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Pretrain, "train_batches", signalled)
    assert train.run(flags) == 75
    assert [line["step"] for line in metrics(workdir)] == [1, 2, 3]
    monkeypatch.undo()
    assert train.run(flags) == 0
    assert metrics(workdir) == metrics(demo_run)


def test_a_run_of_nan_exits_1_and_names_the_images_that_the_batch_held(demo_dir, tmp_path, monkeypatch, capsys):
    flags = demo_flags(data_dir=demo_dir, workdir=tmp_path / "run", **DEMO_RUN, max_skipped_updates=2)
    whole, init, hashes = Pretrain.train_batches, Pretrain.init, []

    def recorded(self, start_step):
        for batch in whole(self, start_step):
            hashes.append(set(batch["image_id"].tolist()))
            yield batch

    def not_a_number(self, key):
        return jax.tree.map(lambda leaf: leaf * float("nan"), init(self, key))

    monkeypatch.setattr(Pretrain, "train_batches", recorded)
    monkeypatch.setattr(Pretrain, "init", not_a_number)
    assert train.run(flags) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mvlm train: step 2: the loss is nan")
    named = line.partition("the images of its batch are ")[2].partition(";")[0].split(", ")
    assert {stable_hash(name) for name in named} == hashes[1]


def test_a_workdir_of_another_config_is_refused_and_stays_as_it_is(demo_run, demo_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in sorted(demo_run.rglob("*"))}
    flags = demo_flags(data_dir=demo_dir, workdir=demo_run, **DEMO_RUN, optimizer__peak=0.5)
    assert train.run(flags) == 2
    error = capsys.readouterr().err.strip()
    assert "config.optimizer.peak is 0.002 there and 0.5 here" in error
    assert {path: path.stat().st_mtime_ns for path in sorted(demo_run.rglob("*"))} == before


def test_a_step_that_was_not_kept_is_refused_with_those_that_were(demo_run, demo_dir, capsys):
    flags = demo_flags(data_dir=demo_dir, workdir=demo_run, **DEMO_RUN)
    assert evaluate.run([*flags, "--step=5"]) == 2
    assert "there are 2, 4, 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lacking, message",
    [("checkpoints", "has no finished checkpoint; train it first"), ("tokenizer.json", "but no tokenizer.json; put")],
)
def test_a_run_that_lacks_a_part_is_refused_before_a_tokenizer_is_trained(
    lacking, message, copied, demo_dir, monkeypatch, capsys
):
    def train_tokenizer(*_, **__):
        raise AssertionError("a tokenizer is trained")

    monkeypatch.setattr("mvlm_jax.tasks.tokenizer.train_tokenizer", train_tokenizer)
    kept = {"config.json"} if lacking == "checkpoints" else {path.name for path in copied.iterdir()} - {lacking}
    for path in copied.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert evaluate.run(demo_flags(data_dir=demo_dir, workdir=copied, **DEMO_RUN)) == 2
    [error] = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"mvlm evaluate: {copied} has ") and message in error
    assert {path.name for path in copied.iterdir()} == kept


def test_an_evaluation_that_fails_reports_it_to_the_other_processes(demo_run, demo_dir, monkeypatch):
    class Recorded(Heartbeat):
        def __exit__(self, kind, *_):
            ended_with.append(kind)

    ended_with = []
    monkeypatch.setattr(evaluate, "Heartbeat", Recorded)
    flags = demo_flags(data_dir=demo_dir, workdir=demo_run, **DEMO_RUN)
    assert evaluate.run([*flags, "--step=5"]) == 2
    assert ended_with == [UserError]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config=DEMO", "--workdir=W", "--config.stepz=7"], "no field 'stepz'; did you mean 'steps'?"),
        (["--config=DEMO", "--workdir=W", "--config.mask.zzz=7"], "no field 'zzz'"),
        (["--config=DEMO", "--workdir=W", "--config.steps=many"], "--config.steps=many"),
        (["--config=DEMO", "--workdir=W", "--config.steps=1.5"], "--config.steps=1.5"),
        (["--config=DEMO", "--workdir=W", "--config.batch_size=63"], "times config.matching.group=32"),
        (["--config=DEMO", "--workdir=W", "--config.image.size=50"], "multiple of 24 pixels"),
        (["--config=DEMO", "--workdir=W", "--config.mask.condition_on=all"], "not one of unmasked, masked, none"),
        (["--config=DEMO", "--workdir=W", "--config.mask.image_ratio=1.5"], "between 0 and 1"),
        (["--config=DEMO", "--workdir=W", "--config.data.data_dir=W/none"], "mvlm prepare --dataset=shapes"),
        (["--config=DEMO", "--workdir=W", "--config.text.tokenizer=W/none.json"], "cannot be read"),
        (["--config=configs/dmeo.py", "--workdir=W"], "neither a file nor a shipped recipe; did you mean demo?"),
        (["--config=zzz", "--workdir=W"], "the shipped ones are demo, finetune_nlvr2, "),
        (["--config=_finetune", "--workdir=W"], "neither a file nor a shipped recipe"),
        (["--config=gs://a/recipe.py", "--workdir=W"], "is not a local path"),
        (["--config=flickr8k:huge", "--workdir=W"], "flickr8k:huge: size 'huge' is not one of laptop, small, minilm,"),
        (["--config=demo:huge", "--workdir=W"], "--config=demo:huge: demo has no variants; leave out :huge"),
        (
            ["--config=demo", "--workdir=W", "--config.text.kind=bert"],
            "config.text.kind is config.text_encoder.kind now",
        ),
        (
            ["--config=demo", "--workdir=W", "--config.model.layers=2"],
            "config.model.layers is config.image_encoder.layers and config.text_encoder.layers now",
        ),
        (["--config=DEMO", "--workdir=W", "--config.config_version=1"], "config_version=1 is not one of 4"),
        (["--config=DEMO"], "--workdir"),
        (["--config=DEMO", "--workdir=W", "surplus"], "'surplus'"),
        (["--config=DEMO", "--workdir=W", "--stopped_status=300"], "stopped_status"),
        (["--config=DEMO", "--workdir=W", "--werkdir=X"], "werkdir"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_leaves_nothing(flags, message, tmp_path, capsys):
    places = {"DEMO": ROOT / "configs" / "demo.py", "W": tmp_path / "w"}
    for short, path in places.items():
        flags = [flag.replace(f"={short}", f"={path}") for flag in flags]
    assert train.run(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mvlm train: ") and message in error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("open('none')", "No such file or directory: 'none'"),
        ("import none", "ModuleNotFoundError: No module named 'none'"),
        ("def get_config(): raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("get_config = ConfigDict", "lacks some: accumulate, "),
        ("def get_config(): return None", "get_config returns None"),
        (
            "def get_config(): return ConfigDict({**default(), 'stepz': 1})",
            "unknown fields or lacks some: stepz",
        ),
        ("def get_config():\n  c = default()\n  c.stepz = 1", "no field 'stepz'; did you mean 'steps'?"),
    ],
)
def test_a_recipe_that_does_not_work_is_one_line(recipe, message, tmp_path, capsys):
    header = "from ml_collections import ConfigDict\nfrom mvlm_jax.config import default"
    (tmp_path / "recipe.py").write_text(f"{header}\n{recipe}\n")
    assert train.run([f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'w'}"]) == 2
    [error] = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("mvlm train: ") and message in error
    assert not (tmp_path / "w").exists()


def test_a_shipped_recipe_is_found_by_name_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    argv = ["mvlm", "--config=finetune_vqa:shapes", "--config.seed=3"]
    commands.define_config(values, argv)
    values(argv)
    assert (values.config.task, values.config.seed, values.config.steps) == ("vqa", 3, 1000)


def test_a_run_is_evaluated_with_its_own_config(copied, capsys):
    of_training = ["--config.image_encoder.trained_layers=0", "--config.cross.dropout=0.5"]
    assert evaluate.run([f"--workdir={copied}", "--config.data.eval=tfds:shapes:test", "--step=4", *of_training]) == 0
    found = read_eval(copied, "retrieval-shapes-test")
    assert (found["step"], found["source"], found["images"]) == (4, "tfds:shapes:test", 12)
    assert evaluate.run([f"--workdir={copied}", "--config.cross.heads=1"]) == 2
    assert "config.cross.heads is 2 there and 1 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir=none"], "none is not the workdir of a run"),
        (["--config.data.eval=tfds:shapes:test"], "--workdir"),
        (["--workdir=RUN", "--config.data.evall=tfds:shapes:test"], "no field 'evall'; did you mean 'eval'?"),
    ],
)
def test_an_evaluation_without_its_run_is_one_line(flags, message, demo_run, capsys):
    assert evaluate.run([flag.replace("RUN", str(demo_run)) for flag in flags]) == 2
    [error] = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("mvlm evaluate: ") and message in error


@pytest.mark.parametrize(
    "command, example",
    [
        ("train", "mvlm train --config="),
        ("evaluate", "mvlm evaluate --workdir="),
        ("prepare", "mvlm prepare --dataset="),
        ("weights", "mvlm weights export --workdir="),
        ("compile", "mvlm compile --config="),
        ("search", "mvlm search --model="),
    ],
)
def test_help_shows_an_example(command, example, capsys):
    assert command in cli.COMMANDS
    assert cli.main([command, "--help"]) == 0
    assert example in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    assert cli.main(["trian"]) == 2
    assert "'trian'" in capsys.readouterr().err
