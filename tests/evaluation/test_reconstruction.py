"""Which image and caption each caption is evaluated with; what is rebuilt is tested with the model."""

import numpy as np
import pytest
from tiny import tiny_model

from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.evaluation import reconstruction
from mvlm_jax.evaluation.reconstruction import PARTNERS
from mvlm_jax.objectives.masking import Masking

OWNERS = np.array([0, 0, 1, 1, 1, 2, 3, 3, 4], np.int32)  # the image of each caption
MASKING = Masking(grid=1, cell=1, image_ratio=0.5, text_ratio=0.5, special_ids=(0,), mask_id=0)


class Unread:
    """Of images that were all kept."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise AssertionError("read again")

    def example_id(self, index):
        return str(index)


@pytest.fixture
def split():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    images[:4, 2:, 2:] += 100  # but for the last image, the last of four patches is not of the ground
    return EvalSplit(
        captions=np.arange(9, dtype=np.int32)[:, None] * np.ones((1, 6), np.int32),
        caption_image=OWNERS,
        image_ids=[str(number) for number in range(5)],
        left_out={},
        source=Unread(),
        records=list(range(5)),
        spec=ImageSpec(size=4, max_pixels=100),
        pixels=images,
    )


def test_each_caption_has_its_own_image_and_the_next_one_for_a_wrong_one_batch_by_batch(split, monkeypatch):
    asked, batches = [], []
    whole = EvalSplit.images

    def images(self, indices):
        asked.append(len(indices))
        return whole(self, indices)

    def rebuild(model, params, batch, **_):
        batches.append({name: np.asarray(values) for name, values in batch.items()})
        # Beside its own partner a pair errs by 1 in its first patch and 2 in its second, beside others by 3 and 6.
        errors = {partner: np.array([[1, 2]] * 4) * (1 if partner == "own" else 3) for partner in PARTNERS}
        ones = {partner: np.ones(4) for partner in PARTNERS}
        return {"correct": ones, "error": errors, "tokens": np.ones(4), "patch_slots": np.array([[1, 3]] * 4)}

    model = tiny_model(pad_id=1, image_encoder__patch=2)
    monkeypatch.setattr(EvalSplit, "images", images)
    monkeypatch.setattr(reconstruction, "_rebuild", rebuild)
    monkeypatch.setattr(reconstruction, "fetch", lambda result: result)
    results = reconstruction.evaluate_reconstruction(
        model, {"bias": np.zeros(1)}, split, masking=MASKING, batch_size=4, seed=0, bootstrap=10
    )
    assert (results["images"], results["captions"]) == (5, 9)
    column = {name: np.concatenate([batch[name] for batch in batches])[:9] for name in batches[0]}
    np.testing.assert_array_equal(column["text"][:, 0], np.arange(9))
    np.testing.assert_array_equal(column["image"][:, 0, 0, 0], OWNERS)
    np.testing.assert_array_equal(column["wrong_image"][:, 0, 0, 0], (OWNERS + 1) % 5)
    np.testing.assert_array_equal(OWNERS[column["wrong_text"][:, 0]], (OWNERS + 1) % 5)
    # Captions 0-3, 4-7 and 8: no image is decoded twice for a batch, nor any that it does not show.
    assert asked == [3, 4, 2]
    # Both masked patches: 3 of 9 on average. Of them the second one of eight captions counts: 2 of 6.
    for name, value in {
        "mim_l1_own": 1.5, "mim_l1_wrong": 4.5, "mim_gain": 3, "mim_gain_over_none": 3,
        "mim_l1_informative_own": 2, "mim_l1_informative_wrong": 6, "mim_l1_informative_none": 6,
        "mim_gain_informative": 2 / 3, "mim_gain_informative_over_none": 2 / 3,
    }.items():  # fmt: skip
        assert results[name] == pytest.approx([value] * 3)
    assert (results["informative_by"], results["informative_patches"]) == ("ground", pytest.approx(100 * 8 / 18))


@pytest.mark.filterwarnings("error")
def test_where_nothing_is_counted_there_is_no_number():
    assert np.isnan(reconstruction.ratio_interval(np.zeros(3), np.zeros(3), resamples=5, seed=0)).all()
