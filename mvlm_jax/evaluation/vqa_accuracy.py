"""The official accuracy of VQA v2 (Goyal et al., CVPR 2017), which its evaluation server computes too.

An answer that k of nine annotators gave scores min(1, k / 3). Its accuracy is the mean over the ten ways to leave one
of ten annotators out. Answers are normalised first, but only where the annotators disagree: where all ten gave the same
answer, an answer must equal it letter by letter.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
# A misspelling is one of these without one of its apostrophes.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
MISSPELT = {
    word[: match.start()] + word[match.end() :]: word for word in CONTRACTIONS for match in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round
COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official expression means to spare the point after a digit, but its lookbehind is misspelt and never matches.
FULL_STOP = re.compile(r"\.(?!\d)")
# The official script passes a flag of this value where `re.sub` takes how often to substitute.
FULL_STOPS = int(re.UNICODE)


class Judged(NamedTuple):
    """An answer with those of the annotators."""

    answer: str | None  # None: none was given, which is wrong
    truth: Sequence[str]  # ten answers
    answer_type: str  # yes/no, number, other


def vqa_accuracy(answer: str, truth: Sequence[str]) -> float:
    """Between 0 and 1.

    Args:
      truth: what each annotator answered; ten in the published files.
    """
    answer, truth = _one_line(answer), [_one_line(other) for other in truth]
    if len(set(truth)) > 1:
        answer, truth = normalised(answer), [normalised(other) for other in truth]
    alike = [other == answer for other in truth]
    return sum(min(1.0, (sum(alike) - own) / 3) for own in alike) / len(alike)


def mean_accuracy(judged: Sequence[Judged]) -> dict[str, float | int]:
    """`accuracy` in percent, the same for each type of answer, and the number of `questions`."""
    by_type: Mapping[str, list[float]] = defaultdict(list)
    for answer, truth, answer_type in judged:
        by_type[answer_type].append(0.0 if answer is None else vqa_accuracy(answer, truth))
    accuracies = [accuracy for of_type in by_type.values() for accuracy in of_type]
    result: dict[str, float | int] = {"accuracy": 100 * float(np.mean(accuracies)), "questions": len(accuracies)}
    if len(by_type) > 1:
        result |= {f"accuracy_{name}": 100 * float(np.mean(by_type[name])) for name in sorted(by_type)}
    return result


def normalised(answer: str) -> str:
    """Without punctuation, articles and capitals, number words as digits, contractions with their apostrophes."""
    words = [NUMBERS.get(word, word) for word in without_punctuation(answer).lower().split()]
    return " ".join(MISSPELT.get(word, word) for word in words if word not in ARTICLES)


def without_punctuation(answer: str) -> str:
    """A mark next to a space, or any mark beside a number with a comma, goes; elsewhere it becomes a space."""
    goes_everywhere = COMMA_IN_NUMBER.search(answer)
    result = answer
    for mark in PUNCTUATION:
        goes = goes_everywhere or f"{mark} " in answer or f" {mark}" in answer
        result = result.replace(mark, "" if goes else " ")
    return FULL_STOP.sub("", result, count=FULL_STOPS)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
