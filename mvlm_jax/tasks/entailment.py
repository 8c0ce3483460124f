"""Visual entailment: does an image entail a hypothesis, contradict it, or leave it open? (paper, section 4.2)"""

from mvlm_jax.data.formats.snli_ve import LABELS
from mvlm_jax.interop.model_card import About
from mvlm_jax.tasks.classification import ClassificationTask


class Entailment(ClassificationTask):
    """A three-way head on the fused feature; SNLI-VE's labels."""

    name = "entailment"
    about = About(
        "that says whether an image entails a hypothesis, contradicts it or leaves it open",
        'model.classify_pair([image], ["a dog is outside"])',
    )
    labels = LABELS
