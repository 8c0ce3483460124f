"""The README.md of an export, filled from the run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.data.skipped import in_words
from mvlm_jax.interop.families import image_family, text_family
from mvlm_jax.training.workdir import DETAILS, Evaluation

_CARD = """---
library_name: mvlm_jax
tags: [vision-language, masked-modeling, image-text-retrieval]
---

# MaskVLM, {image.kind} and {text.kind}

A model {description} (Kwon et al., "Masked Vision and Language Modeling for Multi-modal Representation Learning", ICLR
2023, arXiv 2208.02131). {millions:.1f}M parameters, float32.

```python
import mvlm_jax

model = mvlm_jax.load("FOLDER")
{example}  # Pillow images and strings
```

`image_encoder/` and `text_encoder/` are the two encoders alone, for transformers'
`{image_class}` and `{text_class}`{without_pooler}.

## Model

| part | layers | width | heads |
|---|---|---|---|
| image encoder ({image.kind}) | {image.layers} | {image.width} | {image.heads} |
| text encoder ({text.kind}) | {text.layers} | {text.width} | {text.heads} |
| each cross encoder | {cross.layers} | {cross.width} | {cross.heads} |
| image decoder | {cross.decoder_layers} | {cross.width} | {cross.heads} |

Images and texts are compared by {image_pooled} and {text_pooled}, each projected to {config.model.projection} numbers.

## Training

| | |
|---|---|
| data | {config.data.train} |
| steps | {step} of {config.steps}, {config.batch_size} pairs each |
| seed | {config.seed} |
| parameters | {kind} |
| images | {config.image.size} pixels a side, patches of {image.patch} |
| text | {text.kind}, {text.vocab_size} tokens, captions of at most {config.text.max_length} |
| started from | {start} |

## Metrics

{metrics}

## Config

```json
{json}
```
"""


_POOLED = {"first": "the {0}", "mean": "the mean of the {1}"}


class About(NamedTuple):
    """What the card says about the task that the model was trained for."""

    description: str  # completes "A model ..."
    example: str  # a call of the loaded model


def model_card(
    config: ConfigDict,
    about: About,
    *,
    step: int,
    parameters: int,
    evaluations: Mapping[str, Evaluation],
    weights: Mapping[str, Any] | None,
    averaged: bool = False,
) -> str:
    """
    Args:
      evaluations: of this step, by the stem of their files.
      weights: what the run kept of its import; None: it started from nothing.
      averaged: whether the parameters are the moving average that the run has kept.
    """
    image, text = image_family(config.image_encoder.kind), text_family(config.text_encoder.kind)
    image_class, text_class = image.architecture_of(config.image_encoder), text.architecture_of(config.text_encoder)
    poolers = [f"`{name}`" for name, of in ((image_class, image), (text_class, text)) if of.pooling_layer]
    return _CARD.format(
        **about._asdict(),
        config=config,
        image=config.image_encoder,
        text=config.text_encoder,
        cross=config.cross,
        image_class=image_class,
        text_class=text_class,
        without_pooler=f"; give `add_pooling_layer=False` to {' and '.join(poolers)}" if poolers else "",
        image_pooled=_POOLED[config.image_encoder.pooling].format("image's class token", "image's patches"),
        text_pooled=_POOLED[config.text_encoder.pooling].format("text's first token", "text's tokens"),
        millions=parameters / 1e6,
        step=step,
        kind=f"the moving average over updates (decay {config.optimizer.ema:g})" if averaged else "those of this step",
        start=_start(weights),
        metrics=_metrics(evaluations),
        json=config_lib.to_json(config).strip(),
    )


def _start(weights: Mapping[str, Any] | None) -> str:
    if weights is None:
        return "random weights"
    return "; ".join(
        f"{loaded['encoder']}: {loaded['source']}"
        + (f", commit {loaded['revision']}" if loaded.get("revision") else "")  # which earlier versions did not keep
        + f" ({loaded['naming']})"
        for loaded in weights["loaded"]
    )


def _metrics(evaluations: Mapping[str, Evaluation]) -> str:
    if not evaluations:
        return "This step was not evaluated."
    sources = [f"- {stem}: {evaluation.source or 'source not recorded'}" for stem, evaluation in evaluations.items()]
    rows = [
        f"| {stem} | {name} | {_shown(value)} |"
        for stem, evaluation in evaluations.items()
        for name, value in evaluation.metrics.items()
        if name not in DETAILS
    ]
    return "\n".join([*sources, "", "| evaluation | metric | value [95% interval] |", "|---|---|---|", *rows])


def _shown(value: Any) -> str:
    match value:
        case None:
            return "not finite"
        case [int() | float() | None as middle, low, high]:
            return f"{_shown(middle)} [{_shown(low)}, {_shown(high)}]"
        case list():
            return "; ".join(map(_shown, value))
        case dict():
            return in_words(value) or "none"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
