"""The embeddings of a folder of images, in one file."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mvlm_jax.errors import UserError
from mvlm_jax.files import atomically

NAME = ".mvlm-index.safetensors"  # in the folder of the images, where no other file is named
FORMAT = "mvlm search 1"
DIGEST_BYTES = 16


class Entry(NamedTuple):
    """One file of the folder."""

    size: int  # bytes
    modified: int  # nanoseconds, as the file system says; -1: too recent to tell a later change by
    digest: bytes  # of its content
    embedding: Float32[np.ndarray, " E"] | None  # of unit norm; None: it is no image that can be used
    reason: str = ""  # why it cannot be used


@dataclasses.dataclass
class Index:
    """What is known of the files of a folder, by their paths in it."""

    fingerprint: str  # of the model that embedded them
    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> list[str]:
        """The paths of the images that can be searched, in order."""
        return sorted(path for path, entry in self.entries.items() if entry.embedding is not None)

    def embeddings(self) -> Float32[np.ndarray, "images E"]:
        """Of the `usable` images."""
        return np.stack([embedding for path in self.usable if (embedding := self.entries[path].embedding) is not None])

    def write(self, file: Path) -> None:
        """Replaces the file as a whole.

        Raises:
          UserError: it cannot be written.
        """
        paths = sorted(self.entries)
        entries = [self.entries[path] for path in paths]
        width = next((len(entry.embedding) for entry in entries if entry.embedding is not None), 0)
        nothing = np.zeros(width, np.float32)
        tensors = {
            "embedding": np.array([nothing if each.embedding is None else each.embedding for each in entries]),
            "size": np.array([entry.size for entry in entries], np.int64),
            "modified": np.array([entry.modified for entry in entries], np.int64),
            "digest": np.frombuffer(b"".join(entry.digest for entry in entries), np.uint8),
        }
        described = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "paths": json.dumps(paths),
            "reasons": json.dumps([entry.reason for entry in entries]),
        }
        try:
            with atomically(file) as temporary:
                save_file(tensors, temporary, metadata=described)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"the index {str(file)!r} cannot be written: {reason}; give --index=FILE") from error


def read_index(file: Path, *, fingerprint: str) -> Index:
    """The index in a file; an empty one where there is none, or one of another model.

    Raises:
      UserError: the file is something else, or damaged.
    """
    if not file.exists():
        return Index(fingerprint)
    try:
        with safe_open(file, framework="numpy") as stored:
            described = stored.metadata() or {}
            if described.get("format", "").split(" 1")[0] != FORMAT.split(" 1")[0]:
                raise UserError(f"{str(file)!r} is no index that mvlm search wrote; give --index another path")
            if described["format"] != FORMAT or described["fingerprint"] != fingerprint:
                return Index(fingerprint)
            tensors = {name: stored.get_tensor(name) for name in ("embedding", "size", "modified", "digest")}
        paths, reasons = (json.loads(described[name]) for name in ("paths", "reasons"))
        digests = tensors["digest"].tobytes()
        entries = {
            path: Entry(
                size=int(tensors["size"][place]),
                modified=int(tensors["modified"][place]),
                digest=digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES],
                embedding=None if reasons[place] else tensors["embedding"][place],
                reason=reasons[place],
            )
            for place, path in enumerate(paths)
        }
    except UserError:
        raise
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the index {str(file)!r} is damaged ({reason:.200}); remove it to embed again") from error
    return Index(fingerprint, entries)
