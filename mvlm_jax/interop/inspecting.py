"""What a file or folder of weights holds, for a reader."""

import math
from pathlib import Path

from mvlm_jax.errors import UserError
from mvlm_jax.interop.families import every_family
from mvlm_jax.interop.matching import recognise
from mvlm_jax.interop.tensors import open_tensors
from mvlm_jax.interop.vocabulary import tokenizer_file


def inspect(path: str | Path) -> list[str]:
    """A line for each tensor, then what the whole is.

    Raises:
      UserError: the source cannot be read.
    """
    source = open_tensors(path)
    lines = [f"{name}  {list(tensor.shape)}  {tensor.dtype}" for name, tensor in sorted(source.tensors.items())]
    total = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    lines.append(f"{len(source.tensors)} tensors, {total / 1e6:.1f}M numbers in {', '.join(source.files)}")
    try:
        match = recognise(source.tensors, wanted=every_family(), known=every_family(), source=str(path))
        prefix = f", behind the prefix {match.prefix!r}" if match.prefix else ""
        lines.append(f"named as {match.naming.title}{prefix}; {match.layers} layers")
    except UserError as error:
        lines.append(f"cannot be imported: {error}")
    tokenizer = tokenizer_file(path)
    lines.append(f"tokenizer: {tokenizer.name}" if tokenizer else "no tokenizer beside it")
    return lines
