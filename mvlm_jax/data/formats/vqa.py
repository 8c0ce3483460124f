"""VQA v2 (Goyal et al., CVPR 2017) in its published files, over COCO's images."""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvlm_jax.data.formats.published import chosen, json_file, read_rows, text_in
from mvlm_jax.data.labelled import LabelledRow, ListedExamples
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.errors import UserError

QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
FILES = {"train": "train2014", "val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
HELD_BACK = ("test-dev", "test")  # without annotations
MINIVAL_PART = 16  # one image in so many of the validation images


def open_vqa(directory: Path, split: str) -> ListedExamples:
    """Questions of a split: `train`, `val`, `test-dev`, `test`; or `minival`, a part of the validation images held back
    from training, and `trainval`, train and val without a single image of minival.

    The directory holds the published JSON files beside COCO's `train2014/`, `val2014/` and `test2015/`.

    Raises:
      UserError: no such split, or a file that is missing or not as it was published.
    """
    left_out = Skipped()
    if split == "trainval":
        rest = [row for row in _rows(directory, "val", left_out=left_out) if not in_minival(row)]
        rows = _rows(directory, "train", left_out=left_out) + rest
    elif split == "minival":
        rows = [row for row in _rows(directory, "val", left_out=left_out) if in_minival(row)]
    else:
        chosen(dict.fromkeys([*FILES, "trainval", "minival"]), split, dataset="VQA v2")
        rows = _rows(directory, split, left_out=left_out)
    return ListedExamples(rows, root=directory, left_out=left_out)


def in_minival(row: LabelledRow) -> bool:
    """Decided by the image, so that all questions about it are in the same part."""
    digest = hashlib.blake2b(Path(row.images[0]).stem.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % MINIVAL_PART == 0


def submission(answers: Mapping[str, str]) -> list[dict[str, Any]]:
    """The entries that EvalAI takes, from answers by question id; published ids are numbers."""
    return [
        {"question_id": int(question) if question.isdecimal() else question, "answer": answer}
        for question, answer in answers.items()
    ]


def _rows(directory: Path, split: str, *, left_out: Skipped) -> list[LabelledRow]:
    """Questions with their answers; annotations without a question are counted in `left_out`."""
    name = FILES[split]
    file = directory / QUESTIONS.format(name)
    content = json_file(file)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise UserError(f"{str(file)!r} holds no list of questions")
    annotated = {} if split in HELD_BACK else _annotations(directory / ANNOTATIONS.format(name))
    folder = name.replace("-dev", "")

    def row(question: Mapping[str, Any]) -> LabelledRow:
        number = int(question["question_id"])
        answers, answer_type = annotated[number] if annotated else ((), "")
        image = f"{folder}/COCO_{folder}_{int(question['image_id']):012d}.jpg"
        return LabelledRow((image,), text_in(question, "question"), answers, answer_type, "", str(number))

    rows = read_rows(content["questions"], row, file=file)
    asked = {row.example_id for row in rows}
    for number in annotated:
        if str(number) not in asked:
            left_out.add("no_such_question", str(number))
    return rows


def _annotations(file: Path) -> dict[int, tuple[tuple[str, ...], str]]:
    """Answers and answer type by question."""
    content = json_file(file)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UserError(f"{str(file)!r} holds no list of annotations")

    def entry(annotation: Mapping[str, Any]) -> tuple[int, tuple[tuple[str, ...], str]]:
        # Interned: millions of answers are a few thousand different strings.
        answers = tuple(sys.intern(text_in(given, "answer").strip()) for given in annotation["answers"])
        return int(annotation["question_id"]), (answers, sys.intern(str(annotation["answer_type"])))

    entries = read_rows(content["annotations"], entry, file=file)
    if len(annotated := dict(entries)) < len(entries):
        [(twice, _)] = Counter(number for number, _ in entries).most_common(1)
        raise UserError(f"{str(file)!r} annotates the question {twice} more than once")
    return annotated
