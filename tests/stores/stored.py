"""What a run has left in a store."""

import re

from mvlm_jax.stores.mirror import CHECKPOINTS
from mvlm_jax.training.stored_steps import MARKER


def whole_steps(store):
    marks = (re.fullmatch(rf"{CHECKPOINTS}/(\d+)/{MARKER}", name) for name in store.names(CHECKPOINTS))
    return sorted(int(mark[1]) for mark in marks if mark)
