"""What `mvlm prepare` turns into a dataset: sources by split, and how their examples become records."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from mvlm_jax.data.examples import Source
from mvlm_jax.data.labelled import STORED
from mvlm_jax.data.skipped import Skipped, left_out_of

Values = dict[str, list[bytes]]  # by feature


@runtime_checkable
class Codec(Protocol):
    """How the examples of a collection become records; pickled into worker processes."""

    @property
    def features(self) -> tfds.features.FeaturesDict: ...

    def values(
        self, example: Mapping[str, Any], *, checked: Callable[[bytes], bytes], skipped: Skipped
    ) -> Values | None:
        """The values of an example; None where it cannot be used, which is counted in `skipped`.

        Args:
          checked: returns an image as it is to be written.

        Raises:
          UnusableImage: of `checked`.
        """


@dataclasses.dataclass(frozen=True)
class PairCodec:
    """Images with their captions: each example is an `Example`, with the further texts."""

    texts: tuple[str, ...] = ()  # names of further text features, which examples carry and later tasks read

    @property
    def features(self) -> tfds.features.FeaturesDict:
        return tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "image_id": tfds.features.Text(),
                **{name: tfds.features.Text() for name in self.texts},
            }
        )

    def values(
        self, example: Mapping[str, Any], *, checked: Callable[[bytes], bytes], skipped: Skipped
    ) -> Values | None:
        captions = [caption.strip() for caption in example["captions"]]
        for _ in range(captions.count("")):
            skipped.add("empty_caption", example["image_id"])
        kept = [caption.encode() for caption in captions if caption]
        if not kept:
            skipped.add("no_captions", example["image_id"])
            return None
        texts = {name: [example[name].encode()] for name in ("image_id", *self.texts)}
        return {"image": [checked(example["image"])], "captions": kept, **texts}


@dataclasses.dataclass(frozen=True)
class LabelledCodec:
    """Questions, statements and hypotheses: each example is a `LabelledExample`."""

    @property
    def features(self) -> tfds.features.FeaturesDict:
        return tfds.features.FeaturesDict(
            {
                "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
                "answers": tfds.features.Sequence(tfds.features.Text()),
                **{feature: tfds.features.Text() for feature in STORED.values()},
            }
        )

    def values(
        self, example: Mapping[str, Any], *, checked: Callable[[bytes], bytes], skipped: Skipped
    ) -> Values | None:
        return {
            "images": list(map(checked, example["images"])),
            "answers": [answer.encode() for answer in example["answers"]],
            **{feature: [example[name].encode()] for name, feature in STORED.items()},
        }


@dataclasses.dataclass(frozen=True)
class Collection:
    """`files` are the lists that it was read from: where one of them changes, a half-written dataset starts over."""

    splits: Mapping[str, Source]
    source: str  # URI or directory, for the manifest
    files: tuple[Path | str, ...] = ()  # a URL is a string
    left_out: Mapping[str, Skipped] = dataclasses.field(default_factory=dict)  # by split
    lines_left_out: Skipped = dataclasses.field(default_factory=Skipped)  # of the lists
    codec: Codec = PairCodec()

    def left_out_of_split(self, split: str) -> Skipped:
        """What the builder left out of a split, and what its source did, before any image was read."""
        skipped = Skipped()
        for part in (self.left_out.get(split, Skipped()), left_out_of(self.splits[split])):
            skipped.merge(part.as_dict())
        return skipped
