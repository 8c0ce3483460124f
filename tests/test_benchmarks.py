"""Every benchmark runs at toy size as its documented command does, and ends with another status than 0 on a failure."""

import argparse
import functools
import importlib.util
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from launchers import recorded
from PIL import Image
from tiny import ROOT, SMALLER, demo_flags, prepare_shapes

from mvlm_jax.cli import train, weights
from mvlm_jax.data.builders import shapes_tasks
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.training.metrics_log import MetricsLog

BENCHMARKS = ROOT / "benchmarks"
RUN_HERE = {
    *("curve", "doctor", "downstream", "frozen", "heat_maps", "index", "input_pipeline", "retrieval_memory"),
    *("saving", "scaling"),
}
# With torch, or with a file of tests of its own.
RUN_ELSEWHERE = {
    *("ablation", "ablation_statistics", "ablation_tables", "ablation_task"),
    *("bench", "contenders", "inference", "json_lines", "kernels", "noise_photos", "processes", "startup", "step"),
    *("first_hour", "torch_maskvlm", "torch_pretraining", "torch_pipeline"),
}
WORDS = "dog cat man girl boat tree hill road ball car red blue green old young small runs sits jumps waits".split()


def benchmark(name, monkeypatch):
    """The module; it imports its neighbours as it does when it is run as a program."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare_shapes(directory)
    return directory


def test_every_benchmark_is_tested():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == RUN_HERE | RUN_ELSEWHERE


@pytest.mark.parametrize("losses", [{"mim": 0.5, "itc": 2.0}, {"classification": float("nan")}])
def test_the_curves_of_a_run_are_drawn(tmp_path, monkeypatch, losses):
    pytest.importorskip("matplotlib")
    with MetricsLog(tmp_path, resumed_step=0) as log:
        for step in (1, 2):
            log.write(step, {"loss": 1.0, **losses})
    output = tmp_path / "curve.png"
    assert benchmark("curve", monkeypatch).main([f"--workdir={tmp_path}", f"--output={output}"]) == 0
    assert Image.open(output).width == 270 * len(losses)


def test_a_workdir_without_losses_is_no_curve(tmp_path, monkeypatch, capsys):
    arguments = [f"--workdir={tmp_path}", f"--output={tmp_path / 'curve.png'}"]
    assert benchmark("curve", monkeypatch).main(arguments) == 1
    assert "metrics.jsonl holds no losses" in capsys.readouterr().err
    assert not (tmp_path / "curve.png").exists()


@pytest.mark.slow
def test_both_ways_of_saving_a_step_are_timed(monkeypatch, capsys):
    assert benchmark("saving", monkeypatch).main(["--rounds=1", "--width=16"]) == 0
    _, *rows, ratio = capsys.readouterr().out.splitlines()
    times = [list(map(float, row.split()[-3:])) for row in rows]
    assert len(times) == 2
    assert all(later < written for _, later, written in times)
    assert float(ratio.split()[4]) > 0


@pytest.mark.slow
def test_a_step_has_fewer_operations_the_less_of_the_image_encoder_is_trained(monkeypatch, capsys):
    module = benchmark("frozen", monkeypatch)
    small = {
        **{f"{part}__width": 64 for part in ("image_encoder", "text_encoder", "cross")},
        **{f"{part}__heads": 1 for part in ("image_encoder", "text_encoder", "cross")},
        **{"image_encoder__layers": 2, "text_encoder__layers": 1, "text_encoder__vocab_size": 300},
    }
    monkeypatch.setattr(module, "step_flops", functools.partial(module.step_flops, **small))
    assert module.main(["--batch_size=8", "--trained_layers", "-1", "0"]) == 0
    rows = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == [-1, 0]
    assert rows[0][1] > rows[1][1]
    for _, _, below, counted in rows[1:]:
        # Norms and softmax, which are not counted, are a larger part of a narrow model.
        assert counted <= below <= 1.5 * counted


def published(directory, *, images):
    """Flickr8k's files with made-up pictures, all of them different."""
    (directory / "Flicker8k_Dataset").mkdir(parents=True)
    rng, names, lines = np.random.default_rng(0), [], []
    for number in range(images):
        name = f"{number:04d}.jpg"
        picture = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((320, 300))
        picture.save(directory / "Flicker8k_Dataset" / name, quality=95)
        names.append(name)
        lines += [f"{name}#{place}\tA {' '.join(rng.choice(WORDS, 8))} ." for place in range(5)]
    (directory / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (directory / "Flickr_8k.devImages.txt").write_text("\n".join(names) + "\n")


def test_the_doctor_finds_every_planted_fault_and_no_other(tmp_path, monkeypatch, capsys):
    published(tmp_path / "source", images=112)
    given = [f"--source={tmp_path / 'source'}", f"--directory={tmp_path / 'copy'}", "--evaluation=10", "--dev=12"]
    assert benchmark("doctor", monkeypatch).main(given) == 0
    result = last_line(capsys)
    assert result["missed"] == []
    # The letters of broken text are new to so small a vocabulary.
    assert {kind for kind, _, _ in result["unplanted"]} <= {"unknown_words"}
    assert result["found"] == result["planted"] > 50


def test_a_doctor_that_cannot_report_is_a_failure(tmp_path, monkeypatch, capsys):
    published(tmp_path / "source", images=112)
    module = benchmark("doctor", monkeypatch)
    monkeypatch.setattr(module.prepare, "run", lambda argv: 2)
    given = [f"--source={tmp_path / 'source'}", f"--directory={tmp_path / 'copy'}", "--evaluation=10", "--dev=12"]
    assert module.main(given) == 1
    assert capsys.readouterr().err.endswith("mvlm prepare --check ended with status 2\n")
    with pytest.raises(SystemExit, match="held_out has too few images for all faults: 6"):
        module.main([*given[:1], f"--directory={tmp_path / 'other'}", "--evaluation=6", "--dev=12"])


def test_the_memory_of_ranking_is_measured(monkeypatch, capsys):
    given = ["--images=20", "--captions_each=2", "--candidates=8", "--embedding=4"]
    assert benchmark("retrieval_memory", monkeypatch).main(given) == 0
    result = last_line(capsys)
    assert (result["images"], result["captions"]) == (20, 40)
    assert 20 * 8 <= result["pairs"] <= 20 * 8 + 40 * 8 and result["peak_gib"] > 0


def test_the_heat_inside_a_box_is_counted_by_area(monkeypatch):
    module = benchmark("heat_maps", monkeypatch)
    heat = np.zeros((2, 2))
    heat[0, 0], heat[1, 1] = 3, 1
    assert module.mass_inside(heat, (0, 0, 0.5, 0.5)) == pytest.approx(0.75)
    # Half of the width and a fifth of the height of the upper left patch.
    assert module.mass_inside(heat, (0.25, 0.4, 0.5, 0.5)) == pytest.approx(0.75 * 0.5 * 0.2)
    assert module.mass_inside(np.ones((3, 5)), (0.1, 0.2, 0.6, 0.9)) == pytest.approx(0.5 * 0.7)
    assert np.isnan(module.mass_inside(np.zeros((2, 2)), (0, 0, 1, 1)))


def test_the_heat_of_words_on_their_shapes_is_measured(demo_run, tmp_path, monkeypatch, capsys):
    module, exported = benchmark("heat_maps", monkeypatch), tmp_path / "exported"
    assert weights.run(["export", f"--workdir={demo_run}", f"--output={exported}"]) == 0
    assert module.main([f"--model={exported}", "--scenes=2", "--of=word"]) == 0
    result = last_line(capsys)
    assert result["scenes"] == 2 and 6 <= result["shapes"] <= 8 and 0.06 < result["uniform"] < 0.2
    assert list(result["ratio"]) == ["shape", "colour", "colour and shape", "size, colour and shape"]
    assert all(ratio > 0 for ratio in result["ratio"].values())
    assert module.main([f"--model={exported}", "--scenes=2"]) == 1
    assert "attention needs of='word' for this model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        module.main([f"--model={exported}", "--scenes=0"])


INPUT_PIPELINE = ["--source=tfds:shapes:train", "--image_size=32", "--batch_size=4", "--rounds=1"]


def input_pipeline(parts, *, shapes, output, monkeypatch):
    given = [*INPUT_PIPELINE, f"--data_dir={shapes}", f"--parts={parts}", f"--output={output}"]
    assert benchmark("input_pipeline", monkeypatch).main(given) == 0
    return json.loads(output.read_text())


def test_the_stages_of_the_input_pipeline_are_timed(shapes, tmp_path, monkeypatch, capsys):
    found = input_pipeline("stages,core", shapes=shapes, output=tmp_path / "figures.json", monkeypatch=monkeypatch)
    stages = ["read", "decode", "crop and resize", "augment into the batch", "tokenize", "transfer"]
    assert list(found["stages"]) == stages
    with_torch = importlib.util.find_spec("torch") is not None
    assert len(found["core"]) == 3 + with_torch
    assert ("PyTorch's way is left out" in capsys.readouterr().out) != with_torch


@pytest.mark.slow
def test_the_worker_processes_of_the_input_pipeline_are_timed(shapes, tmp_path, monkeypatch):
    found = input_pipeline("workers,memory", shapes=shapes, output=tmp_path / "figures.json", monkeypatch=monkeypatch)
    assert all(rate[0] > 0 for measured in found["workers"].values() for rate in measured.values())
    assert {name: len(sizes) for name, sizes in found["memory"].items()} == {"0 workers": 3, "2 workers": 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--parts=stages,speed"], "'speed' is not one of stages"), (["--rounds=0"], "must be at least 1")],
)
def test_what_the_input_pipeline_cannot_measure_is_refused(monkeypatch, capsys, given, message):
    with pytest.raises(SystemExit) as caught:
        benchmark("input_pipeline", monkeypatch).main([*INPUT_PIPELINE, *given])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_source_that_is_not_there_is_a_failure(tmp_path, monkeypatch, capsys):
    assert benchmark("input_pipeline", monkeypatch).main([*INPUT_PIPELINE, f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith("input_pipeline.py: dataset 'shapes' is not prepared in ")


INDEX = ["--small=128", "--records=200", "--batches=2", "--warmup=1", "--rounds=1", "--workers=1"]


@pytest.mark.slow
def test_a_small_and_a_larger_index_are_compared(tmp_path, monkeypatch, capsys):
    assert benchmark("index", monkeypatch).main([f"--data_dir={tmp_path}", *INDEX]) == 0
    result = last_line(capsys)
    assert (result["small"]["records"], result["large"]["records"]) == (128, 200)
    assert set(result["ratios"]) == {"read_batch_ms", "training_batch_ms"}


def test_a_process_of_the_index_that_fails_is_a_failure(tmp_path, monkeypatch, capsys):
    module = benchmark("index", monkeypatch)
    monkeypatch.setattr(module, "write", lambda data_dir, count, workers: f"tiny{count}")
    monkeypatch.setattr(sys, "executable", "false")  # a Python that fails at once
    assert module.main([f"--data_dir={tmp_path}", *INDEX]) == 1
    assert capsys.readouterr().err.endswith("the process for tiny128 ended with status 1\n")
    with pytest.raises(SystemExit):
        module.main([f"--data_dir={tmp_path}", *INDEX, "--small=127"])


class Drawn(NamedTuple):
    text: str
    scenes: int
    answer: str


def test_a_downstream_run_that_fails_is_a_failure_and_the_others_are_made(tmp_path, monkeypatch, capsys):
    module = benchmark("downstream", monkeypatch)
    monkeypatch.setattr(module.subprocess, "run", lambda command, **_: commands.append(command))
    commands, run = [], module.run

    def no_image_fails(task, column, *, directory, **options):
        if column == "no_image":
            raise module.subprocess.CalledProcessError(2, "mvlm")
        for stem, accuracy in (("nlvr2-shapes_nlvr2-test", 75.0), ("nlvr2-shapes_nlvr2-val", 0.0)):
            file = directory / f"{task}-{column}" / "eval" / f"{stem}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"accuracy": accuracy}))
        return run(task, column, directory=directory, **options)

    monkeypatch.setattr(module, "run", no_image_fails)
    # A model that sees the text alone can be right three times, one that sees the image alone twice.
    drawn = [Drawn("a", 1, "yes"), Drawn("a", 2, "yes"), Drawn("a", 1, "no"), Drawn("b", 2, "no")]
    split = SimpleNamespace(drawn=drawn)
    monkeypatch.setattr(module.shapes_tasks, "collection", lambda name: SimpleNamespace(splits={"test": split}))
    given = [f"--{name}={tmp_path}" for name in ("directory", "data_dir", "pretrained")]
    assert module.main([*given, "--set=steps=4", "nlvr2"]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "| nlvr2 | 75.0 | 75.0 | failed | 75.0 (50.0) |"
    assert module.upper_bound(drawn, "no_image") == 75
    assert "nlvr2-no_image: mvlm train ended with status 2" in shown.err
    prepared, *trained = commands
    assert prepared[-2:] == ["--dataset=shapes_nlvr2", f"--data_dir={tmp_path}"]
    assert len(trained) == 3 and all(command[-1] == "--config.steps=4" for command in trained)


@pytest.mark.slow
def test_the_downstream_tasks_are_trained_and_compared(shapes, tmp_path, monkeypatch, capfd):
    pretrained = tmp_path / "pretrained"
    assert train.run(demo_flags(data_dir=shapes, workdir=pretrained, steps=3)) == 0
    changes = SMALLER | {"steps": 3}
    module = benchmark("downstream", monkeypatch)
    # A few examples in place of the 40,000 that the command would draw first.
    few = shapes_tasks.collection("shapes_nlvr2", train=16, val=8, test=8)
    write_dataset(few, name="shapes_nlvr2", data_dir=shapes)
    run = subprocess.run
    monkeypatch.setattr(
        module.subprocess,
        "run",
        lambda command, **options: ["mvlm_jax", "prepare"] == command[2:4] or run(command, **options),
    )
    monkeypatch.setattr(module.shapes_tasks, "collection", lambda name: few)
    # Each of the others differs from one of these in one flag.
    monkeypatch.setattr(module, "COLUMNS", {"random": "none", "no_text": "text"})
    given = [f"--directory={tmp_path / 'runs'}", f"--data_dir={shapes}", f"--pretrained={pretrained}"]
    given += [f"--set={name}={value}" for name, value in changes.items()]
    assert module.main([*given, "nlvr2"]) == 0
    cells = capfd.readouterr().out.splitlines()[-1].split("|")
    assert cells[1].strip() == "nlvr2" and all(float(cell.split()[0]) >= 0 for cell in cells[2:-1])


def test_the_table_of_scaling_is_printed_from_figures_or_fails(tmp_path, monkeypatch, capsys):
    module = benchmark("scaling", monkeypatch)
    commands = []

    def compiled(command, **_):
        commands.append(command)
        if "--topology=v5e:4x4" in command:
            raise module.subprocess.CalledProcessError(2, "mvlm")
        [file] = [word.removeprefix("--json=") for word in command if word.startswith("--json=")]
        memory = {"total": 2**30, "capacity": 2**34}
        figures = {"hbm_bytes_per_chip": memory, "collective_bytes_per_chip": {}, "step_seconds_estimate": 0.5}
        flops = {"compiled_flops_per_chip": 2e12, "model_flops_per_chip": 1e12}
        with open(file, "w") as out:
            json.dump(figures | flops, out)

    monkeypatch.setattr(module.subprocess, "run", compiled)
    assert module.main([f"--directory={tmp_path}", "--set=cross.layers=1", "v5e:4x4", "v6e:4x4"]) == 1
    assert "| base | v6e:4x4 | none | 1.00 | 16.00 | 2.000 | 2.000 |" in capsys.readouterr().out
    assert all(command[-1] == "--config.cross.layers=1" for command in commands)
    assert module.main([f"--directory={tmp_path}", "v6e:4x4"]) == 0
    assert module.main([f"--directory={tmp_path / 'dots'}", "--set=model.remat=dots", "v6e:4x4"]) == 0
    assert "| base | v6e:4x4 | dots |" in capsys.readouterr().out


class Parsed(Exception):
    """In place of the measurement."""


def commands():
    texts = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *BENCHMARKS.glob("*.py")]
    for path in texts:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            if line.strip().startswith("python benchmarks/"):
                yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{path.name}: {line.strip()}")


COMMANDS = list(commands())


def test_there_are_documented_commands():
    assert len(COMMANDS) > len(RUN_HERE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_is_one_that_its_benchmark_takes(command, monkeypatch):
    parse_alone(command, monkeypatch)


def test_the_command_of_the_launcher_for_speed_is_one_that_its_benchmark_takes(tmp_path, monkeypatch):
    [line] = recorded("gpu_speed.sh", [str(tmp_path / "rows.jsonl")], directory=tmp_path).splitlines()
    python, unbuffered, *command = shlex.split(line)
    assert (python, unbuffered, command[0]) == ("python3", "-u", "benchmarks/step.py")
    parse_alone(command, monkeypatch)


def parse_alone(command, monkeypatch):
    """Stops the program once its arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(*arguments):
        parse(*arguments)
        raise Parsed

    program, *flags = command
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(Parsed):
        benchmark((ROOT / program).stem, monkeypatch).main()
