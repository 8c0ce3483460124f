"""Where questions, statements and hypotheses come from."""

import re
from collections.abc import Callable
from pathlib import Path

from absl import logging

from mvlm_jax.data.formats.labelled_records import LabelledRecords
from mvlm_jax.data.formats.nlvr2 import open_nlvr2
from mvlm_jax.data.formats.records import open_dataset
from mvlm_jax.data.formats.snli_ve import open_snli_ve
from mvlm_jax.data.formats.vqa import open_vqa
from mvlm_jax.data.labelled import LabelledSource
from mvlm_jax.data.paths import local_path
from mvlm_jax.data.skipped import left_out_of
from mvlm_jax.data.sources import prepared_dir
from mvlm_jax.errors import UserError

# Collections read from the files that they are published as.
PUBLISHED: dict[str, Callable[[Path, str], LabelledSource]] = {
    "vqa": open_vqa,
    "nlvr2": open_nlvr2,
    "snli_ve": open_snli_ve,
}


def open_labelled(uri: str, *, data_dir: str) -> LabelledSource:
    """Opens `tfds:<name>:<split>`, or published files as `vqa:<directory>:<split>` (`nlvr2:`, `snli_ve:`).

    Raises:
      UserError: another form, or files that are not there or hold something else.
    """
    scheme, place, split = parse_labelled(uri)
    if scheme == "tfds":
        records = open_dataset(prepared_dir(place, data_dir=data_dir), split, reader=LabelledRecords)
        assert isinstance(records, LabelledRecords)
        return records
    source = PUBLISHED[scheme](local_path(place, name="source"), split)
    left_out = left_out_of(source)
    if left_out.counts:
        logging.warning("%s: not all of it is used (%s)", uri, left_out)
    return source


def parse_labelled(uri: str) -> tuple[str, str, str]:
    """Scheme, dataset or directory, and split; of `tfds:` also a slice of one, such as `val[:100]`.

    Raises:
      UserError: another form.
    """
    found = re.fullmatch(rf"({'|'.join(['tfds', *PUBLISHED])}):(.+?):([^:/\[\]]+(\[[^\]/]*\])?)", uri)
    if not found:
        forms = ", ".join(["tfds:<name>:<split>", *(f"{name}:<directory>:<split>" for name in PUBLISHED)])
        raise UserError(f"source {uri!r} is not one of {forms}")
    return found[1], found[2], found[3]
