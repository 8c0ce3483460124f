"""What a step says of the examples that it could not use."""

import jax.numpy as jnp
import pytest
from tiny import recipe

from mvlm_jax.objectives.pretraining import Pairs
from mvlm_jax.tasks.registry import describe_task

RECIPES = ["demo", "finetune_retrieval", "finetune_vqa", "finetune_nlvr2", "finetune_snli_ve"]
SKIPPED = jnp.array([0, 3, 0, 1, 0, 0, 0, 1], jnp.int32)


@pytest.mark.parametrize("name", RECIPES)
def test_skipped_images_are_a_total_over_the_batch_in_every_task(name):
    config = recipe(name, *(["shapes"] if name != "demo" else []))
    config.loss.itc = config.loss.itm = 0.0
    objective = describe_task(config).objective
    rows = {"skipped": SKIPPED}
    if name in ("demo", "finetune_retrieval"):
        rows = Pairs(*[None] * (len(Pairs._fields) - 1), skipped=SKIPPED)
    sums = objective.batch_losses({"temperature": jnp.float32(1)}, (), rows)
    assert {name: float(total / count) for name, (total, count) in sums.items()} == {"examples": 8, "skipped_images": 5}
