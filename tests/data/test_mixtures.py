from collections import Counter

import numpy as np
import pytest
from examples import ListSource, pair_source

from mvlm_jax.data.mixtures import Component, Mixture, open_mixture, parse_mixture, subset
from mvlm_jax.data.sources import open_source
from mvlm_jax.errors import UserError


class Ids:
    """A source of which only the ids can be read."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        raise AssertionError("an image was read")

    def example_id(self, index):
        return self.ids[index]


def numbered(count: int, *, prefix: str = "image") -> Ids:
    return Ids([f"{prefix}-{i}" for i in range(count)])


def seen(mixture: Mixture, indices, *, seed: int = 0) -> list[str]:
    located = (mixture.locate(index, seed=seed) for index in indices)
    places = ((mixture.components[number], position) for number, position in located)
    return [component.source.example_id(component.record(position)) for component, position in places]


def epochs(mixture: Mixture, count: int, *, seed: int = 0) -> list[list[str]]:
    size = mixture.epoch_size
    return [seen(mixture, range(epoch * size, (epoch + 1) * size), seed=seed) for epoch in range(count)]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("tfds:coco:train", [(1.0, "tfds:coco:train")]),
        ("2*tfds:coco:train + tfds:vg:train", [(2.0, "tfds:coco:train"), (1.0, "tfds:vg:train")]),
        (" 0.5 * tfds:a:b  +  1e1*json:/x y.json ", [(0.5, "tfds:a:b"), (10.0, "json:/x y.json")]),
        # A path may hold both signs.
        ("arrayrecord:/a+b/2*c*.array_record", [(1.0, "arrayrecord:/a+b/2*c*.array_record")]),
    ],
)
def test_mixture_is_written_as_a_sum(text, terms):
    assert [tuple(term) for term in parse_mixture(text)] == terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0*tfds:a:b", "has the weight '0'; give a number above 0, as in 2\\*tfds:a:b"),
        ("-1*tfds:a:b", "weight '-1'"),
        ("nan*tfds:a:b", "weight 'nan'"),
        ("inf*tfds:a:b", "weight 'inf'"),
        ("tfds:c:d + twice*tfds:a:b", "weight 'twice'"),
        ("*tfds:a:b", "weight ''"),
        ("tfds:a:b + ", "empty term"),
        ("tfds:a:b +  + tfds:a:b", "empty term"),
        ("", "empty term"),
        ("2*", "empty term"),
    ],
)
def test_wrong_mixtures_are_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_mixture(text)
    assert "\n" not in str(caught.value)


def test_every_example_comes_exactly_once_in_an_epoch_and_each_epoch_has_its_order():
    source = numbered(500)
    orders = epochs(Mixture([Component(source)]), 4)
    assert all(sorted(order) == sorted(source.ids) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    # A shuffle leaves an example where it was about once.
    assert sum(a == b for a, b in zip(orders[0], source.ids)) < 10


def test_epochs_of_neighbouring_seeds_are_not_the_same():
    mixture = Mixture([Component(numbered(50))])
    assert epochs(mixture, 2, seed=5)[1] != epochs(mixture, 1, seed=6)[0]


def test_weights_say_how_often_an_example_comes_in_an_epoch():
    rare, common = numbered(10, prefix="rare"), numbered(40, prefix="common")
    mixture = Mixture([Component(rare, weight=3.0), Component(common)])
    assert mixture.epoch_size == 70
    for epoch in epochs(mixture, 3):
        assert Counter(epoch) == dict.fromkeys(rare.ids, 3) | dict.fromkeys(common.ids, 1)
        # All of an epoch is shuffled together: neither source comes in one piece.
        assert 15 < sum(identity.startswith("common") for identity in epoch[:35]) < 30


@pytest.mark.parametrize(("weight", "period"), [(0.5, 2), (1.5, 2), (0.25, 4)])
def test_part_of_a_pass_is_continued_in_the_next_epoch(weight, period):
    source = numbered(40)
    mixture = Mixture([Component(source, weight=weight), Component(numbered(7, prefix="other"))])
    orders = [[i for i in epoch if i.startswith("image")] for epoch in epochs(mixture, 2 * period)]
    assert {len(order) for order in orders} == {40 * weight}
    for start in (0, period):
        together = Counter(identity for order in orders[start : start + period] for identity in order)
        assert together == dict.fromkeys(source.ids, weight * period)
    # Which part comes first is drawn for each epoch, and is not the first part of the file.
    assert Counter(orders[0]) != Counter(orders[period])
    assert Counter(orders[0]) != Counter((2 * source.ids)[: len(orders[0])])


def test_any_place_is_reached_at_once():
    mixture = Mixture([Component(numbered(30)), Component(numbered(20, prefix="b"), weight=0.3)])
    far = 10**15
    assert seen(mixture, range(far, far + 5)) == seen(mixture, range(far, far + 5))
    whole = seen(mixture, range(100))
    assert seen(mixture, [99, 3, 50]) == [whole[99], whole[3], whole[50]]


@pytest.mark.parametrize("components", [[], [Component(Ids([]))], [Component(numbered(2)), Component(Ids([]))]])
def test_mixture_without_examples_is_refused(components):
    with pytest.raises(UserError, match="holds no example"):
        Mixture(components)


def chosen(source: Ids, fraction: float, *, seed: int = 0) -> set[str]:
    return {source.ids[record] for record in subset(source, fraction=fraction, seed=seed)}


def test_subset_is_chosen_by_id_alone():
    source = numbered(1000)
    reordered = Ids([source.ids[i] for i in np.random.default_rng(0).permutation(1000)])
    assert len(chosen(source, 0.25)) == 250
    assert chosen(source, 0.25) == chosen(reordered, 0.25)
    assert chosen(source, 0.25) != set(source.ids[:250])
    records = subset(source, fraction=0.25, seed=0)
    assert records.dtype == np.int32 and (np.diff(records) > 0).all()


def test_smaller_fractions_are_part_of_larger_ones():
    source = numbered(1000)
    sets = [chosen(source, fraction) for fraction in (0.1, 0.25, 0.5, 1.0)]
    assert [len(ids) for ids in sets] == [100, 250, 500, 1000]
    assert all(small < large for small, large in zip(sets, sets[1:]))


def test_another_fraction_seed_chooses_others():
    source = numbered(1000)
    common = chosen(source, 0.5) & chosen(source, 0.5, seed=1)
    assert 200 < len(common) < 300


def test_run_on_a_fraction_sees_its_examples_at_every_seed():
    source = numbered(40)
    mixture = Mixture([Component(source, records=subset(source, fraction=0.25, seed=0))])
    first, second = epochs(mixture, 2, seed=0)
    assert len(first) == 10 and set(first) == set(second) == set(epochs(mixture, 1, seed=9)[0]) == chosen(source, 0.25)
    assert first != epochs(mixture, 1, seed=9)[0]


def test_mixture_is_opened_with_a_fraction_of_each_source(shapes_dir):
    text = "2*tfds:shapes:train + tfds:shapes:val"  # 40 and 12 examples
    whole = open_mixture(text, data_dir=shapes_dir)
    half = open_mixture(text, data_dir=shapes_dir, fraction=0.5)
    assert [len(component) for component in whole.components] == [40, 12]
    assert [len(component) for component in half.components] == [20, 6]
    assert (whole.epoch_size, half.epoch_size) == (92, 46)
    assert set(seen(half, range(46))) < set(seen(whole, range(92)))
    other = open_mixture(text, data_dir=shapes_dir, fraction=0.5, fraction_seed=3)
    assert set(seen(half, range(46))) != set(seen(other, range(46)))


def test_fraction_that_leaves_nothing_is_refused(shapes_dir):
    with pytest.raises(UserError, match=r"fraction=0.03 leaves none of the 12 examples of tfds:shapes:val; give more"):
        open_mixture("tfds:shapes:train + tfds:shapes:val", data_dir=shapes_dir, fraction=0.03)


@pytest.mark.parametrize(
    ("text", "fraction", "lengths"),
    [
        ("tfds:shapes:train?fraction=0.5 + tfds:shapes:val", 1.0, [20, 12]),
        ("2*tfds:shapes:train + tfds:shapes:val?fraction=1", 0.25, [10, 12]),
        ("tfds:shapes:train?image=image&fraction=0.1&id=image_id", 0.5, [4]),
    ],
)
def test_fraction_of_a_source_counts_in_place_of_the_general_one(shapes_dir, text, fraction, lengths):
    mixture = open_mixture(text, data_dir=shapes_dir, fraction=fraction)
    assert [len(component) for component in mixture.components] == lengths


def test_fraction_of_a_source_holds_the_examples_that_the_general_one_does(shapes_dir):
    own = open_mixture("tfds:shapes:train?fraction=0.5", data_dir=shapes_dir, fraction_seed=3)
    general = open_mixture("tfds:shapes:train", data_dir=shapes_dir, fraction=0.5, fraction_seed=3)
    assert epochs(own, 2) == epochs(general, 2)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("tfds:shapes:val?fraction=0.03", "^fraction=0.03 leaves none of the 12 examples of tfds:shapes:val; give"),
        *((f"tfds:shapes:val?fraction={value}", f"fraction={value}; give a number above 0 and at most 1")
          for value in ("0", "1.5", "-1", "nan", "half")),
        ("tfds:shapes:val?fraction=", "'fraction=' is not an option=value"),
        ("tfds:shapes:val?fraction=0.5&fraction=0.5", "is not an option=value, given once"),
    ],
)  # fmt: skip
def test_wrong_fraction_of_a_source_is_refused(shapes_dir, term, message):
    with pytest.raises(UserError, match=message):
        open_mixture(f"tfds:shapes:train + {term}", data_dir=shapes_dir)


def test_only_training_sources_take_a_fraction(shapes_dir):
    with pytest.raises(UserError, match=r"is used whole; fraction=… is an option of the sources in config.data.train"):
        open_source("tfds:shapes:val?fraction=0.5", data_dir=shapes_dir)


def test_captions_are_those_of_every_pair_in_use_once():
    source = pair_source(4, captions=["x", "y"])
    part = np.array([1, 3], np.int32)
    mixture = Mixture([Component(source, weight=2.0, records=part), Component(ListSource(source.examples[:1]))])
    assert list(mixture.captions()) == ["x", "y"] * 3
