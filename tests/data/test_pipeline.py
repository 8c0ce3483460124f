import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from examples import ListSource, encoded, pair_source, picture

from mvlm_jax.data import training_examples
from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.background import in_background
from mvlm_jax.data.images import ImageSpec, decode_image, evaluate_transform
from mvlm_jax.data.mixtures import Component, Mixture, open_mixture
from mvlm_jax.data.pipeline import PairBatches, PairExamples, eval_split, stable_hash
from mvlm_jax.data.sources import open_source
from mvlm_jax.errors import UserError

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 8
SPEC = ImageSpec(size=16, max_pixels=10_000)
AUGMENT = Augment(min_scale=0.2, flip=True, operations=2, magnitude=7)
PLAIN = {"augment": Augment(min_scale=1.0, flip=False, operations=0, magnitude=7)}


def take(
    count, source, tokenizer, *, seed=5, augment=AUGMENT, batch_size=BATCH_SIZE, rows=None, start_step=0, workers=0
):
    mixture = source if isinstance(source, Mixture) else Mixture([Component(source)])
    examples = PairExamples(mixture=mixture, seed=seed, spec=SPEC, augment=augment)
    own = tuple(range(batch_size) if rows is None else map(int, rows))
    steps = PairBatches(examples, tokenizer, max_length=16, batch_size=batch_size, rows=own)
    batches = in_background(steps, start_step=start_step, workers=workers, prefetch=2)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def source(shapes_dir):
    """36 examples an epoch: 1.5 times half of one source, and half of another."""
    mixture = open_mixture("1.5*tfds:shapes:train + tfds:shapes:val", data_dir=shapes_dir, fraction=0.5)
    assert mixture.epoch_size == 36
    return mixture


@pytest.fixture(scope="module")
def uninterrupted(source, tokenizer):
    return take(12, source, tokenizer)  # two epochs and two thirds


def test_batch_has_the_promised_shapes(uninterrupted):
    described = {name: (value.shape, value.dtype.name) for name, value in uninterrupted[0].items()}
    assert described == {
        "image": ((8, 16, 16, 3), "uint8"),
        "text": ((8, 16), "int32"),
        "image_id": ((8,), "int32"),
        "skipped": ((8,), "int32"),
    }


@pytest.mark.parametrize("start_step", [0, 3, 7])
def test_resumed_run_sees_the_batches_of_an_uninterrupted_one(start_step, source, tokenizer, uninterrupted):
    assert_equal(take(3, source, tokenizer, start_step=start_step), uninterrupted[start_step : start_step + 3])


@pytest.mark.parametrize(
    ("rows", "workers"), [([0, 1, 2, 3], 0), ([4, 5, 6, 7], 0), ([7], 0), ([1, 2, 6], 0), ([1, 2, 6], 1)]
)
def test_a_process_reads_its_own_rows_of_the_global_batch(rows, workers, source, tokenizer, uninterrupted):
    part = take(3, source, tokenizer, start_step=4, rows=rows, workers=workers)
    assert_equal(part, [{name: value[rows] for name, value in batch.items()} for batch in uninterrupted[4:7]])


def test_a_process_reads_no_record_of_another(tokenizer):
    class Watched(ListSource):
        read = set()

        def __getitem__(self, index):
            self.read.add(stable_hash(f"image-{index}"))
            return super().__getitem__(index)

    whole_epoch = take(8, pair_source(64), tokenizer, **PLAIN)
    watched = Watched(pair_source(64).examples)
    take(2, watched, tokenizer, rows=[2, 3], **PLAIN)
    assert len(watched.read) >= 4
    assert watched.read <= {number for batch in whole_epoch for number in batch["image_id"][[2, 3]].tolist()}


def image_ids(mixture, tokenizer):
    """Of an epoch."""
    [batch] = take(1, mixture, tokenizer, **{**PLAIN, "batch_size": mixture.epoch_size})
    return batch["image_id"].tolist()


def test_same_id_in_two_sources_is_not_the_same_image(tokenizer):
    alike = [Component(pair_source(4)), Component(pair_source(4))]
    assert len(set(image_ids(Mixture(alike), tokenizer))) == 8


def test_same_id_in_one_source_is_the_same_image_in_every_pass(tokenizer):
    twice = Mixture([Component(pair_source(4), weight=2.0), Component(pair_source(3))])
    assert sorted(Counter(image_ids(twice, tokenizer)).values()) == [1, 1, 1, 2, 2, 2, 2]


def test_ids_of_a_single_source_are_hashed_as_they_are(tokenizer):
    found = image_ids(Mixture([Component(pair_source(4))]), tokenizer)
    assert set(found) == {stable_hash(f"image-{i}") for i in range(4)}


def shares(source, tokenizer, *, hosts, **options):
    """The global batches that all hosts hold together."""
    rows = np.split(np.arange(BATCH_SIZE), hosts)
    parts = [take(3, source, tokenizer, rows=own, **options) for own in rows]
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_rows_of_one_global_batch(hosts, source, tokenizer, uninterrupted):
    assert_equal(shares(source, tokenizer, start_step=4, hosts=hosts), uninterrupted[4:7])


def test_one_worker_process_for_each_of_two_hosts_changes_nothing(source, tokenizer, uninterrupted):
    assert_equal(shares(source, tokenizer, start_step=2, hosts=2, workers=1), uninterrupted[2:5])


def test_four_worker_processes_change_nothing(source, tokenizer, uninterrupted):
    assert_equal(take(10, source, tokenizer, start_step=2, workers=4), uninterrupted[2:])


def test_run_killed_within_an_epoch_continues_without_repeating_or_skipping(shapes_dir, tmp_path):
    ids = tmp_path / "ids.jsonl"
    ids.touch()
    command = [sys.executable, str(HERE / "recorder.py"), shapes_dir, str(ids)]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE.parent.parent}"}

    run = subprocess.Popen([*command, "--workers=1", "--pause=0.2"], env=environment, stdout=subprocess.PIPE)
    with run:
        children = json.loads(run.stdout.readline())
        while ids.read_text().count("\n") < 7:  # within the second epoch, of five batches
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
    assert children and all(_ends(child) for child in children)
    assert ids.read_text().count("\n") < 10

    subprocess.run([*command, "--steps=15"], env=environment, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in ids.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(15))
    epochs = np.array([row["ids"] for row in rows]).reshape(3, 40)
    assert [len(set(epoch)) for epoch in epochs.tolist()] == [40, 40, 40]


def _ends(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        for _ in range(200):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return True
    return False


def test_seed_decides(source, tokenizer, uninterrupted):
    assert_equal(take(1, source, tokenizer), uninterrupted[:1])
    other = take(1, source, tokenizer, seed=6)[0]
    assert (other["image_id"] != uninterrupted[0]["image_id"]).any()


def test_far_step_costs_nothing(source, tokenizer):
    assert len(take(1, source, tokenizer, start_step=10**9)) == 1


def test_every_record_comes_exactly_once_per_epoch_in_another_order(tokenizer):
    ids = np.concatenate([b["image_id"] for b in take(15, pair_source(20), tokenizer)]).reshape(6, 20)
    expected = sorted(stable_hash(f"image-{i}") for i in range(20))
    assert [sorted(epoch.tolist()) for epoch in ids] == [expected] * 6
    assert len({tuple(epoch) for epoch in ids.tolist()}) == 6


def test_source_smaller_than_a_batch_runs_through_its_borders(tokenizer):
    ids = np.concatenate([b["image_id"] for b in take(3, pair_source(3), tokenizer)])
    assert all(len(set(ids[i : i + 3].tolist())) == 3 for i in range(0, 24, 3))


def test_epochs_differ_in_augmentation_and_caption(tokenizer):
    batches = take(6, pair_source(1, captions=["two dogs run", "a small green star"]), tokenizer)
    images = np.concatenate([b["image"] for b in batches])
    assert len(np.unique(images, axis=0)) == 48
    assert len(np.unique(np.concatenate([b["text"] for b in batches]), axis=0)) == 2


def test_unaugmented_row_is_the_image_of_its_id(tokenizer):
    source = pair_source(5)
    by_id = {stable_hash(e["image_id"]): e["image"] for e in source.examples}
    batch = take(1, source, tokenizer, **PLAIN)[0]
    crops = []
    for image, identity in zip(batch["image"], batch["image_id"], strict=True):
        whole = evaluate_transform(decode_image(by_id[int(identity)], max_pixels=10_000), size=16)
        crops.append(np.abs(image.astype(int) - whole).mean())
    assert max(crops) < 45  # a crop of the whole area still has a ratio of its own


def test_unusable_record_is_replaced_by_the_next_and_counted(tokenizer):
    batches = take(5, pair_source(8, broken=(2, 3, 7)), tokenizer)
    for batch in batches:
        found = sorted(zip(batch["image_id"].tolist(), batch["skipped"].tolist(), strict=True))
        # 2 becomes 4 after two steps, 3 becomes 4 after one, and 7 becomes 0 around the end.
        expected = [(0, 0), (0, 1), (1, 0), (4, 0), (4, 1), (4, 2), (5, 0), (6, 0)]
        assert found == sorted((stable_hash(f"image-{i}"), skipped) for i, skipped in expected)


def test_an_image_whose_body_is_broken_changes_nothing_for_the_next_one(tokenizer):
    """A batch reads the headers of all its images before it decodes one; an example alone is made in one go."""
    source = pair_source(24)
    for index in range(0, 24, 3):
        source.examples[index]["image"] = encoded(picture(seed=index), "JPEG")[:-200]  # the header is sound
    examples = PairExamples(mixture=Mixture([Component(source)]), seed=5, spec=SPEC, augment=AUGMENT)
    batches = take(6, source, tokenizer)
    alone = [examples[index] for index in range(6 * BATCH_SIZE)]
    images = np.stack([example.images[0].made() for example in alone])
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), images)
    skipped = np.concatenate([batch["skipped"] for batch in batches]).tolist()
    assert skipped == [example.skipped for example in alone] and sorted(set(skipped)) == [0, 1]
    text = tokenizer.encode([example.caption for example in alone], max_length=16)
    np.testing.assert_array_equal(np.concatenate([batch["text"] for batch in batches]), text)


def test_record_without_captions_is_replaced(tokenizer):
    source = pair_source(2)
    source.examples[0]["captions"] = []
    batch = take(1, source, tokenizer)[0]
    assert set(batch["image_id"].tolist()) == {stable_hash("image-1")}
    assert sorted(batch["skipped"].tolist()) == [0] * 4 + [1] * 4


def test_source_without_a_usable_record_is_refused(tokenizer):
    with pytest.raises(UserError, match="3 records in a row cannot be used"):
        take(1, pair_source(3, broken=(0, 1, 2)), tokenizer)


def test_endless_run_of_broken_records_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(training_examples, "LONGEST_GAP", 4)
    with pytest.raises(UserError, match="4 records in a row"):
        take(3, pair_source(20, broken=tuple(range(19))), tokenizer)


def test_wrong_seed_is_refused_before_the_first_batch(tokenizer):
    with pytest.raises(UserError, match="seed=-1"):
        take(1, pair_source(1), tokenizer, seed=-1)


def test_identity_hash_is_stable():
    assert stable_hash("image-0") == 18461596
    assert -(2**31) <= min(stable_hash(str(i)) for i in range(100)) < 0


def evaluated(source, tokenizer, *, host_bytes=2**30):
    return eval_split(source, tokenizer, max_length=16, spec=SPEC, host_bytes=host_bytes)


@pytest.mark.parametrize("host_bytes", [0, 2**30])
def test_evaluation_leaves_out_and_counts_what_it_cannot_use(host_bytes, tokenizer):
    source = pair_source(7, captions=["two dogs run", "a star"], broken=(1, 4))
    source.examples[5]["captions"] = []
    split = evaluated(source, tokenizer, host_bytes=host_bytes)
    assert split.image_ids == ["image-0", "image-2", "image-3", "image-6"]
    assert split.left_out == {"unrecognized": 2, "no_captions": 1}
    assert split.caption_image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(split.captions[:2], tokenizer.encode(["two dogs run", "a star"], max_length=16))

    batches = list(split.image_batches(3))
    assert [indices.tolist() for _, indices in batches] == [[0, 1, 2], [3]]
    images = np.concatenate([images for images, _ in batches])
    for image, record in zip(images, (0, 2, 3, 6), strict=True):
        pixels = decode_image(source[record]["image"], max_pixels=10_000)
        np.testing.assert_array_equal(image, evaluate_transform(pixels, size=16))


def test_evaluation_of_nothing_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"none of the 2 images .*unrecognized: 2"):
        evaluated(pair_source(2, broken=(0, 1)), tokenizer)


@pytest.fixture
def incomplete_list(tmp_path):
    """A list of which one image is not there and one is said nothing of."""
    for i in (0, 2, 3):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(seed=i)))
    captions = {0: ["two dogs run", " "], 1: "the left hand", 2: None, 3: "a star"}
    rows = [{"image": f"{i}.png", "caption": caption} for i, caption in captions.items()]
    (tmp_path / "ann.json").write_text(json.dumps(rows))
    return open_source(f"json:{tmp_path}/ann.json", data_dir="")


@pytest.mark.parametrize("workers", [0, 1])
def test_absent_images_and_blank_captions_are_stepped_over_and_counted(incomplete_list, workers, tokenizer):
    blank = tokenizer.encode([" "], max_length=16)[0]
    for batch in take(2, incomplete_list, tokenizer, workers=workers):
        found = sorted(zip(batch["image_id"].tolist(), batch["skipped"].tolist(), strict=True))
        expected = [(0, 0), (3, 0), (3, 1), (3, 2)] * 2
        assert found == sorted((stable_hash(f"{i}.png"), skipped) for i, skipped in expected)
        assert not (batch["text"] == blank).all(1).any()


def test_absent_images_and_blank_captions_are_left_out_of_evaluation(incomplete_list, tokenizer):
    split = evaluated(incomplete_list, tokenizer)
    assert (split.image_ids, split.left_out) == (["0.png", "3.png"], {"absent": 1, "no_captions": 1})
    np.testing.assert_array_equal(split.captions, tokenizer.encode(["two dogs run", "a star"], max_length=16))


def test_captions_of_absent_images_train_no_tokenizer(incomplete_list):
    assert "the left hand" not in set(Mixture([Component(incomplete_list)]).captions())
