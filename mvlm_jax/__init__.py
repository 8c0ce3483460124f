"""Masked vision-language pre-training (MaskVLM, ICLR 2023) in JAX and Flax."""
