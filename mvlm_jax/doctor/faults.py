"""The kinds of fault that are looked for, and the policy that says which of them stop."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from mvlm_jax.errors import UserError


class Kind(NamedTuple):
    """`error`: the example cannot be used, or a metric would be wrong; the others are for a person to judge."""

    error: bool
    meaning: str


KINDS = {
    "missing": Kind(True, "the image is not where the source says"),
    "undecodable": Kind(True, "the file is empty, of another kind, or damaged"),
    "truncated": Kind(True, "the file ends before the picture does; or its rest was filled with grey"),
    "too_large": Kind(True, "more pixels than config.data.max_image_pixels"),
    "unread": Kind(True, "a line, a row, a caption or a member of a tar file that cannot be used"),
    "no_captions": Kind(True, "nothing is said of the image"),
    "duplicate_id": Kind(True, "an earlier example of the split has the same id"),
    "broken_id": Kind(True, "the id is empty, or has blanks around it or control characters in it"),
    "split_overlap": Kind(True, "the very file is in another split, too"),
    "split_near_overlap": Kind(True, "nearly the same picture is in another split, too"),
    "evaluation_overlap": Kind(True, "the very file is in a named evaluation set"),
    "evaluation_near_overlap": Kind(True, "nearly the same picture is in a named evaluation set"),
    "duplicate": Kind(False, "an earlier example of the split is the very same file"),
    "near_duplicate": Kind(False, "an earlier example of the split is nearly the same picture"),
    "repeated_image": Kind(False, "one of ten or more copies of a file; often what a host shows for a lost picture"),
    "tiny": Kind(False, "a side is shorter than a quarter of config.image.size"),
    "extreme_aspect": Kind(False, "one side is more than four times the other"),
    "blank": Kind(False, "one colour and next to nothing else"),
    "animated": Kind(False, "several frames, of which the first is taken"),
    "empty_caption": Kind(False, "a blank caption beside others"),
    "not_text": Kind(False, "a caption that is an address, a file name, markup, or mostly no letters"),
    "mojibake": Kind(False, "a caption that was read in a wrong encoding"),
    "control_characters": Kind(False, "a caption with characters that have no shape"),
    "long_caption": Kind(False, "more tokens than config.text.max_length: the rest is cut off"),
    "unknown_words": Kind(False, "half of a caption's tokens or more are unknown to the tokenizer"),
    "boilerplate": Kind(False, "a caption of ten or more images, and of one in a thousand"),
}
GROUPS = {
    "errors": tuple(name for name, kind in KINDS.items() if kind.error),
    "all": tuple(KINDS),
    "none": (),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which kinds stop; one that is not listed never does."""

    text: str
    counts: Mapping[str, int]  # findings of a kind that are let pass
    percents: Mapping[str, float]  # the same, of the examples

    def violations(self, found: Mapping[str, int], *, examples: int) -> dict[str, int]:
        """The kinds that were found more often than is let pass, with how often."""
        return {
            kind: found[kind]
            for kind in KINDS
            if found.get(kind)
            and (kind in self.counts or kind in self.percents)
            and found[kind] > self.counts.get(kind, self.percents.get(kind, 0.0) / 100 * examples)
        }


def parse_policy(text: str) -> Policy:
    """Reads `errors,duplicate:1%,missing:10`: kinds or groups of them, each with what is let pass; a later word wins.

    Raises:
      UserError: a word that is neither, or a limit that is no number; lists the legal ones.
    """
    counts: dict[str, int] = {}
    percents: dict[str, float] = {}
    for word in text.split(","):
        name, colon, limit = word.strip().partition(":")
        if name not in GROUPS and name not in KINDS:
            raise UserError(
                f"--policy={text!r}: {name!r} is not one of {', '.join(GROUPS)}, or of the kinds {', '.join(KINDS)}"
            )
        number = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", limit if colon else "0")
        if number is None or not number[2] and "." in number[1]:
            raise UserError(f"--policy={text!r}: {limit!r} is neither a number such as {name}:10 nor {name}:0.5%")
        for kind in GROUPS.get(name, (name,)):
            counts.pop(kind, None)
            percents.pop(kind, None)
            if number[2]:
                percents[kind] = float(number[1])
            else:
                counts[kind] = int(number[1])
    return Policy(text, counts, percents)
