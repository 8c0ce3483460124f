"""What `mvlm prepare` turns into a dataset: sources by split, and what was left out before an image was read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mvlm_jax.data.codecs import Codec, PairCodec
from mvlm_jax.data.skipped import Skipped, left_out_of
from mvlm_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Collection:
    """`files` are the lists that it was read from: where one of them changes, a half-written dataset starts over."""

    splits: Mapping[str, Source]
    source: str  # URI or directory, for the manifest
    files: tuple[Path, ...] = ()
    left_out: Mapping[str, Skipped] = dataclasses.field(default_factory=dict)  # by split
    lines_left_out: Skipped = dataclasses.field(default_factory=Skipped)  # of the lists
    codec: Codec = PairCodec()

    def left_out_of_split(self, split: str) -> Skipped:
        """What the builder left out of a split, and what its source did, before any image was read."""
        skipped = Skipped()
        for part in (self.left_out.get(split, Skipped()), left_out_of(self.splits[split])):
            skipped.merge(part.as_dict())
        return skipped
