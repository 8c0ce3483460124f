import functools
import re
from collections import Counter, defaultdict

import numpy as np

from mvlm_jax.data.builders import shapes_tasks
from mvlm_jax.data.builders.shapes import COLORS, SHAPES, scenes

COUNTS = {"train": 1200, "val": 120, "test": 120}


@functools.cache
def drawn(split="train"):
    return tuple(scene for name, scene in scenes(counts=COUNTS, seed=0) if name == split)


def rng():
    return np.random.default_rng(0)


def best_guess(examples, *, seen):
    """How often one is right who always gives the commonest answer to what is `seen`."""
    answers = defaultdict(Counter)
    for example in examples:
        answers[seen(example)][example.answer] += 1
    return sum(max(found.values()) for found in answers.values()) / len(examples)


@functools.cache
def questions():
    return tuple(shapes_tasks.questions(drawn(), rng()))


def test_answers_are_true_of_the_scene():
    kinds = Counter()
    for example in questions():
        (scene,) = example.scenes
        looks = [(shape.color, shape.shape) for shape in scene.shapes]
        words = example.text.rstrip("?").split()
        if example.kind == "yes/no":
            assert ((words[-2], words[-1]) in looks) == (example.answer == "yes")
        elif example.kind == "number":
            assert int(example.answer) == len(looks)
        elif words[1] == "color":
            assert [color for color, shape in looks if shape == words[-1]] == [example.answer]
        else:
            assert [shape for color, shape in looks if color == words[-1]] == [example.answer]
        kinds[example.kind, words[1]] += 1
    assert len(kinds) == 4
    assert min(kinds.values()) > 200


def test_no_question_can_be_answered_without_its_image():
    for kind, chance in (("yes/no", 0.5), ("number", 1 / 3)):
        of_kind = [example for example in questions() if example.kind == kind]
        # Over a few hundred questions with many wordings the commonest answer wins by luck too.
        assert best_guess(of_kind, seen=lambda e: e.text.split()[0]) < chance + 0.06
    yes_no = [example for example in questions() if example.kind == "yes/no"]
    assert best_guess(yes_no, seen=lambda e: e.text) < 0.62
    for word, chance in (("color", 1 / len(COLORS)), ("shape", 1 / len(SHAPES))):
        other = [e for e in questions() if e.text.split()[1] == word and e.kind == "other"]
        assert best_guess(other, seen=lambda e: e.text) < chance + 0.08
    assert best_guess(questions(), seen=lambda e: e.text) < 0.5


def test_no_image_says_yes_or_no_without_its_question():
    yes_no = [example for example in questions() if example.kind == "yes/no"]
    assert best_guess(yes_no, seen=lambda e: e.scenes) == 0.5
    assert best_guess(questions(), seen=lambda e: e.scenes) < 0.5


@functools.cache
def statements():
    return tuple(shapes_tasks.statements(drawn(), rng(), fours=300))


def test_statements_are_labelled_as_the_scenes_say():
    forms = Counter()
    for example in statements():
        left, right = ([(s.color, s.shape) for s in scene.shapes] for scene in example.scenes)
        text = example.text
        if found := re.fullmatch("both images show something (.*)", text):
            holds = all(found[1] in dict(looks) for looks in (left, right))
        elif found := re.fullmatch("only one image shows a (.*)", text):
            holds = len([looks for looks in (left, right) if found[1] in [shape for _, shape in looks]]) == 1
        elif found := re.fullmatch("the (left|right) image shows a (.*) (.*)", text):
            holds = (found[2], found[3]) in {"left": left, "right": right}[found[1]]
        elif "more" in text:
            holds = len(left) > len(right)
        else:
            holds = len(left) < len(right)
        assert example.answer == str(holds)
        forms[text.split()[0], text.split()[1]] += 1
    assert min(forms.values()) > 20


def test_statements_cannot_be_judged_from_one_side_alone():
    for four in _batched(statements(), 4):
        assert best_guess(four, seen=lambda e: (e.group, e.text)) == 0.5
        assert best_guess(four, seen=lambda e: e.scenes) == 0.5
        assert Counter(e.answer for e in four) == {"True": 2, "False": 2}
    groups = Counter(example.group for example in statements())
    assert set(groups.values()) == {2}


@functools.cache
def hypotheses(split="train"):
    return tuple(shapes_tasks.hypotheses(drawn(split), rng(), nines=60))


def test_hypotheses_are_labelled_as_the_scene_says():
    for example in hypotheses() + hypotheses("val"):
        (scene,) = example.scenes
        color, shape = re.fullmatch("the (.*) one is an? (.*)", example.text).groups()
        looks = [shape.shape for shape in scene.shapes if shape.color == color]
        expected = "neutral" if not looks else "entailment" if looks == [shape] else "contradiction"
        assert example.answer == expected
        assert len(looks) < 2


def test_hypotheses_cannot_be_judged_from_one_side_alone():
    for nine in _batched(hypotheses(), 9):
        for seen in (lambda e: e.text, lambda e: e.scenes):
            answers = defaultdict(list)
            for example in nine:
                answers[seen(example)].append(example.answer)
            assert [sorted(found) for found in answers.values()] == [sorted(shapes_tasks.LABELS)] * 3


def _batched(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]
