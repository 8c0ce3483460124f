"""The faults that are looked for, and the policy that says which of them stop."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from mvlm_jax.errors import UserError


class Fault(NamedTuple):
    """What can be wrong with an example."""

    error: bool  # it cannot be used, or makes a metric wrong; other faults are for a person to judge
    meaning: str


FAULTS = {
    "missing": Fault(True, "the image is not where the source says"),
    "undecodable": Fault(True, "the file is empty, not an image, or damaged"),
    "truncated": Fault(True, "the file ends before the picture does; or its rest was filled with grey"),
    "too_large": Fault(True, "more pixels than config.data.max_image_pixels"),
    "unread": Fault(True, "a line, a row, a caption or a member of a tar file that cannot be used"),
    "no_captions": Fault(True, "the image has no caption"),
    "duplicate_id": Fault(True, "an earlier example of the split has the same id"),
    "broken_id": Fault(True, "the id is empty, or has blanks around it or control characters in it"),
    "split_overlap": Fault(True, "the same file is in another split, too"),
    "split_near_overlap": Fault(True, "nearly the same picture is in another split, too"),
    "evaluation_overlap": Fault(True, "the same file is in a named evaluation set"),
    "evaluation_near_overlap": Fault(True, "nearly the same picture is in a named evaluation set"),
    "duplicate": Fault(False, "an earlier example of the split is the same file"),
    "near_duplicate": Fault(False, "an earlier example of the split is nearly the same picture"),
    "repeated_image": Fault(False, "one of ten or more copies of a file; often what a host shows for a lost picture"),
    "tiny": Fault(False, "a side is shorter than a quarter of config.image.size"),
    "extreme_aspect": Fault(False, "one side is more than four times the other"),
    "blank": Fault(False, "one colour and next to nothing else"),
    "animated": Fault(False, "several frames, of which the first is taken"),
    "empty_caption": Fault(False, "a blank caption beside others"),
    "not_text": Fault(False, "a caption that is an address, a file name, markup, or mostly no letters"),
    "mojibake": Fault(False, "a caption that was read in a wrong encoding"),
    "control_characters": Fault(False, "a caption with control or other invisible characters"),
    "long_caption": Fault(False, "more tokens than config.text.max_length: the rest is cut off"),
    "unknown_words": Fault(False, "half of a caption's tokens or more are unknown to the tokenizer"),
    "boilerplate": Fault(False, "a caption of ten or more images, and of one in a thousand"),
}
GROUPS = {
    "errors": tuple(name for name, fault in FAULTS.items() if fault.error),
    "all": tuple(FAULTS),
    "none": (),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which faults stop; one that is not listed never does."""

    text: str
    limits: Mapping[str, tuple[float, bool]]  # by fault, how many findings are allowed; whether in percent of examples

    def violations(self, counts: Mapping[str, int], *, examples: int) -> dict[str, int]:
        """The faults with more findings than are allowed, and how many these are."""
        allowed = {
            fault: number / 100 * examples if percent else number for fault, (number, percent) in self.limits.items()
        }
        return {fault: counts[fault] for fault in FAULTS if fault in allowed and counts.get(fault, 0) > allowed[fault]}


def parse_policy(text: str) -> Policy:
    """Reads `errors,duplicate:1%,missing:10`: faults or groups, each with how many are allowed; a later word wins.

    Raises:
      UserError: a word that is neither, or a limit that is no number; lists the legal ones.
    """
    limits: dict[str, tuple[float, bool]] = {}
    for word in text.split(","):
        name, colon, limit = word.strip().partition(":")
        if name not in GROUPS and name not in FAULTS:
            raise UserError(
                f"--policy={text!r}: {name!r} is not one of {', '.join(GROUPS)}, or of the faults {', '.join(FAULTS)}"
            )
        number = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", limit if colon else "0")
        if number is None or not number[2] and "." in number[1]:
            raise UserError(f"--policy={text!r}: {limit!r} is neither a number such as {name}:10 nor {name}:0.5%")
        limits |= dict.fromkeys(GROUPS.get(name, (name,)), (float(number[1]), bool(number[2])))
    return Policy(text, limits)
