import pytest

from mvlm_jax.compiling.fitting import REMAT, largest_fit


def memory(limits):
    """A chip that holds up to `limits[policy]` pairs, and what it was asked."""
    asked = []

    def fits(pairs, policy):
        asked.append((pairs, policy))
        return pairs <= limits[policy]

    return fits, asked


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"none": 40, "dots": 70, "full": 130}, (128, "full")),
        ({"none": 40, "dots": 70, "full": 100}, (64, "dots")),
        ({"none": 64, "dots": 70, "full": 100}, (64, "none")),
        ({"none": 0, "dots": 0, "full": 31}, None),
    ],
)
def test_the_largest_batch_comes_before_the_cheapest_policy(limits, found):
    fits, asked = memory(limits)
    assert largest_fit(fits, group=32) == found
    assert len(set(asked)) == len(asked) <= 6


def test_the_search_ends_where_everything_fits():
    fits, asked = memory(dict.fromkeys(REMAT, 10**9))
    pairs, policy = largest_fit(fits, group=4)
    assert policy == "none" and pairs % 4 == 0
    assert len(asked) <= 8
