"""The shipped recipes, also importable as `mvlm_jax.configs`: a recipe imports its base and changes what differs."""
