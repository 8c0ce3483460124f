from collections import Counter

import numpy as np
import pytest
from examples import encoded, picture
from PIL import Image

from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.background import in_background
from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.data.labelled_pipeline import (
    Classes,
    LabelledBatches,
    LabelledExamples,
    LabelledSplit,
    WeightedAnswers,
    training_texts,
)
from mvlm_jax.data.mixtures import Component, Mixture
from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.errors import UserError

LABELS = ("False", "True")
IMAGES = {"images": 2, "spec": ImageSpec(size=16, max_pixels=10**6)}
AUGMENT = Augment(min_scale=0.5, flip=False, operations=0, magnitude=0)


class Pairs:
    """Two images a statement; number 3 has a broken one, number 5 a label that is unknown."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        row = self.row(index)
        images = [encoded(picture(seed=2 * index + side)) for side in range(2)]
        if index == 3:
            images[1] = b"not an image"
        return {**row._asdict(), "images": images, "answers": list(row.answers)}

    def row(self, index):
        answer = "Perhaps" if index == 5 else LABELS[index % 2]
        return LabelledRow((), f"statement {index}", (answer,), "", "", self.example_id(index))

    def example_id(self, index):
        return f"id-{index}"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"statement {number} yes no" for number in range(12)], kind="roberta", vocab_size=400)


class Sides:
    """Red on the left, blue on the right; every question is answered by all with the same word."""

    def __init__(self, answer):
        self.answer = answer

    def __len__(self):
        return 64

    def __getitem__(self, index):
        image = Image.new("RGB", (40, 30), "red")
        image.paste("blue", (20, 0, 40, 30))
        row = self.row(index)
        return {**row._asdict(), "images": [encoded(image)], "answers": list(row.answers)}

    def row(self, index):
        return LabelledRow((), "Where is the dog?", (self.answer,) * 10, "", "", self.example_id(index))

    def example_id(self, index):
        return f"id-{index}"


def batches(tokenizer, *, rows=range(4), **changes):
    fields = {"mixture": Mixture([Component(Pairs())]), "targets": Classes(LABELS), "seed": 0, "augment": AUGMENT}
    examples = LabelledExamples(**{**fields, **IMAGES, **changes})
    return LabelledBatches(examples, tokenizer, max_length=8, batch_size=4, rows=tuple(rows))


def ids_of(made, step):
    return [made.examples[index].example_id for index in range(4 * step, 4 * step + 4)]


def test_batches_hold_both_images_and_the_label(tokenizer):
    made = batches(tokenizer)
    for step in range(3):
        batch, ids = made[step], ids_of(made, step)
        assert batch["image"].shape == (4, 2, 16, 16, 3)
        assert batch["image"].dtype == np.uint8
        numbers = [int(identity.removeprefix("id-")) for identity in ids]
        np.testing.assert_array_equal(batch["label"], np.array(numbers) % 2)
        assert [tokenizer.decode(row) for row in batch["text"]] == [f"statement {number}" for number in numbers]


def test_an_epoch_holds_every_usable_example(tokenizer):
    made = batches(tokenizer)
    first, second = ([i for step in steps for i in ids_of(made, step)] for steps in (range(3), range(3, 6)))
    assert set(first) == set(second) == {f"id-{number}" for number in range(12)} - {"id-3", "id-5"}
    assert first != second
    assert sum(int(made[step]["skipped"].sum()) for step in range(3)) >= 2


def test_a_batch_depends_on_nothing_but_seed_and_step(tokenizer):
    whole = batches(tokenizer)[5]
    parts = [batches(tokenizer, rows=rows)[5] for rows in (range(2), range(2, 4))]
    later = next(in_background(batches(tokenizer), start_step=5, workers=0, prefetch=2))
    for name, rows in whole.items():
        np.testing.assert_array_equal(rows, np.concatenate([part[name] for part in parts]))
        np.testing.assert_array_equal(rows, later[name])
    assert not np.array_equal(whole["image"], batches(tokenizer, seed=1)[5]["image"])


@pytest.mark.parametrize(("answer", "least", "most"), [("on the left", 0, 0), ("in the grass", 20, 44)])
def test_images_whose_answer_names_a_side_are_not_flipped(tokenizer, answer, least, most):
    targets = WeightedAnswers(tokenizer, slots=1, length=5)
    augment = Augment(min_scale=1.0, flip=True, operations=0, magnitude=0)
    changes = {"targets": targets, "images": 1, "augment": augment}
    made = batches(tokenizer, mixture=Mixture([Component(Sides(answer))]), **changes)
    flipped = sum(int((made[step]["image"][:, 0, 8, 2, 2] > 128).sum()) for step in range(16))
    assert least <= flipped <= most


def test_answers_weigh_as_often_as_they_were_given(tokenizer):
    targets = WeightedAnswers(tokenizer, slots=3, length=5)
    found = targets.encode(["no"] * 3 + ["yes"] * 7)
    np.testing.assert_allclose(found["answer_weights"], [0.7, 0.3, 0])
    assert [tokenizer.decode(row) for row in found["answers"]] == ["yes", "no", ""]
    np.testing.assert_array_equal(found["answers"][:2], tokenizer.encode(["yes", "no"], max_length=5, continuing=True))
    assert (found["answers"][2] == tokenizer.ids.pad).all()
    assert targets.encode([]) is None


def test_a_tokenizer_of_its_own_has_a_token_for_each_answer():
    rows = [LabelledRow((), f"is it number {number}?", ("yes", "no") * 5, "", "", "") for number in range(9)]
    tokenizer = train_tokenizer(training_texts(rows), kind="roberta", vocab_size=400)
    answers = tokenizer.encode(["yes", "no"], max_length=8, continuing=True)
    np.testing.assert_array_equal((answers != tokenizer.ids.pad).sum(axis=1), 3)


def test_splits_are_read_once_in_order_and_say_what_they_left_out(tokenizer):
    split = LabelledSplit(source=Pairs(), tokenizer=tokenizer, max_length=8, **IMAGES)
    read = list(split.batches(5))
    assert [row.example_id for _, rows, _ in read for row in rows] == [f"id-{n}" for n in range(12) if n != 3]
    assert [(row.example_id, reason) for _, _, left in read for row, reason in left] == [("id-3", "unrecognized")]
    assert [len(batch["image"]) for batch, _, _ in read] == [4, 5, 2]
    assert [tokenizer.decode(row) for row in read[2][0]["text"]] == ["statement 10", "statement 11"]


def test_a_split_reads_each_usable_example_once(tokenizer):
    class Counting:
        def __init__(self):
            self.pairs, self.reads = Pairs(), Counter()

        def __len__(self):
            return len(self.pairs)

        def __getitem__(self, index):
            self.reads[index] += 1
            return self.pairs[index]

        def row(self, index):
            self.reads[index] += 1
            return self.pairs.row(index)

        def example_id(self, index):
            return self.pairs.example_id(index)

    source = Counting()
    rows = [
        row
        for _, rows, _ in LabelledSplit(source=source, tokenizer=tokenizer, max_length=8, **IMAGES).batches(5)
        for row in rows
    ]
    assert rows == [source.pairs.row(index) for index in range(12) if index != 3]
    assert source.reads == {index: 2 if index == 3 else 1 for index in range(12)}


def test_another_number_of_images_is_refused(tokenizer):
    with pytest.raises(UserError, match="example id-.* has 2 images; the task takes 1"):
        batches(tokenizer, images=1)[0]
