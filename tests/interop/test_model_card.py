import pytest
from tiny import recipe

from mvlm_jax.interop.model_card import model_card
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.workdir import Evaluation


@pytest.mark.parametrize(
    ("image", "text", "sentence"),
    [
        ("vit", "bert", "`ViTModel` and `BertModel`; give `add_pooling_layer=False` to `ViTModel` and `BertModel`."),
        ("dinov2", "mpnet", "`Dinov2Model` and `MPNetModel`; give `add_pooling_layer=False` to `MPNetModel`."),
        ("clip", "distilbert", "`CLIPVisionModel` and `DistilBertModel`."),
    ],
)
def test_the_classes_that_load_the_encoders_are_a_whole_sentence(image, text, sentence):
    config = recipe("demo")
    config.image_encoder.kind, config.text_encoder.kind = image, text
    card = model_card(config, Pretrain.about, step=3, parameters=10**6, evaluations={}, weights=None)
    assert f"the two encoders alone, for transformers'\n{sentence}\n\n## Model" in card


def test_every_metric_has_a_row_whatever_it_is():
    metrics = {
        "top1": 12.34567,
        "images": 8,
        "mlm_gain": [1.0, -0.5, None],
        "mim_l1_own": None,
        "skipped_images": 3,
        "left_out": {"corrupt": 1, "absent": 2},
        "templates": ["a {}.", "the {}.", "{}"],
    }
    evaluations = {
        "val": Evaluation("retrieval-val", source="tfds:coco:val", metrics=metrics),
        "none": Evaluation("retrieval-none", source="", metrics={"left_out": {}}),
    }
    config = recipe("demo")
    config.text_encoder.pooling = "mean"
    card = model_card(config, Pretrain.about, step=3, parameters=10**6, evaluations=evaluations, weights=None)
    for row in (
        "compared by the image's class token and the mean of the text's tokens, each projected to",
        "- val: tfds:coco:val",
        "- none: source not recorded",
        "| val | top1 | 12.35 |",
        "| val | images | 8 |",
        "| val | mlm_gain | 1 [-0.5, not finite] |",
        "| val | mim_l1_own | not finite |",
        "| val | skipped_images | 3 |",
        "| val | left_out | absent: 2, corrupt: 1 |",
        "| val | templates | a {}.; the {}.; {} |",
        "| none | left_out | none |",
    ):
        assert row in card
