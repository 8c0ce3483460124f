"""The largest batch that a chip's memory holds, and the cheapest remat policy for it."""

from collections.abc import Callable

REMAT = ("none", "dots", "full")  # cheapest first
# A chip whose matrix units are not busy with this many pairs is not held back by its batch.
MOST_GROUPS = 64


def largest_fit(fits: Callable[[int, str], bool], *, group: int) -> tuple[int, str] | None:
    """(pairs a chip, remat policy), the pairs `group` times a power of two; None where not even one group fits.

    `fits(pairs, policy)` is asked as seldom as can be: it compiles for minutes. A policy that fits is taken to fit for
    fewer pairs too, and a dearer policy wherever a cheaper one does.
    """
    best = None
    pairs = group
    while pairs <= MOST_GROUPS * group and fits(pairs, REMAT[-1]):
        best = pairs
        pairs *= 2
    if best is None:
        return None
    return best, next((policy for policy in REMAT[:-1] if fits(best, policy)), REMAT[-1])
