"""What evaluations say, against numbers by hand."""

import pytest

from mvlm_jax import config as config_lib
from mvlm_jax.report.confusion import confusion
from mvlm_jax.report.verdict import chance, results

RETRIEVAL = {"task": "retrieval", "split": "val", "step": 6, "source": "tfds:shapes:val", "images": 4, "captions": 8}


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("ir_r1", 25.0),  # one of four images
        ("ir_r10", 100.0),
        ("tr_r1", 25.0),  # two of eight captions
        ("tr_r5_rerank", 100 * (1 - 6 / 8 * 5 / 7 * 4 / 6 * 3 / 5 * 2 / 4)),
        ("r_mean", None),
        ("mlm_gain", None),
    ],
)
def test_chance_of_a_recall(name, percent):
    assert chance(name, images=4, captions=8) == (percent and pytest.approx(percent))


def test_recalls_are_told_against_chance():
    [result] = results({"a": RETRIEVAL | {"tr_r1": 50.0, "ir_r1": 75.0}}, config=config_lib.default())
    assert result.sentences == [
        "For 50.0% of 4 images the caption ranked first is right; for 75.0% of 8 captions the image ranked first is "
        "right (by similarity alone; chance gives 25%)."
    ]
    [group] = result.groups
    assert [(bar.width, bar.chance) for bar in group.bars] == [(50.0, 25.0), (75.0, 25.0)]


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (
            [13.2, 11.5, 15.0],
            "A hidden word is rebuilt better beside its own partner than a wrong partner, by 13.2 points",
        ),
        (
            [-3.0, -4.0, -2.0],
            "A hidden word is rebuilt worse beside its own partner than a wrong partner, by 3.0 points",
        ),
        ([0.4, -0.1, 0.9], "Whether a hidden word is rebuilt better beside its own partner is open"),
    ],
)
def test_a_gain_is_claimed_only_where_its_interval_leaves_zero_out(interval, words):
    content = {"task": "reconstruction", "step": 6, "mlm_gain": interval}
    [result] = results({"a": content}, config=config_lib.default())
    assert result.sentences[0].startswith(words)


def test_a_gain_over_patches_that_tell_something_is_told_in_per_cent():
    content = {"mim_gain_informative": [0.503, 0.472, 0.535], "mim_l1_informative_own": [0.25, 0.24, 0.26]}
    [result] = results({"a": {"task": "reconstruction", "step": 6, **content}}, config=config_lib.default())
    assert result.sentences == [
        "A hidden pixel that tells something is rebuilt better beside its own partner than a wrong partner, "
        "by 50% (95% interval 47 to 54)."
    ]
    assert [group.title for group in result.groups] == [
        "Gain from the own partner: smaller error of hidden pixels where the image tells something",
        "Error of hidden pixels where the image tells something (less is better)",
    ]


def test_the_last_step_comes_first_and_an_accuracy_has_its_labels_as_chance():
    config = config_lib.default()
    config.task = "entailment"
    contents = {
        "early": {"task": "entailment", "step": 2, "accuracy": 40.0, "examples": 9},
        "late": {"task": "entailment", "step": 6, "accuracy": 60.0, "examples": 9},
    }
    first, _ = results(contents, config=config)
    assert (first.stem, first.sentences) == ("late", ["60.0% of 9 right (chance: 33.3%)."])


def test_other_contents_of_an_evaluation_are_listed_and_nothing_breaks():
    content = {
        "step": None,
        "made_up": 1.5,
        "nested": {"a": 2},
        "words": ["x"],
        "nothing": None,
        "mlm_gain": [None] * 3,
    }
    [result] = results({"a": content}, config=config_lib.default())
    assert result.metrics == [("made_up", "1.5"), ("nested/a", "2")] and result.groups == []


def test_classes_are_listed_the_worst_first():
    per_class = {"a": {"images": 2, "top1": 50.0}, "b": {"images": 1, "top1": 0.0}, "empty": {"images": 0}}
    content = {"task": "classification", "top1": 33.3, "classes": 3, "images": 3, "per_class": per_class}
    [result] = results({"a": content}, config=config_lib.default())
    assert result.classes == [("b", "1", "0.0%"), ("a", "2", "50.0%")]
    assert result.sentences == ["33.3% of 3 right at first (chance: 33.3%)."]
    assert not any(name.startswith("per_class") for name, _ in result.metrics)


@pytest.mark.parametrize(
    "content",
    [
        {"confusion": {"yes": {"yes": 3, "no": 1}, "no": {"no": 2}}},
        {"confusion": {"labels": ["yes", "no"], "counts": [[3, 1], [0, 2]]}},
        {"confusion": [[3, 1], [0, 2]], "class_names": ["yes", "no"]},
    ],
)
def test_confusion_is_read_in_each_form(content):
    found = confusion(content)
    assert (found.labels, found.counts) == (("yes", "no"), ((3, 1), (0, 2)))
    assert found.part(0, 1) == 25 and found.mistakes == [(1, "yes", "no")]
    assert confusion({"confusion": {"yes": 3}}) is None and confusion({}) is None
