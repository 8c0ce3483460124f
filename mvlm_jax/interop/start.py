"""The weights that a new run starts from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.interop.families import every_family, image_family, text_family
from mvlm_jax.interop.family import Family
from mvlm_jax.interop.importing import import_encoder
from mvlm_jax.interop.parameters import flat, parts_without
from mvlm_jax.interop.report import Report
from mvlm_jax.interop.vocabulary import check_tokenizer
from mvlm_jax.models.image_encoder import ImageFormat


class Imported(NamedTuple):
    params: dict[str, Float[np.ndarray, "..."]]  # by path within the whole model
    reports: list[Report]
    initial: list[str]  # the parts of the model that nothing was loaded into

    def to_dict(self) -> dict[str, Any]:
        return {"loaded": [report.to_dict() for report in self.reports], "at_initial_values": self.initial}

    def lines(self) -> list[str]:
        """For a reader."""
        return [line for report in self.reports for line in report.lines()] + [
            f"parts at their initial values: {', '.join(self.initial) or 'none'}"
        ]


def import_encoders(
    shapes: PyTree[jax.ShapeDtypeStruct],
    *,
    init_from: Mapping[str, str],
    image: ImageFormat,
    image_encoder: ConfigDict,
    text_encoder: ConfigDict,
    tokenizer: Tokenizer | None,
) -> Imported:
    """The encoders that `init_from` names (`image`, `text`; empty: none), fit for parameters of these `shapes`.

    Args:
      image_encoder, text_encoder: these parts of the config.
      tokenizer: that of the run; None where no text weights are named.

    Raises:
      UserError: a source cannot be read or does not fit, or the tokenizer is not that of the text weights.
    """
    flat_shapes = {path: tuple(leaf.shape) for path, leaf in flat(shapes).items()}
    params, reports = {}, []
    parts: tuple[tuple[str, Family, ConfigDict], ...] = (
        (init_from["image"], image_family(image_encoder.kind), image_encoder),
        (init_from["text"], text_family(text_encoder.kind), text_encoder),
    )
    for source, family, encoder in parts:
        if source:
            within = _within(family.part, flat_shapes)
            loaded, report = import_encoder(
                source, family=family, known=every_family(), encoder=encoder, image=image, shapes=within
            )
            params.update({f"{family.part}/{path}": value for path, value in loaded.items()})
            reports.append(report)
    if init_from["text"]:
        assert tokenizer is not None
        check_tokenizer(tokenizer, weights=init_from["text"], vocab_size=text_encoder.vocab_size)
    return Imported(params, reports, initial=parts_without(params, among=flat_shapes))


def _within(encoder: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    prefix = f"{encoder}/"
    return {path.removeprefix(prefix): shape for path, shape in shapes.items() if path.startswith(prefix)}
