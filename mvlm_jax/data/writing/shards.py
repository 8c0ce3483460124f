"""One ArrayRecord file: examples read, checked and written, with a digest of the result."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mvlm_jax.data.collection import Codec, Values
from mvlm_jax.data.examples import Source, read_ahead
from mvlm_jax.data.images import PILLOW_PIXELS, UnusableImage, decode_image
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.files import atomically, write_text

FETCHED_TOGETHER = 64  # examples, from a source that reads ahead
# One record a chunk for random access; images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class ImageChecks:
    """Checks and changes of every image before it is written."""

    max_pixels: int = PILLOW_PIXELS  # larger images are left out by their header
    max_side: int = 0  # pixels; larger images are scaled down and re-encoded as JPEG; 0: none is
    quality: int = 90  # of that JPEG, 1 to 95

    def checked(self, image: bytes) -> bytes:
        """The bytes to write: the same ones, unless the image is larger than `max_side`.

        Raises:
          UndecodableImage: it cannot be decoded.
        """
        pixels = decode_image(image, max_pixels=self.max_pixels, size_hint=self.max_side or None)
        if not self.max_side or max(Image.open(io.BytesIO(image)).size) <= self.max_side:
            return image
        picture = Image.fromarray(pixels)
        picture.thumbnail((self.max_side, self.max_side), Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=self.quality)
        return encoded.getvalue()


def write_shard(source: Source, indices: range, *, path: Path, codec: Codec, checks: ImageChecks) -> None:
    """Writes the usable ones of some examples, then the report that marks the file as finished."""
    skipped, ids, captions = Skipped(), [], []
    with atomically(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        try:
            for number, index in enumerate(indices):
                if number % FETCHED_TOGETHER == 0:
                    read_ahead(source, indices[number : number + FETCHED_TOGETHER])
                try:
                    values = codec.values(source[index], checked=checks.checked, skipped=skipped)
                except UnusableImage as error:
                    skipped.add(error.reason, source.example_id(index))
                    continue
                if values is not None:
                    writer.write(serialize(values))
                    ids.append(source.example_id(index))
                    captions.append(len(values.get("captions", ())))
        finally:
            writer.close()
    report = {
        "file": path.name,
        "examples": len(ids),
        "captions": captions,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "skipped": skipped.as_dict(),
        "ids": ids,
    }
    write_text(report_path(path), json.dumps(report))


def is_of_writing(error: OSError | RuntimeError) -> bool:
    """Whether a place could not be written. ArrayRecord raises RuntimeError where Python's files raise OSError."""
    return isinstance(error, OSError) or "write() failed" in str(error)


def finished_report(path: Path, *, verify: bool = True) -> dict[str, Any] | None:
    """The report of a shard; None where it is not finished, or with `verify` was changed since."""
    try:
        report = json.loads(report_path(path).read_text())
        whole = path.stat().st_size == report["bytes"] and (not verify or sha256(path) == report["sha256"])
        # Earlier versions kept the number of all captions alone.
        return report if whole and isinstance(report["captions"], list) else None
    except (FileNotFoundError, ValueError):
        return None


def report_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def serialize(values: Values) -> bytes:
    """The `tf.train.Example` that TFDS makes of an example, the same bytes every time."""
    features = {
        name: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=value)) for name, value in values.items()
    }
    record = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
    return record.SerializeToString(deterministic=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
