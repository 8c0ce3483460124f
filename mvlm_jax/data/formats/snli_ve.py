"""SNLI-VE (Xie et al., 2019) in its published files, over Flickr30k's images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvlm_jax.data.formats.published import chosen, json_lines, read_rows, text_in
from mvlm_jax.data.labelled import LabelledRow, ListedExamples
from mvlm_jax.data.skipped import Skipped

SPLITS = {name: f"snli_ve_{name}.jsonl" for name in ("train", "dev", "test")}
IMAGES = "flickr30k-images"
LABELS = ("contradiction", "neutral", "entailment")
UNDECIDED = ("-",)
# Releases spell it differently.
IMAGE_KEYS = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID")


def open_snli_ve(directory: Path, split: str) -> ListedExamples:
    """Hypotheses of `train`, `dev` or `test`; `snli_ve_<split>.jsonl` lies beside `flickr30k-images/`.

    Lines without a gold label (`-`, no majority) are left out and counted, as in the published counts.

    Raises:
      UserError: no such split, or a file that is missing or not as it was published.
    """
    file = directory / chosen(SPLITS, split, dataset="SNLI-VE")

    def make(entry: Mapping[str, Any]) -> LabelledRow:
        identity = next((entry[key] for key in IMAGE_KEYS if key in entry), None)
        if identity is None:
            raise LookupError(f"none of {', '.join(IMAGE_KEYS)}")
        return LabelledRow(
            images=(f"{IMAGES}/{Path(str(identity)).stem}.jpg",),
            text=text_in(entry, "sentence2"),
            answers=(text_in(entry, "gold_label"),),
            answer_type="",
            group="",
            example_id=text_in(entry, "pairID"),
        )

    rows, left_out = read_rows(json_lines(file), make, file=file), Skipped()
    labelled = [row for row in rows if row.answers != UNDECIDED]
    for row in rows:
        if row.answers == UNDECIDED:
            left_out.add("no_gold_label", row.example_id)
    return ListedExamples(labelled, root=directory, left_out=left_out)
