"""The patches of an image in which its caption matters: a patch of empty ground is painted as well without it.

Two rules, neither of which knows the dataset. `ground`: a drawing stands on a plain ground, and the patches that hold
anything else count. `variance`: a photograph has no such ground, and its most varied patches count.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

# The frame is the outermost ring of pixels. It is plain where so much of it is within so many levels of its commonest
# colour. Resizing tints what lies near a shape, so it may be no more.
PLAIN_PART, PLAIN_LEVELS = 0.5, 8
DRAWN_PART = 0.9  # a split is of drawings where so many of its images have a plain frame
VARIED_ONE_IN = 10  # patches of a photograph, rounded up

RULES = ("ground", "variance")


class Informative(NamedTuple):
    """The patches of an image that count, by each of `RULES`."""

    plain: bool  # whether the frame has one colour, which then is the ground
    ground: Bool[np.ndarray, " N"]  # hold a pixel that is not of the ground; all of them where there is none
    variance: Bool[np.ndarray, " N"]  # the tenth with the largest variance, averaged over R, G and B


def informative(image: UInt8[np.ndarray, "S S 3"], *, patch: int) -> Informative:
    """
    Args:
      patch: pixels a side.
    """
    frame = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]).astype(np.int16)
    colours, counts = np.unique(frame, axis=0, return_counts=True)
    ground = colours[counts.argmax()]
    plain = bool((np.abs(frame - ground).max(axis=1) <= PLAIN_LEVELS).mean() >= PLAIN_PART)
    side = len(image) // patch
    patches = image.reshape(side, patch, side, patch, 3).swapaxes(1, 2).reshape(side**2, patch**2, 3).astype(np.float32)
    drawn_on = (np.abs(patches - ground) > PLAIN_LEVELS).any(axis=(1, 2))
    variance = patches.var(axis=1).mean(axis=1)
    varied = np.zeros(side**2, bool)
    varied[np.argsort(-variance, kind="stable")[: -(-(side**2) // VARIED_ONE_IN)]] = True
    return Informative(plain, drawn_on if plain else np.ones_like(varied), varied)


def rule_of(plain: Bool[np.ndarray, " I"]) -> str:
    """`ground` for a split of drawings, of which nearly all images have a plain frame, else `variance`.

    One rule for all images: else the few photographs on a plain ground would count with several times as many patches.
    """
    return "ground" if plain.mean() >= DRAWN_PART else "variance"
