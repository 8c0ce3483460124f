"""Faults of captions."""

import re
from collections.abc import Iterator

ADDRESS = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg)", re.IGNORECASE)
# By name: Conceptual 12M has <PERSON> in place of names.
MARKUP = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|p|script|span|strong|table|td|tr|u|ul)\b[^<>]*>"
    r"|&(?:amp|apos|gt|lt|nbsp|quot|#\d+|#x[0-9a-f]+);",
    re.IGNORECASE,
)
# Controls other than tab and line ends, overrides of the direction of writing, blanks without width, halves of
# surrogate pairs, private use. Joiners and direction marks are left alone: Persian, Hindi and emoji are written
# with them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\ue000-\uf8ff]"
)
FOREIGN = re.compile(r"[^\x00-\x7f]{2,}")


def caption_faults(caption: str) -> Iterator[str]:
    """The faults of a caption that is not blank."""
    if is_mojibake(caption):
        yield "mojibake"
    elif INVISIBLE.search(caption):
        yield "control_characters"
    if not is_text(caption):
        yield "not_text"


def is_text(caption: str) -> bool:
    """Whether it can be a sentence or a name, in any script."""
    words = caption.strip()
    if ADDRESS.fullmatch(words) or FILE_NAME.fullmatch(words) or MARKUP.search(words):
        return False
    visible = [character for character in words if not character.isspace()]
    return 2 * sum(map(_belongs_to_a_word, visible)) >= len(visible)


def is_mojibake(caption: str) -> bool:
    """Whether bytes were lost, or UTF-8 was read as Windows-1252: then it can be read back."""
    return "\ufffd" in caption or any(map(_reads_as_utf8, FOREIGN.findall(caption)))


def normalized(caption: str) -> str:
    """The words alone: equal for captions that differ in case, blanks and punctuation only."""
    return " ".join(re.findall(r"\w+", caption.lower())) or caption.strip()


def _belongs_to_a_word(character: str) -> bool:
    # Vowel signs of many scripts are marks, not letters; both are part of identifiers.
    return character.isalpha() or (not character.isdigit() and character != "_" and f"a{character}".isidentifier())


def _reads_as_utf8(characters: str) -> bool:
    try:
        b"".join(map(_windows_1252, characters)).decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return False
    # A capital before a closing quote, as in CAFÉ”, would pass.
    return len(characters) > 2 or characters[0] in "ÂÃ"


def _windows_1252(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # the five bytes that Windows-1252 leaves open
