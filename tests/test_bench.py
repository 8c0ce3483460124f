"""`make bench`: its table and exit status, with contenders that answer at once; and once as a whole, at toy size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT

from mvlm_jax.data.mixtures import open_mixture

BENCHMARKS = ROOT / "benchmarks"
TOY = ("--size=tiny", "--image_size=32", "--batch_size=4", "--dtype=float32", "--steps=1", "--rounds=2")
SETUP = {"size": "tiny", "image_size": 32, "batch_size": 4, "dtype": "float32", "steps": 1}


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def fake(monkeypatch, capsys):
    """Sets the answers of contenders by name: to a call its answer, or an error; `printed` is what stood there then."""
    import bench

    class Contender:
        answers, printed = {}, {}

        def __init__(self, name, setup, *, deadline):
            self.name, self._asked = name, None

        def ask(self, call, *arguments):
            self._asked = call

        def answer(self):
            type(self).output += capsys.readouterr().out
            type(self).printed.setdefault((self.name, self._asked), type(self).output)
            answer = self.answers.get(self.name, {}).get(self._asked, {})
            if isinstance(answer, Exception):
                raise answer
            return answer

        def call(self, call, *arguments):
            self.ask(call)
            return self.answer()

        def close(self):
            pass

    Contender.output = ""
    monkeypatch.setattr(bench, "Contender", Contender)
    monkeypatch.setattr(bench.step, "accelerated", lambda: False)
    return Contender


def step_of(seconds):
    return {"run": {"seconds": seconds, "loss": 1.0, "peak_mib": 100 * seconds},
            "prepare": {"first_step_s": 9.0, "compiler_mib": None}}  # fmt: skip


def test_a_row_is_printed_before_the_next_contender_is_prepared(fake, capsys):
    import bench

    fake.answers = {"jax": step_of(2.0), "torch_eager": step_of(3.0), "torch_compiled": step_of(1.0)}
    assert bench.main([*TOY, "--only", "step"]) == 0
    before = fake.printed["torch_compiled", "prepare"]
    # 4 pairs in 2 s and in 3 s; 200 MiB and 300 MiB.
    assert "training step, pairs/s            2.00      1.33   1.50 (1.50 to 1.50) beside PyTorch\n" in before
    assert "  peak memory, MiB                 200       300   1.50 (1.50 to 1.50) beside PyTorch\n" in before
    assert "0.50 (0.50 to 0.50) beside PyTorch, compiled" in capsys.readouterr().out


def test_a_package_that_is_absent_has_its_row_and_fails_nothing(fake, tmp_path, capsys):
    import bench
    from processes import NotHere

    absent = {"prepare": NotHere("not on this machine: torch")}
    fake.answers = {"jax": step_of(2.0), "torch_eager": absent, "torch_compiled": absent}
    file = tmp_path / "rows.jsonl"
    assert bench.main([*TOY, "--only", "step", f"--json={file}"]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["training step, pairs/s"] * 3
    assert [row.get("not_here") for row in rows] == ["not on this machine: torch"] * 2 + [None]
    assert rows[2]["ours"] == [2.0, 2.0] and rows[2]["size"] == "tiny"
    assert "training step, pairs/s        not on this machine: torch (beside PyTorch)" in fake.output


def test_a_contender_that_fails_leaves_the_others_their_rows_and_status_1(fake):
    import bench
    from processes import NotMeasured

    failing = {"prepare": NotMeasured("MemoryError: no room")}
    fake.answers = {"jax": step_of(2.0), "torch_eager": failing, "torch_compiled": step_of(1.0)}
    assert bench.main([*TOY, "--only", "step"]) == 1
    assert "not measured: MemoryError: no room (beside PyTorch)" in fake.output
    fake.answers["jax"] = failing
    assert bench.main([*TOY, "--only", "step"]) == 1


def test_starts_and_input_have_rows_and_a_start_that_ends_early_is_a_failure(fake, monkeypatch, capsys):
    import bench
    from processes import NotMeasured

    starts = iter([8.0, 2.0])
    monkeypatch.setattr(bench.startup, "first_step_seconds", lambda setup, **_: next(starts))

    def run(command, **_):
        for word in command:
            if word.startswith("--output="):
                rates = {"this pipeline": [300, 310], "bare decode": [600, 620]}
                Path(word.removeprefix("--output=")).write_text(json.dumps({"core": rates}))
        return [0.25, 0.35]

    monkeypatch.setattr(bench.startup, "command_seconds", run)
    assert bench.main([*TOY, "--only", "startup", "input", "--photos=4"]) == 0
    printed = capsys.readouterr().out
    assert "first step, cold, s               8.00\n" in printed
    assert "first step, cached, s             2.00      8.00   4.00 (4.00 to 4.00) beside an empty cache\n" in printed
    assert "mvlm --help, s                    0.30\n" in printed
    assert "input, images/s per core           305       610   0.50 (0.50 to 0.50) beside bare decode\n" in printed
    assert "not on this machine: torch (beside PyTorch DataLoader)" in printed

    def failing(setup, **_):
        raise NotMeasured("mvlm train ended with status 2: no room")

    monkeypatch.setattr(bench.startup, "first_step_seconds", failing)
    assert bench.main([*TOY, "--only", "startup", "--photos=4"]) == 1
    assert "not measured: mvlm train ended with status 2: no room" in capsys.readouterr().out


@pytest.mark.slow
def test_our_reranking_is_of_the_pairs_that_matching_scores():
    import processes

    ours = processes.construct("jax_inference", SETUP)
    assert ours.prepare("rerank")["count"] == 16
    odds, logits = ours.verbs["rerank"]().reshape(4, 4), ours.verbs["match"]()
    np.testing.assert_allclose(np.diagonal(odds), logits[:, 1] - logits[:, 0], atol=1e-5)
    for verb in ("encode_image", "encode_text"):
        np.testing.assert_allclose(np.linalg.norm(ours.verbs[verb](), axis=1), 1, atol=1e-5)
    assert ours.run("encode_text", 2)["seconds"] > 0


def test_noise_has_the_size_of_photos_and_is_a_collection(tmp_path):
    import noise_photos

    noise_photos.write_photos(tmp_path, count=2)
    mixture = open_mixture(f"json:{tmp_path / noise_photos.PHOTOS}", data_dir="")
    [source] = [component.source for component in mixture.components]
    example = source[0]
    assert mixture.epoch_size == 2 and len(example["captions"]) == 5
    assert 20_000 < len(example["image"]) < 120_000


def test_the_flags_of_the_start_give_the_config_that_is_measured():
    import startup
    from contenders import Setup

    config = Setup(**SETUP).config()
    config.log_every = 1
    flags = startup._flags(config)
    assert "--config.image.size=32" in flags and "--config.log_every=1" in flags
    assert not [flag for flag in flags if flag.startswith("--config.image_encoder.width")]  # as in the recipe


def test_make_bench_runs_it():
    made = subprocess.run(["make", "-n", "bench", "BENCH=--only step"], cwd=ROOT, capture_output=True, text=True)
    assert "/bin/python -u benchmarks/bench.py --json=runs/bench.jsonl --only step" in made.stdout


@pytest.mark.slow
def test_everything_is_measured_at_toy_size(tmp_path):
    file = tmp_path / "rows.jsonl"
    command = [sys.executable, "benchmarks/bench.py", *TOY, "--rounds=1", "--seconds=0.01", "--photos=8"]
    # One device, as a machine without an accelerator has.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([*command, f"--json={file}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [row["name"] for row in map(json.loads, file.read_text().splitlines()) if "ours" in row]
    expected = {
        "first step, cold, s", "first step, cached, s", "import mvlm_jax, s", "mvlm --help, s",
        "training step, pairs/s", "encode_image, images/s", "encode_text, texts/s", "match, pairs/s", "rerank, pairs/s",
        "input, images/s per core",
    }  # fmt: skip
    assert expected <= set(names)
