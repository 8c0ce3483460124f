"""NLVR2's second metric."""

from collections.abc import Sequence


def consistency(right: Sequence[bool], groups: Sequence[str]) -> dict[str, float | int]:
    """`consistency`: percent of the groups all of whose examples are right, and how many groups there are.

    NLVR2 groups by sentence: whoever understands it judges every pair of images right.
    """
    of_group: dict[str, bool] = {}
    for correct, group in zip(right, groups, strict=True):
        if group:
            of_group[group] = of_group.get(group, True) and bool(correct)
    if not of_group:
        return {}
    return {"consistency": 100 * sum(of_group.values()) / len(of_group), "groups": len(of_group)}
