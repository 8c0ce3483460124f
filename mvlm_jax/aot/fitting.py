"""The largest batch that a chip's memory holds, and the cheapest remat policy for it."""

from collections.abc import Callable

REMAT = ("none", "dots", "full")  # cheapest first
# A chip whose matrix units are not busy with this many pairs is not held back by its batch.
MOST_GROUPS = 64


def largest_fit(fits: Callable[[int, str], bool], *, group: int) -> tuple[int, str] | None:
    """(pairs a chip, remat policy), the pairs a multiple of `group`; None where not even one group fits.

    `fits(pairs, policy)` is asked as seldom as can be, since it compiles for minutes: about 2 log2(n) + 4 times where n
    groups are found, at most 14 times. A policy that fits is taken to fit for fewer pairs too, and a dearer policy
    wherever a cheaper one does.
    """
    best, too_many = 0, 1
    while too_many <= MOST_GROUPS and fits(too_many * group, REMAT[-1]):
        best, too_many = too_many, 2 * too_many
    if best == 0:
        return None
    while best < MOST_GROUPS and too_many - best > 1:
        middle = (best + too_many) // 2
        if fits(middle * group, REMAT[-1]):
            best = middle
        else:
            too_many = middle
    pairs = best * group
    return pairs, next((policy for policy in REMAT[:-1] if fits(pairs, policy)), REMAT[-1])
