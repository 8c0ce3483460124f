"""NLVR2 (Suhr et al., ACL 2019) in its published files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvlm_jax.data.formats.published import chosen, json_lines, read_rows, text_in
from mvlm_jax.data.labelled import LabelledRow, ListedExamples

SPLITS = {name: f"{name}.json" for name in ("train", "dev", "test1", "test2")}
LABELS = ("False", "True")


def open_nlvr2(directory: Path, split: str) -> ListedExamples:
    """Statements of `train`, `dev`, `test1` or `test2`, one JSON object a line in a file of that name.

    Images are below `images/`: those of train in the directory that the line names, the others in one of the split.

    Raises:
      UserError: no such split, or a file that is missing or not as it was published.
    """
    file = directory / chosen(SPLITS, split, dataset="NLVR2")

    def row(entry: Mapping[str, Any]) -> LabelledRow:
        parts = str(entry["identifier"]).split("-")
        if len(parts) != 4:
            raise ValueError(f"identifier {entry['identifier']!r} is not split-set-pair-sentence")
        source, images_of, pair, sentence = parts
        folder = f"train/{entry['directory']}" if split == "train" else split
        stem = f"images/{folder}/{source}-{images_of}-{pair}"
        return LabelledRow(
            images=(f"{stem}-img0.png", f"{stem}-img1.png"),
            text=text_in(entry, "sentence"),
            answers=(text_in(entry, "label").capitalize(),) if "label" in entry else (),
            answer_type="",
            # As the official script counts: the sentence of a set of images, over its pairs.
            group=f"{source}-{images_of}-{sentence}",
            example_id=str(entry["identifier"]),
        )

    return ListedExamples(read_rows(json_lines(file), row, file=file), root=directory)
