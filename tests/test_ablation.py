"""The ablation: paired seeds, statistics worked out by hand, and tables that no interruption changes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launchers import recorded
from tiny import ROOT, SMALLER, sizes

from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.training.loop import Outcome
from mvlm_jax.training.streams import Streams

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import ablation  # noqa: E402
import ablation_tables  # noqa: E402
import ablation_task  # noqa: E402
from ablation_statistics import Queries, decoded, encoded, estimate, holm  # noqa: E402

SETTINGS = SMALLER | {"steps": 4, "checkpoint.every": 2, "data.prefetch": 1}
DEMO = ["--config=demo", *(f"--set={name}={value}" for name, value in SETTINGS.items())]


def queries(text, image, captions=None):
    return Queries(*map(np.array, (text, image, captions or [1] * len(text))))


ONE_HIT, ONE_MISS = queries([0], [0]), queries([1], [1])
HALF = queries([0, 1], [0, 1])


def test_the_mean_of_both_recalls_weighs_each_caption_once():
    # Image 0 finds one of its captions first, image 1 does not: 50. Of three captions two find their image: 66.7.
    found = queries([0, 3], [0, 0, 1], captions=[1, 2])
    assert found.recalls(at=1) == pytest.approx((50, 200 / 3))
    assert estimate([(1, {0: found})]).value == pytest.approx((50 + 200 / 3) / 2)


def test_one_seed_gives_neither_interval_nor_p_value():
    found = estimate([(1, {0: HALF}), (-1, {0: HALF, 1: HALF})])
    assert found.value == 0 and all(map(math.isnan, (found.low, found.high, found.p)))


def test_few_seeds_widen_the_interval_by_students_quantile():
    # A resample has 0, 50 or 100; the deviations are widened by sqrt(2 / 1) * 12.70620 / 1.95996 = 9.16817.
    found = estimate([(1, {0: ONE_HIT, 1: ONE_MISS})])
    assert (found.value, found.low, found.high) == pytest.approx((50, 50 - 458.4086, 50 + 458.4086), abs=1e-3)
    assert found.of_seeds == {0: 100, 1: 0}


def test_all_seeds_are_evaluated_on_the_images_of_a_resample():
    # Both seeds agree, so a resample has 0, 50 or 100 with chances of 1/4, 1/2 and 1/4. If each seed drew images of its
    # own, there would be 25 and 75 too, and 0 in one of 16.
    found = estimate([(1, {0: HALF, 1: HALF})])
    assert (found.low, found.high) == (0, 100)
    assert found.p == pytest.approx(2 / 4, abs=0.03)


def test_arms_are_compared_on_the_same_images_and_seeds():
    # However images and seeds are drawn, the second arm misses what the first one misses.
    runs = {0: HALF, 1: queries([0, 0], [0, 0]), 2: HALF}
    found = estimate([(1, runs), (-1, dict(runs))])
    assert found[:4] == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="not evaluated on the same images"):
        estimate([(1, {0: HALF}), (-1, {0: ONE_HIT})])
    with pytest.raises(ValueError, match="no seed in common"):
        estimate([(1, {0: HALF}), (-1, {1: HALF})])


def test_p_values_are_corrected_by_holm():
    # 3 * 0.01; 2 * 0.03; 0.04, but not below the one before it.
    assert holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([0.6, 0.7]) == [1, 1]


def test_ranks_are_kept_exactly():
    numbers = np.array([0, 1, 70_000, 2**32 - 1])
    np.testing.assert_array_equal(decoded(encoded(numbers)), numbers)
    assert len(encoded(np.zeros(5000, int))) < 100


def line(arm, fraction, seed, found, **changes):
    ranks = {f"{way}{by}": encoded(of) for by in ("", "_rerank") for way, of in zip(("text", "image"), found)}
    return {
        "arm": arm, "fraction": fraction, "seed": seed, "losses": ablation_task.ARMS[arm].losses,
        "retrieval": {"tr_r1": 0.0, "ir_r1": 0.0}, "reconstruction": {}, "seconds": 1.0,
        "ranks": ranks | {"captions": encoded(found.captions)},
    } | changes  # fmt: skip


def cells(table):
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]


def test_the_tables_have_means_over_seeds_and_what_less_data_changes():
    whole, none = queries([0, 0], [0, 0]), queries([1, 6], [1, 20])
    gain = {"mlm_gain": [4.0, 1.0, 6.0], "mim_gain": [0.5, 0.1, 0.6]}
    lines = [
        *(line("maskvlm", part, seed, whole, reconstruction=gain) for part in (1.0, 0.25) for seed in (0, 1)),
        *(line("itc_itm", 1.0, seed, whole) for seed in (0, 1)),
        line("itc_itm", 0.25, 0, none), line("itc_itm", 0.25, 1, HALF),
        line("mlm", 0.25, 2, whole, reconstruction=gain),
    ]  # fmt: skip
    results = ablation_tables.Results(lines)
    rows = cells(ablation_tables.recall_table(results))
    # Seeds with 0 and 50: a standard deviation of 35.4.
    assert rows[-4] == [
        "0.25",
        "itc_itm",
        "contrast",
        "25.0 ± 35.4",
        "75.0",
        "100.0",
        "25.0 ± 35.4",
        "75.0",
        "75.0",
        "2",
    ]
    rebuilt = cells(ablation_tables.reconstruction_table(results))
    assert rebuilt[0] == ["data", "arm", "mlm_gain", "mim_gain", "seeds"]
    assert rebuilt[-1] == ["0.25", "mlm", "4.0", "", "1"]  # no loss trained its decoder
    rows = cells(ablation_tables.difference_table(results, resamples=50))
    # mlm has no seed in common with another arm.
    assert [row[:3] for row in rows[2:]] == [
        ["1", "maskvlm - itc_itm", "+0.0"],
        ["0.25", "maskvlm - itc_itm", "+75.0"],
        ["both", "(maskvlm - itc_itm), more at 0.25 than at 1", "+75.0"],
    ]
    assert rows[-1][-1] == "2 of 2"


def test_the_plot_shows_every_arm(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [line(arm, part, seed, HALF) for arm in ("itc_itm", "maskvlm") for part in (1.0, 0.25) for seed in (0, 1)]
    ablation_tables.draw(lines, output=tmp_path / "plot.png", resamples=20)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_line_that_was_cut_short_is_dropped_and_its_run_made_again(tmp_path):
    file = tmp_path / "results.jsonl"
    first, second = line("itc", 1.0, 0, HALF), line("itc", 1.0, 1, HALF)
    ablation.ResultLines(file).add(first)
    whole = file.read_bytes()
    file.write_bytes(whole + json.dumps(second).encode()[:40])
    lines = ablation.ResultLines(file)
    assert lines.keys == {("itc", 1.0, 0)}
    lines.add(second)
    assert ablation.ResultLines(file).keys == {("itc", 1.0, 0), ("itc", 1.0, 1)}
    assert file.read_bytes() == whole + json.dumps(second).encode() + b"\n"
    file.write_text("{}\n")
    with pytest.raises(UserError, match="line 1 is not of an ablation"):
        ablation.ResultLines(file)


def test_no_run_is_begun_that_would_end_after_the_deadline(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ablation.time, "monotonic", lambda: now[0])
    clock = ablation.Clock(60)
    assert clock.allows("itc")
    clock.took("itc", 20)
    now[0] = 139
    assert clock.allows("itc") and clock.allows("maskvlm")
    clock.took("maskvlm", 25)
    assert clock.allows("itc") and not clock.allows("maskvlm")


@pytest.fixture(scope="module")
def recipe():
    options = ablation.arguments_parser().parse_args(["--directory=unused", *DEMO])
    return ablation.checked_recipe(options)


def test_an_arm_changes_its_losses_and_nothing_else(recipe):
    recipe = recipe.copy_and_resolve_references()
    recipe.loss.itc, recipe.loss.mim = 2.0, 0.0
    changed = {}
    for name, arm in ablation_task.ARMS.items():
        config = arm.config(recipe, fraction=0.5, seed=3)
        changed[name] = (dict(config.loss), config.mask.condition_on)
        assert (config.data.fraction, config.seed) == (0.5, 3)
    assert set(changed) == set(ablation.NAMES)
    assert changed["itc"] == ({"mim": 0.0, "mlm": 0.0, "itc": 2.0, "itm": 0.0, "pixels": "l2"}, "unmasked")
    every = {"mim": 1.0, "mlm": 1.0, "itc": 2.0, "itm": 1.0, "pixels": "l2"}
    assert changed["mlm_mim_independent"] == (every, "none")
    assert changed["both_masked"] == (every, "masked")
    assert changed["maskvlm"] == (every, "unmasked")


def ablation_task_of(arm, recipe, *, data_dir, seed, tokenizer, fraction=1.0):
    config = ablation_task.ARMS[arm].config(recipe, fraction=fraction, seed=seed)
    config.data.data_dir = str(data_dir)
    decoded = ablation_task.DecodedImages(2**20)
    return ablation_task.AblationTask(config=config, tokenizer=tokenizer, decoded=decoded, whole_split=None)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red circle", "a blue square"], kind="roberta", vocab_size=400)


def test_two_arms_of_a_seed_see_the_same_batches_and_masks_and_begin_alike(recipe, tokenizer, demo_dir):
    options = {"recipe": recipe, "data_dir": demo_dir, "tokenizer": tokenizer}
    tasks = [ablation_task_of(arm, seed=1, **options) for arm in ("itc_itm", "maskvlm")]
    tasks.append(ablation_task_of("maskvlm", seed=2, **options))
    streams = [Streams(seed=task.config.seed, step=jnp.int32(0)) for task in tasks]
    drawn = []
    for task, of_run in zip(tasks, streams):
        batches = task.train_batches(0)
        drawn.append(task.prepare(jax.tree.map(jnp.asarray, next(batches)), of_run))
        batches.close()
    for first, second in zip(*map(jax.tree.leaves, drawn[:2]), strict=True):
        np.testing.assert_array_equal(first, second)
    for field in ("image", "image_id", "negative_noise"):
        assert not np.array_equal(getattr(drawn[0], field), getattr(drawn[2], field))
    assert not np.array_equal(drawn[0].image_mask.patch_mask, drawn[2].image_mask.patch_mask)
    # Every arm has all parts of the model, drawn from the same key by the same function.
    assert tasks[0].model == tasks[1].model
    jaxprs = [str(jax.make_jaxpr(task.init)(of_run.key("init"))) for task, of_run in zip(tasks[:2], streams)]
    assert jaxprs[0] == jaxprs[1] and "random_bits" in jaxprs[0]


def test_an_image_is_decoded_once_for_all_runs_and_gives_the_same_batches(recipe, tokenizer, demo_dir):
    options = {"recipe": recipe, "data_dir": demo_dir, "tokenizer": tokenizer, "fraction": 0.125}
    task = ablation_task_of("itc", seed=0, **options)
    with_cache, plain = task.training_examples, super(ablation_task.AblationTask, task).training_examples
    for index in range(24):  # three epochs of 8 scenes
        cached, usual = with_cache[index], with_cache.example(index, decode=False)
        expected = plain[index].images[0].made()
        np.testing.assert_array_equal(usual.images[0].made(), expected)
        np.testing.assert_array_equal(cached.images[0].made(), expected)
    assert task.decoded.decoded == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=finetune_vqa:shapes"], "config.task='vqa' has no arms; give a recipe of pretrain"),
        (["--config=demo", "--set=loss.mimm=1"], "mimm"),
        (["--config=demo", "--set=batch_size=7"], "batch_size=7 must be a multiple of"),
        (["--config=nothing"], "neither a file nor a shipped recipe"),
    ],
)
def test_what_is_no_ablation_is_refused_before_anything_is_written(tmp_path, capsys, flags, message):
    assert ablation.main([f"--directory={tmp_path / 'new'}", *flags]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert message in said
    assert not (tmp_path / "new").exists()


def test_an_ablation_goes_on_where_it_ended_and_refuses_another_recipe(tmp_path, monkeypatch, capsys, demo_dir):
    trained = []

    def train(task, *, config, workdir, program):
        trained.append((config.loss.mim > 0, config.data.fraction, config.seed))
        (workdir / "checkpoints").mkdir(parents=True)
        ranks = {"text": encoded([0, 1]), "image": encoded([0, 1]), "captions": encoded([1, 1])}
        return Outcome(False, {"retrieval-val": {"tr_r1": 50.0, "ir_r1": 50.0}, "ranks-val": ranks})

    monkeypatch.setattr("mvlm_jax.training.loop.train", train)
    programs = SimpleNamespace(of=lambda arm, task: SimpleNamespace(of_seed=lambda seed: seed))
    monkeypatch.setattr(ablation_task, "Programs", lambda: programs)
    flags = [f"--directory={tmp_path}", *DEMO, f"--set=data.data_dir={demo_dir}", "--arms", "itc_itm", "maskvlm"]
    assert ablation.main([*flags, "--fractions", "1", "0.5", "--seeds=1"]) == 0
    # Seeds are the outer loop, so that what is there at a deadline is paired.
    assert trained == [(False, 1.0, 0), (True, 1.0, 0), (False, 0.5, 0), (True, 0.5, 0)]
    assert not list(tmp_path.glob("runs/*/checkpoints"))
    assert ablation.main([*flags, "--seeds=2"]) == 0
    assert trained[4:] == [(False, 1.0, 1), (True, 1.0, 1)]
    assert [json.loads(text)["training_images"] for text in (tmp_path / "results.jsonl").open()] == [
        64,
        64,
        32,
        32,
        64,
        64,
    ]
    shown = (tmp_path / "tables.md").read_text()
    assert "| 1 | maskvlm | contrast | 50.0 ± 0.0 |" in shown and shown in capsys.readouterr().out
    assert ablation.main([*flags, "--set=steps=5"]) == 2
    assert "another recipe: config.steps is 4 there and 5 here" in capsys.readouterr().err
    assert ablation.main([*flags, "--seeds=3", "--deadline=0"]) == 0
    assert len(trained) == 6
    assert "the deadline leaves no time for seed 2 of itc_itm at 1" in capsys.readouterr().out


KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import ablation, ablation_task
batches = ablation_task.AblationTask.train_batches
def dying(self, start):
    for step, batch in enumerate(batches(self, start), start):
        if self.config.loss.mim and self.config.seed and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
ablation_task.AblationTask.train_batches = dying
ablation.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_an_ablation_that_was_killed_within_an_arm_gives_the_same_tables(tmp_path, demo_dir):
    flags = [*DEMO, f"--set=data.data_dir={demo_dir}", "--arms", "itc_itm", "maskvlm", "--seeds=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, f"--directory={killed}", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with (killed / "results.jsonl").open("a") as file:
        file.write('{"arm": "maskvlm", "frac')
    # Both in one process, which is to start once.
    script = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import ablation\n"
    script += "for name in sys.argv[1:3]: assert ablation.main([f'--directory={name}', *sys.argv[3:]]) == 0"
    subprocess.run([sys.executable, "-c", script, killed, whole, *flags], env=environment, check=True)
    lines = [[json.loads(text) for text in (where / "results.jsonl").open()] for where in (killed, whole)]
    clock = ("seconds", "compiling_seconds")
    assert [len(of) for of in lines] == [4, 4]
    assert [{k: v for k, v in row.items() if k not in clock} for row in lines[0]] == [
        {k: v for k, v in row.items() if k not in clock} for row in lines[1]
    ]
    assert (killed / "tables.md").read_text() == (whole / "tables.md").read_text()


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the red green blue circle square triangle".split()


@pytest.mark.slow
def test_the_evidence_on_a_gpu_starts_from_both_encoders(tmp_path, demo_dir):
    """At tiny size on the CPU: with folders as published ones, and drawn scenes in place of Flickr8k."""
    golden = ROOT / "tests" / "interop" / "golden"
    for name in ("dinov2", "bert"):
        shutil.copytree(golden / name, tmp_path / name)
    words = WORDS + [f"[unused{number}]" for number in range(48 - len(WORDS))]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    tiny = sizes(width=16, heads=2, layers=2, mlp_ratio=2) | {
        "cross.layers": 1, "cross.decoder_layers": 1, "image.size": 16, "image_encoder.patch": 4,
        "text_encoder.vocab_size": 48, "text_encoder.positions": 12, "text.max_length": 12, "batch_size": 8,
        "matching.group": 4, "steps": 3, "optimizer.warmup_steps": 1, "eval.batch_size": 16, "eval.rerank": 3,
        "eval.bootstrap": 20, "data.train": "tfds:shapes:train", "data.eval": "tfds:shapes:val", "mesh.data": 8,
    }  # fmt: skip
    command = [
        "bash", ROOT / "launch" / "gpu_evidence.sh", demo_dir, "dinov2", "bert", "results",
        *(f"--set={name}={value}" for name, value in tiny.items()), "--seeds=1",
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (tmp_path / "results" / "results.jsonl").open()]
    arms = ("itc_itm", "mlm_mim_independent", "maskvlm")
    assert [(row["fraction"], row["arm"]) for row in lines] == [(part, arm) for part in (1.0, 0.25) for arm in arms]
    for row in lines:
        used = json.loads(
            (tmp_path / "results" / "runs" / f"{row['arm']}-{row['fraction']:g}-0" / "weights.json").read_text()
        )
        assert {report["encoder"] for report in used["loaded"]} == {"image_encoder", "text_encoder"}
    assert (tmp_path / "results" / "tables.md").read_text() in done.stdout


def test_the_evidence_on_a_gpu_says_what_it_needs_and_counts_its_time_from_its_start(tmp_path):
    for name in ("data", "image", "text"):
        (tmp_path / name).mkdir()
    given = [str(tmp_path / name) for name in ("data", "image", "text", "out")]
    [command] = recorded("gpu_evidence.sh", [*given, "--seeds=2"], directory=tmp_path).splitlines()
    words = command.split()
    assert words[:3] == ["python3", "-u", "benchmarks/ablation.py"] and words[-1] == "--seeds=2"
    options = ablation.arguments_parser().parse_args(words[3:])
    assert 470 <= options.deadline <= 480 and options.seeds == 2
    assert f"init_from.text={tmp_path / 'text'}" in options.set
    script = ["bash", ROOT / "launch" / "gpu_evidence.sh", str(tmp_path)]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("usage: launch/gpu_evidence.sh DATA_DIR")
