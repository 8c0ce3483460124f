"""Sources that are read in the order of their files, with examples shuffled within a window."""

from collections import Counter

import numpy as np
import pytest
from examples import ListSource

from mvlm_jax.data import stores
from mvlm_jax.data.mixtures import Component, Mixture, subset
from mvlm_jax.data.order import WindowedOrder, interleaved
from mvlm_jax.data.single_captions import by_caption

FILES = (0, 4, 4, 10, 17)  # starts of files; the second is empty
COUNT = 20


class InFiles(ListSource):
    """20 examples in the files of FILES; example i has i % 3 + 1 captions."""

    def __init__(self, window, *, prefix="image"):
        captions = [[f"caption {nth}" for nth in range(i % 3 + 1)] for i in range(COUNT)]
        super().__init__(
            [{"image": b"", "captions": texts, "image_id": f"{prefix}-{i}"} for i, texts in enumerate(captions)]
        )
        self.window = window

    def file_starts(self):
        return np.unique(FILES).astype(np.int64)


def order_of(*, window, turn, seed=0):
    order = WindowedOrder(np.unique(FILES).astype(np.int64), COUNT, window)
    return [
        order.position(place, turn=turn, seed=lambda stream, number: hash((seed, stream, number)) % 2**31)
        for place in range(COUNT)
    ]


def test_files_come_in_another_order_each_pass_and_are_read_from_start_to_end():
    orders = [order_of(window=1, turn=turn) for turn in range(6)]
    assert len({tuple(order) for order in orders}) > 3
    for order in orders:
        files = np.searchsorted(np.unique(FILES), order, side="right").tolist()
        assert sorted(order) == list(range(COUNT)) and len([*dict.fromkeys(files)]) == 4
        assert sum(a != b for a, b in zip(files, files[1:])) == 3  # a file is left once
        assert all(b == a + 1 for a, b, f, g in zip(order, order[1:], files, files[1:]) if f == g)


def test_a_window_is_shuffled_and_holds_what_it_holds_unshuffled():
    plain, shuffled = order_of(window=1, turn=2), order_of(window=6, turn=2)
    for start in range(0, COUNT, 6):
        assert sorted(shuffled[start : start + 6]) == sorted(plain[start : start + 6])
    assert shuffled != plain
    assert sorted(order_of(window=1000, turn=2)) == list(range(COUNT))


@pytest.mark.parametrize(
    ("counts", "order"),
    [
        # At 1/6, 1/4, 1/2, 3/4, 5/6; and at 1/4, 1/4, 3/4, 3/4.
        ((3, 2), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]),
        ((2, 2), [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ((1, 3), [(1, 0), (0, 0), (1, 1), (1, 2)]),
    ],
)
def test_parts_are_spread_evenly_over_each_other(counts, order):
    assert [interleaved(rank, counts) for rank in range(sum(counts))] == order


def test_of_many_parts_every_element_has_one_place():
    counts = (7, 1, 30, 7, 12)
    places = [interleaved(rank, counts) for rank in range(sum(counts))]
    assert sorted(places) == [(part, element) for part, count in enumerate(counts) for element in range(count)]
    for part in range(len(counts)):
        assert [element for each, element in places if each == part] == sorted(range(counts[part]))


class Tars(ListSource):
    """100 tar files of 1,000 images of 100 KB."""

    def __init__(self, window):
        super().__init__([{}] * 100_000)
        self.window = window

    def file_starts(self):
        return np.arange(0, 100_000, 1000)


@pytest.mark.parametrize(
    ("window", "rows", "least", "most"),
    # Of a batch of 256: on one host, and the rows of one host of eight.
    [(0, 256, 245, 256), (256, 256, 1, 3), (1024, 256, 125, 165), (4096, 256, 210, 240), (256, 32, 20, 30)],
)
def test_requests_of_a_batch_are_fewer_the_smaller_the_window_is(window, rows, least, most):
    mixture = Mixture([Component(Tars(window))])
    records = [mixture.locate(10 * 256 + row, seed=0)[1] for row in range(rows)]
    ranges = [stores.Range(f"gs://b/{at // 1000:03d}", at % 1000 * 104_000, 100_000) for at in records]
    requests = stores.merged(ranges)
    assert least <= len(requests) <= most
    assert sum(each.size for each in requests) < 1.5 * rows * 100_000


def seen(mixture, indices, *, seed=0):
    located = (mixture.locate(index, seed=seed) for index in indices)
    places = ((mixture.components[number], position) for number, position in located)
    return [component.source.example_id(component.record(position)) for component, position in places]


def test_in_a_mixture_each_source_keeps_its_weight_and_its_order():
    ordered, shuffled = InFiles(4), ListSource([{"image_id": f"other-{i}"} for i in range(5)])
    mixture = Mixture([Component(ordered, weight=1.5), Component(shuffled, weight=2.0)])
    first, second = (seen(mixture, range(epoch * 40, epoch * 40 + 40)) for epoch in range(2))
    assert Counter(identity for identity in first if identity.startswith("other")) == {
        f"other-{i}": 2 for i in range(5)
    }
    both = Counter(identity for identity in first + second if identity.startswith("image"))
    assert both == {f"image-{i}": 3 for i in range(COUNT)}
    assert 4 <= sum(identity.startswith("other") for identity in first[:20]) <= 6
    assert seen(mixture, [39, 7, 10**12]) == [first[39], first[7], seen(mixture, range(10**12, 10**12 + 1))[0]]
    assert seen(mixture, range(40), seed=1) != first
    # Within a pass, neighbours come from at most two files: window 4.
    numbers = [int(identity.split("-")[1]) for identity in first if identity.startswith("image")]
    for start in range(0, COUNT, 4):
        files = set(np.searchsorted(np.unique(FILES), numbers[start : start + 4], side="right").tolist())
        assert len(files) <= 3


def test_a_fraction_and_single_captions_keep_the_order_of_the_files():
    source = InFiles(1)
    part = Component(source, records=subset(source, fraction=0.5, seed=0))
    numbers = [int(identity.split("-")[1]) for identity in seen(Mixture([part]), range(10))]
    files = np.searchsorted(np.unique(FILES), numbers, side="right").tolist()
    assert sorted(numbers) == part.records.tolist()
    assert sum(a != b for a, b in zip(files, files[1:])) == len(set(files)) - 1
    mixture = by_caption(Mixture([part]))
    captions = sum(len(source[record]["captions"]) for record in part.records.tolist())
    assert mixture.epoch_size == captions
    numbers = [int(identity.split("-")[1]) for identity in seen(mixture, range(captions))]
    files = np.searchsorted(np.unique(FILES), numbers, side="right").tolist()
    assert set(numbers) == set(part.records.tolist())
    assert sum(a != b for a, b in zip(files, files[1:])) == len(set(files)) - 1
