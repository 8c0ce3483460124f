"""The input pipeline written for PyTorch, which ours is measured against: it runs, and makes batches like ours."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    monkeypatch.syspath_prepend(str(TESTS))
    for name in ("input_pipeline", "torch_pipeline"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_ours_and_pytorchs_take_turns_in_one_thread(tmp_path, capsys):
    import input_pipeline
    from tiny import prepare_shapes

    prepare_shapes(tmp_path / "data")
    toy = ("--source=tfds:shapes:train", "--image_size=32", "--batch_size=4", "--rounds=1", "--parts=core")
    given = [*toy, f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'figures.json'}"]
    assert input_pipeline.main(given) == 0
    rates = json.loads((tmp_path / "figures.json").read_text())["core"]
    assert [len(rate) for rate in rates.values()] == [1] * 4
    assert rates["PyTorch DataLoader + Pillow, num_workers=0"][0] > 0
    assert "PyTorch's way is left out" not in capsys.readouterr().out


@pytest.fixture
def pairs(tmp_path):
    """Six photos of noise, no two of one size."""
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    return [(tmp_path / f"{number}.jpg", ["a dog", "a cat"]) for number in range(6)]


def test_a_batch_has_the_shapes_of_ours_and_an_epoch_drops_the_rest(pairs):
    from torch_pipeline import Pairs, batches

    from mvlm_jax.data.text import train_tokenizer

    tokenizer = train_tokenizer(["a dog", "a cat"], kind="roberta", vocab_size=300)
    dataset = Pairs(pairs, tokenizer, size=32, max_length=8, min_scale=0.2, operations=2, magnitude=7)
    [batch] = batches(dataset, batch_size=4, workers=0, seed=0)
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].numpy().dtype == np.uint8
    captions = {tuple(ids) for ids in tokenizer.encode(["a dog", "a cat"], max_length=8).tolist()}
    assert batch["text"].shape == (4, 8) and {tuple(ids) for ids in batch["text"].tolist()} <= captions


def test_every_operation_keeps_the_size_of_an_image_and_all_but_one_change_it(pairs):
    from torch_pipeline import OPERATIONS

    image = Image.open(pairs[0][0]).convert("RGB").resize((32, 32))
    changed = [operation(image, 0.7, 1) for operation in OPERATIONS]
    assert {result.size for result in changed} == {(32, 32)}
    assert sum(result.tobytes() == image.tobytes() for result in changed) == 1
