"""The 4M images of ALBEF and MaskVLM: CC3M, SBU, Visual Genome and COCO as one training split."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mvlm_jax.data.builders import fetched, karpathy, visual_genome
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.examples import Example, Source
from mvlm_jax.data.paths import check_layout
from mvlm_jax.data.skipped import Skipped

PARTS = ("cc3m", "sbu", "visual_genome", "coco")


class Joined:
    """Sources one after the other; ids say which one an example is from."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._names, self._sources = list(sources), list(sources.values())
        self._starts = np.cumsum([0, *map(len, self._sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        number, inner = self._place(index)
        example = self._sources[number][inner]
        image_id = f"{self._names[number]}/{example['image_id']}"
        return {"image": example["image"], "captions": example["captions"], "image_id": image_id}

    def example_id(self, index: int) -> str:
        number, inner = self._place(index)
        return f"{self._names[number]}/{self._sources[number].example_id(inner)}"

    def _place(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])


def collection(directory: Path) -> Collection:
    """Four directories, each as its own builder reads it; Visual Genome takes COCO's list from `coco/`.

    Raises:
      UserError: a part is not there or not as it was published.
    """
    check_layout(directory, dataset="pairs4m", parts=PARTS)
    parts = {
        "cc3m": fetched.cc3m(directory / "cc3m"),
        "sbu": fetched.sbu(directory / "sbu"),
        "visual_genome": visual_genome.collection(
            directory / "visual_genome", coco_list=directory / "coco" / karpathy.COCO_LIST
        ),
        "coco": karpathy.coco(directory / "coco"),
    }
    left_out = Skipped()
    for name, part in parts.items():
        for reason, out in part.left_out_of_split("train").as_dict().items():
            left_out.merge({reason: {"count": out["count"], "ids": [f"{name}/{identity}" for identity in out["ids"]]}})
    return Collection(
        splits={"train": Joined({name: part.splits["train"] for name, part in parts.items()})},
        source=str(directory),
        files=tuple(file for part in parts.values() for file in part.files),
        left_out={"train": left_out},
    )
