"""The tensors of a weight file or folder, read one at a time."""

import contextlib
import functools
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  gives NumPy the bfloat16 that safetensors hands out
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from mvlm_jax.errors import UserError
from mvlm_jax.files import read_json
from mvlm_jax.interop import hub
from mvlm_jax.stores.objects import is_address

# In the order of preference; what a folder of published weights may hold.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_LFS = b"version https://git-lfs"


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    dtype: str  # as NumPy names it
    read: Callable[[], Shaped[np.ndarray, "..."]]


class Tensors(NamedTuple):
    """What a source holds."""

    path: str | Path  # as it was given
    folder: Path  # where it is, or the file itself
    files: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]  # of the folder's config.json; empty where there is none

    def preprocessing(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation that pixels in [0, 1] were normalised with, where the folder says so."""
        said = self.config.get("pretrained_cfg")
        if (self.folder / PREPROCESSOR).is_file():
            said = read_json(self.folder / PREPROCESSOR)
        if not isinstance(said, Mapping):
            return None
        mean, std = (said.get(f"image_{name}", said.get(name)) for name in ("mean", "std"))
        return (tuple(mean), tuple(std)) if _are_channels(mean) and _are_channels(std) else None

    def number(self, field: str) -> float | None:
        """Of the config; None: it says none."""
        value = self.config.get(field)
        return value if isinstance(value, int | float) else None


def _are_channels(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(each, int | float) for each in values)


def open_tensors(path: str | Path) -> Tensors:
    """Opens a `.safetensors` file, its index, a `.bin`, `.pt` or `.pth` file of torch, or a folder with one of them.

    Args:
      path: or a name on the Hub.

    Raises:
      UserError: nothing there, more than one candidate, a missing shard, a damaged file, or a pickle of more than
        weights.
    """
    given, path = path, hub.local_path(path)
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"there is no {path}; give a .safetensors file or a folder that holds one{hub.meant(given)}")
    file = _weight_file(path) if path.is_dir() else path
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    shards: Mapping[Path, set[str] | None] = {file: None}
    if file.name.endswith(".index.json"):
        shards = _shards(file)
    tensors: dict[str, Tensor] = {}
    for shard, expected in shards.items():
        held = _open_file(shard)
        if expected is not None:
            absent = sorted(expected - set(held))
            if absent:
                raise UserError(f"{shard} lacks {absent[0]}, which {file.name} says it holds; fetch the shard again")
        twice = sorted(set(held) & set(tensors))
        if twice:
            raise UserError(f"{twice[0]} is in two shards of {file}; each tensor belongs in one")
        tensors |= held
    if not tensors:
        raise UserError(f"{file} holds no tensor; give a file of weights")
    return Tensors(
        path=given if hub.is_name(given) or is_address(given) else path,
        folder=path,
        files=tuple(shard.name for shard in shards),
        tensors=tensors,
        config=config,
    )


def _weight_file(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    candidates = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", *TORCH_SUFFIXES)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(file.name for file in candidates[:5])
        raise UserError(f"{folder} holds {len(candidates)} weight files ({names}) and no index; give the path of one")
    raise UserError(f"{folder} holds no weights; one of {', '.join(FOLDER_FILES)} must be there")


def _shards(index: Path) -> dict[Path, set[str]]:
    """Each shard with the names that the index says it holds."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensor names to files, which an index of shards needs")
    shards: dict[Path, set[str]] = {}
    for name, shard in weight_map.items():
        if Path(shard).name != shard:
            raise UserError(f"{index} names the shard {shard!r}; a shard lies beside its index")
        shards.setdefault(index.parent / shard, set()).add(name)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of the {len(shards)} shards of {index} are missing: {', '.join(missing[:5])}")
    return shards


def _open_file(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as start:
        if start.read(len(_LFS)) == _LFS:
            raise UserError(f"{file} is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    if file.suffix in TORCH_SUFFIXES:
        return _open_torch(file)
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    raise UserError(
        f"{file} is none of .safetensors, {', '.join(TORCH_SUFFIXES)}; give weights in one of these formats"
    )


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    # Each tensor is read through a handle of its own: an open one would keep the whole file mapped.
    def read(name: str) -> np.ndarray:
        with safe_open(file, framework="np") as handle:
            return handle.get_tensor(name)

    try:
        with safe_open(file, framework="np") as handle:
            described = {name: handle.get_slice(name) for name in handle.keys()}
            return {
                name: Tensor(
                    shape=tuple(part.get_shape()),
                    dtype=_NAMES.get(part.get_dtype(), part.get_dtype()),
                    read=functools.partial(read, name),
                )
                for name, part in described.items()
            }
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is damaged or cut short ({reason}); fetch it again") from error


def _open_torch(file: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{file} needs torch to be read; install torch, or convert it to .safetensors") from error
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed is None:
            raise UserError(f"{file} is damaged, or not a file of torch; fetch it again") from error
        raise UserError(
            f"{file} is a pickle that needs {needed[1]}, which could run code; save its tensors as .safetensors"
        ) from error
    except Exception as error:  # what torch raises for damaged archives is not documented
        raise UserError(f"{file} is damaged or cut short ({type(error).__name__}); fetch it again") from error
    for key in ("model", "state_dict", "module"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(torch.is_tensor(value) for value in held.values()):
        raise UserError(f"{file} holds no state dict of tensors, by itself or under 'model' or 'state_dict'")
    return {
        name: Tensor(
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            read=functools.partial(_from_torch, value),
        )
        for name, value in held.items()
    }


def _from_torch(value: Any) -> np.ndarray:
    with contextlib.suppress(TypeError):
        return value.detach().contiguous().numpy()
    # NumPy has no bfloat16 that torch could give.
    return value.detach().float().numpy()
