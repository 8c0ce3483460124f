"""A TFDS builder that says what it wrote and what it left out."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds

REPORT = "report.json"
IDS_SHOWN = 20


class Tally:
    """Counts per reason, with the first ids of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self.ids: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, identity: str) -> None:
        self.counts[reason] += 1
        if len(self.ids[reason]) < IDS_SHOWN:
            self.ids[reason].append(identity)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {reason: {"count": self.counts[reason], "ids": self.ids[reason]} for reason in sorted(self.counts)}


class ReportingBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes `report.json` into the dataset's directory, in the same rename that makes the dataset appear.

    Subclasses count what they leave out with `skip` and declare features with `pair_features`.
    """

    # Nothing is downloaded; and TFDS' search for checksums imports importlib_resources, which it does not install.
    url_infos: Mapping[str, Any] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(file_format="array_record", **kwargs)
        self._examples: dict[str, int] = defaultdict(int)
        self._captions: dict[str, int] = defaultdict(int)
        self._skipped: dict[str, Tally] = defaultdict(Tally)

    def report(self) -> dict[str, Any]:
        """What was written and what was left out, per split."""
        return {
            "dataset": self.name,
            "version": str(self.version),
            "splits": {
                split: {
                    "examples": self._examples[split],
                    "captions": self._captions[split],
                    "skipped": self._skipped[split].as_dict(),
                }
                for split in self._examples
            },
        }

    def skip(self, *, split: str, reason: str, identity: str) -> None:
        """Counts one image or caption that is left out."""
        self._skipped[split].add(reason, identity)

    def skipped(self, split: str) -> dict[str, int]:
        """Count per reason."""
        return dict(self._skipped[split].counts)

    def counted(self, split: str, examples: Iterable[dict[str, Any]]) -> Iterable[tuple[int, dict[str, Any]]]:
        """The examples with the integer keys that keep their order in the files."""
        self._examples[split] = 0
        for index, example in enumerate(examples):
            self._examples[split] += 1
            self._captions[split] += len(example["captions"])
            yield index, example

    def pair_features(self, **more: tfds.features.FeatureConnector) -> tfds.core.DatasetInfo:
        """Image, captions and image id; `more` features are read by later tasks only."""
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "image_id": tfds.features.Text(),
            **more,
        }
        # Records stay in the order they were made: evaluation reads them in order, training shuffles on its own.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        (self.data_path / REPORT).write_text(json.dumps(self.report(), indent=2) + "\n")
