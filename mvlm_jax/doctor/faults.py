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
    remedy: str


FAULTS = {
    "missing": Fault(
        True,
        "the image is not where the source says",
        "Copy the image there, mend the path in the list, or remove the line",
    ),
    "undecodable": Fault(
        True,
        "the file is empty, not an image, or damaged",
        "Fetch the image again, or remove its line; a run would leave it out",
    ),
    "truncated": Fault(
        True,
        "the file ends before the picture does; or its rest was filled with grey",
        "Fetch the image again; a run would learn its grey rest",
    ),
    "too_large": Fault(
        True,
        "more pixels than config.data.max_image_pixels",
        "Scale it down with --max_side when preparing, or raise config.data.max_image_pixels",
    ),
    "unread": Fault(
        True,
        "a line, a row, a caption or a member of a tar file that cannot be used",
        "Mend these lines of the list; below is what is wrong with each kind",
    ),
    "no_captions": Fault(
        True, "the image has no caption", "Add a caption, or remove the image; a run would leave it out"
    ),
    "duplicate_id": Fault(
        True,
        "an earlier example of the split has the same id",
        "Give each image an id of its own: retrieval takes equal ids for one image",
    ),
    "broken_id": Fault(
        True,
        "the id is empty, or has blanks around it or control characters in it",
        "Mend the id: programs that strip blanks would take it for another one",
    ),
    "split_overlap": Fault(
        True,
        "the same file is in another split, too",
        "Remove it from one of the splits, for a fair evaluation from the training split",
    ),
    "split_near_overlap": Fault(
        True,
        "nearly the same picture is in another split, too",
        "Look at both; where it is one picture, remove it from the training split",
    ),
    "evaluation_overlap": Fault(
        True,
        "the same file is in a named evaluation set",
        "Remove it from the training data: the model would have seen the test",
    ),
    "evaluation_near_overlap": Fault(
        True,
        "nearly the same picture is in a named evaluation set",
        "Look at both; where it is one picture, remove it from the training data",
    ),
    "duplicate": Fault(
        False, "an earlier example of the split is the same file", "Keep one, with the captions of both"
    ),
    "near_duplicate": Fault(
        False,
        "an earlier example of the split is nearly the same picture",
        "Look at both; where it is one picture, keep one, with the captions of both",
    ),
    "repeated_image": Fault(
        False,
        "one of ten or more copies of a file; often what a host shows for a lost picture",
        "Where it is a placeholder, remove all of them with their captions",
    ),
    "tiny": Fault(
        False,
        "a side is shorter than a quarter of config.image.size",
        "Fetch it in a larger size, or accept that it is blurred when enlarged",
    ),
    "extreme_aspect": Fault(
        False,
        "one side is more than four times the other",
        "Crop it to what the caption describes: resizing to a square distorts it",
    ),
    "blank": Fault(False, "one colour and next to nothing else", "Remove it where nothing is to be seen"),
    "animated": Fault(
        False, "several frames, of which the first is taken", "Nothing, where the caption describes the first frame"
    ),
    "empty_caption": Fault(False, "a blank caption beside others", "Nothing; preparing leaves it out and counts it"),
    "not_text": Fault(
        False,
        "a caption that is an address, a file name, markup, or mostly no letters",
        "Remove the caption, or write one",
    ),
    "mojibake": Fault(
        False,
        "a caption that was read in a wrong encoding",
        "Read the list in its right encoding and write it as UTF-8",
    ),
    "control_characters": Fault(False, "a caption with control or other invisible characters", "Remove the characters"),
    "long_caption": Fault(
        False,
        "more tokens than config.text.max_length: the rest is cut off",
        "Raise config.text.max_length, or shorten the caption",
    ),
    "unknown_words": Fault(
        False,
        "half of a caption's tokens or more are unknown to the tokenizer",
        "Give a tokenizer of this language, config.text.tokenizer",
    ),
    "boilerplate": Fault(
        False,
        "a caption of ten or more images, and of one in a thousand",
        "Remove the caption where it says nothing of its image",
    ),
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
