"""Worked by hand from the official script's rules."""

import pytest

from mvlm_jax.evaluation.vqa_accuracy import Judged, mean_accuracy, normalised, vqa_accuracy


def ten(**counts):
    """Ten answers, for example `ten(yes=7, no=3)`."""
    answers = [answer.replace("_", " ") for answer, count in counts.items() for _ in range(count)]
    assert len(answers) == 10
    return answers


# k of ten annotators agree: leaving out one of these k leaves k - 1 of them, else k; each worth a third, at most 1.
@pytest.mark.parametrize(
    ("agreeing", "accuracy"),
    [(0, 0), (1, 9 * (1 / 3) / 10), (2, (2 * (1 / 3) + 8 * (2 / 3)) / 10), (3, (3 * (2 / 3) + 7) / 10), (4, 1), (9, 1)],
)
def test_the_mean_over_ten_ways_to_leave_one_annotator_out(agreeing, accuracy):
    assert vqa_accuracy("yes", ten(yes=agreeing, no=10 - agreeing)) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "becomes"),
    [
        # Number words and articles.
        ("None", "0"),
        ("zero", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("the red  ball", "red ball"),
        ("A", ""),
        ("an apple a day", "apple day"),
        # Contractions: only the misspelling without its apostrophe is known.
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("ows'at", "ows'at"),
        ("ow's'at", "'ow's'at"),
        ("y'alld've", "y'all'd've"),
        ("id", "id"),
        # Punctuation beside a space goes, between letters it becomes a space; the apostrophe is none.
        ("black, white", "black white"),
        ("black,white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt"),
        ("yes!", "yes"),
        ("dog/cat", "dog cat"),
        ("bob's", "bob's"),
        ("what: now", "what: now"),
        # Inside numbers: a comma takes every mark of the answer with it.
        ("1,000", "1000"),
        ("1,000-dollar", "1000dollar"),
        ("$1,000 / day", "$1000 day"),
        ("10-20", "10 20"),
        # Full stops: kept before a digit only.
        ("3.5", "3.5"),
        ("3.", "3"),
        ("mr. smith", "mr smith"),
        ("u.s.a.", "usa"),
        ("." * 40, "." * 8),
    ],
)
def test_normalisation(answer, becomes):
    assert normalised(answer) == becomes


def test_where_annotators_disagree_both_sides_are_normalised():
    assert vqa_accuracy("none", ten(**{"0": 9, "nothing": 1})) == 1
    assert vqa_accuracy("0", ten(none=9, nothing=1)) == 1
    assert vqa_accuracy("Dont.", ["don't"] * 6 + ["dont"] * 2 + ["do"] * 2) == 1
    assert vqa_accuracy("1000", ["1,000"] * 5 + ["the 1,000"] * 4 + ["many"]) == 1


def test_where_all_ten_are_alike_nothing_is_normalised():
    assert vqa_accuracy("none", ten(none=10)) == 1
    assert vqa_accuracy("0", ten(none=10)) == 0
    assert vqa_accuracy("None", ten(none=10)) == 0
    assert vqa_accuracy("the dog", ["dog"] * 10) == 0
    assert vqa_accuracy("tshirt", ["t-shirt"] * 10) == 0


def test_line_breaks_and_outer_spaces_are_no_difference():
    assert vqa_accuracy(" red\tball\n", [" red ball "] * 10) == 1
    # Alike but for outer spaces is alike.
    assert vqa_accuracy("Red", ["red", "red "] * 5) == 0


def test_means_by_type_of_answer():
    judged = [
        Judged("yes", ten(yes=10), "yes/no"),
        Judged("no", ten(yes=10), "yes/no"),
        Judged("2", ten(two=3, three=7), "number"),
    ]
    metrics = mean_accuracy(judged)
    assert metrics["questions"] == 3
    assert metrics["accuracy"] == pytest.approx(100 * (1 + 0 + 0.9) / 3)
    assert metrics["accuracy_yes/no"] == pytest.approx(50)
    assert metrics["accuracy_number"] == pytest.approx(90)


def test_no_answer_is_wrong_also_where_an_article_alone_would_be_right():
    metrics = mean_accuracy([Judged(None, ten(the=9, a=1), "other"), Judged("the", ten(the=9, a=1), "other")])
    assert (metrics["accuracy"], metrics["questions"]) == (50, 2)
