"""Text as it comes in files: with a byte-order mark or without."""

import codecs
from pathlib import Path

from mvlm_jax.errors import UserError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def compression_of(head: bytes) -> str:
    """What an error about a file should add where its first bytes show that it is compressed; else empty."""
    name = next((name for mark, name in COMPRESSIONS.items() if head.startswith(mark)), "")
    return f"; it is compressed by {name}, so unpack it first" if name else ""


def encoding_of(head: bytes) -> str:
    """The encoding by the byte-order mark, which it removes; UTF-8 where there is none."""
    return next((encoding for mark, encoding in MARKS if head.startswith(mark)), "utf-8")


def decoded(data: bytes, *, errors: str = "replace") -> str:
    """The text without its byte-order mark."""
    return data.decode(encoding_of(data), errors)


def read_text(file: Path, *, what: str) -> str:
    """
    Raises:
      UserError: no such file, or it is not text; `what` says what it should be.
    """
    try:
        return decoded(file.read_bytes(), errors="strict")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{what} {str(file)!r} cannot be read as text: {error}") from error
