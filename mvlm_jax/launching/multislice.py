"""Several TPU slices that train together, through the queue of the Cloud TPU API; on GKE `gke` has --slices too."""

from absl import flags

from mvlm_jax.launching import tpu

TOOL = tpu.TOOL
VERBS = tpu.VERBS


def define_flags(values: flags.FlagValues) -> None:
    tpu.define_common(values)
    tpu.define_slices(values, default=2)
