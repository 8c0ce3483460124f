"""The glossary of metrics names what is written, and nothing else."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import ROOT, recipe, tiny_model

from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.evaluation import classification, retrieval
from mvlm_jax.objectives import losses
from mvlm_jax.tasks.registry import describe_task
from mvlm_jax.tasks.vqa import Answer
from mvlm_jax.training.metrics_log import read_metrics
from mvlm_jax.training.skew import HostTimes, skew_of
from mvlm_jax.training.throughput import Throughput
from mvlm_jax.training.workdir import ORIGIN

GLOSSARY = (ROOT / "docs" / "reference" / "metrics.md").read_text()
BRACES = re.compile(r"\{([^{}]*)\}")


def documented(heading: str) -> set[str]:
    """The names in the first column of the tables of a section."""
    section = GLOSSARY.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for text in re.findall("`([^`]+)`", cell) for name in expanded(text)}


def expanded(text: str) -> list[str]:
    """`r{1,5}` is r1 and r5."""
    parts = BRACES.split(text)
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def check(heading: str, written: set[str]) -> None:
    """`<…>` in a documented name stands for any text."""
    names = documented(heading)
    patterns = {name: re.sub("<[^>]*>", ".+", re.escape(name)) for name in names}
    assert names and written
    missing = {name for name in written if not any(re.fullmatch(pattern, name) for pattern in patterns.values())}
    gone = {name for name, pattern in patterns.items() if not any(re.fullmatch(pattern, one) for one in written)}
    assert (missing, gone) == (set(), set()), heading


def of_file(path) -> set[str]:
    return set(json.loads(path.read_text())) - set(ORIGIN)


def test_a_name_in_braces_stands_for_several():
    assert expanded("a_{x,y}_{1,2}") == ["a_x_1", "a_x_2", "a_y_1", "a_y_2"]


def test_what_training_writes(demo_run):
    lines = [line for line in read_metrics(demo_run / "metrics.jsonl") if "loss" in line]
    written = set().union(*lines) - {"step", "time", "timing"}
    logits, label = jnp.zeros((2, 3)), jnp.zeros(2, int)
    written |= set(jax.eval_shape(losses.classification_losses, logits, label))
    answers, weights = jnp.zeros((2, 1, 4), int), jnp.zeros((2, 1))
    logits = jnp.zeros((2, 1, 4, 5))
    written |= set(jax.eval_shape(lambda *of: losses.answer_losses(*of, pad_id=0), logits, answers, weights))
    check("Losses and rates of training", written)


def test_what_is_written_of_speed():
    clock = iter([0.0, 1.0])
    throughput = Throughput(
        steps=9, batch_size=4, flops_per_step=1.0, device_kind="NVIDIA H100", device_count=1, clock=lambda: next(clock)
    )
    throughput.restart(1)
    check("Speed of training", set(throughput.report(2)))


def test_what_is_written_of_many_hosts():
    check("Speed of many hosts", set(skew_of([HostTimes(0.1, 0.1, 0.1)] * 2).timing()))


def test_what_an_evaluation_of_pairs_writes(demo_run):
    nothing = retrieval.Ranks(np.zeros(1, int), np.zeros(1, int))
    written = of_file(demo_run / "eval" / "retrieval-shapes-val.json") | set(retrieval.recalls({"_rerank_16": nothing}))
    check("Retrieval", written)
    check("Reconstruction", of_file(demo_run / "eval" / "reconstruction-shapes-val.json"))


def results(name: str, predicted) -> set[str]:
    """The metrics of a task, of two examples and one that was left out."""
    config = recipe(name, "shapes")
    task = describe_task(config)
    rows = [LabelledRow((), "text", (label,) * 10, kind, "group", label) for label, kind, _ in predicted]
    [found] = task.results(list(zip(rows, [one for *_, one in predicted])), [(rows[0], "corrupt")]).values()
    return set(found)


def test_what_an_evaluation_of_answers_writes():
    answers = [("yes", "yes/no", Answer("yes", "yes")), ("two", "number", Answer("one", "two"))]
    check("Answers", results("finetune_vqa", answers))


def test_what_an_evaluation_of_labels_writes():
    judged = [("True", "", {"True": 0.9, "False": 0.1}), ("False", "", {"True": 0.9, "False": 0.1})]
    written = results("finetune_nlvr2", judged)
    labels = dict.fromkeys(("contradiction", "neutral", "entailment"), 0.3)
    of_three = results("finetune_snli_ve", [("neutral", "", labels), ("entailment", "", labels)])
    assert of_three < written
    check("Labels", written)


def test_what_zero_shot_classification_writes(tmp_path, monkeypatch):
    for name in "abcdef":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    monkeypatch.setattr(classification, "compute", lambda model, params, image, **_: jnp.ones((len(image), 2)))
    monkeypatch.setattr(classification, "class_embeddings", lambda *_, **__: np.ones((6, 2)))
    prompts = classification.Prompts(train_tokenizer(["a"], kind="roberta", vocab_size=300), max_length=8)
    spec = ImageSpec(size=8, max_pixels=64)
    model, params = tiny_model(pad_id=0), {"one": jnp.ones(1)}
    found = classification.classify_folder(model, params, tmp_path, prompts, spec=spec, batch_size=8)
    check("Zero-shot classification", set(found))


def test_what_the_demo_prints():
    text = (ROOT / "launch" / "demo.py").read_text()
    lists = re.findall(r"for name in \(([^)]*)\)", text)
    last = re.findall(r"json\.dumps\(\{\*\*summary, (.*)\}\)", text)
    assert len(lists) == 2 and len(last) == 1
    check("What make demo prints", set(re.findall(r'"(\w+)"', "".join(lists))) | set(re.findall(r'"(\w+)":', last[0])))


@pytest.mark.parametrize("name", ["step", "time", *ORIGIN])
def test_what_a_line_or_a_file_says_of_itself_is_named(name):
    assert f"`{name}`" in GLOSSARY.partition("\n## ")[0]
