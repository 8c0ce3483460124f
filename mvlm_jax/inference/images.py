"""The images that a caller gives, as the model is shown them."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mvlm_jax.data.formats.listed import read_image
from mvlm_jax.data.images import IMAGE_ENDINGS, ImageSpec, UnusableImage, evaluate_transform, upright_rgb
from mvlm_jax.data.processes import available_cpus
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_path

# A file by its path, or the pixels of an image.
Picture = Image.Image | str | Path | UInt8[np.ndarray | jax.Array, "height width 3"]
# Pictures in any order that can be gone through; a folder stands for the image files in it.
Pictures = Iterable[Picture] | str | Path | UInt8[np.ndarray | jax.Array, "count height width 3"]
NEEDED = "a Pillow image, the path of a file, or an array of uint8 [height, width, 3]"


def image_files(folder: str | Path) -> list[Path]:
    """The image files in a folder and in the folders inside it, by their endings, in the order of their paths.

    Files and folders whose names begin with a dot are left out.

    Raises:
      UserError: it is no folder.
    """
    directory = user_path(folder)
    if not directory.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder of images")
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower()[1:] in IMAGE_ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
        and (path.is_file() or not path.exists())  # a link that leads nowhere is counted where it is read
    )


def described(value: Any) -> str:
    """A wrong value in a few words, for an error."""
    if value is None:
        return "None"
    if isinstance(value, str | bytes | bool | int | float):
        return f"{value!r:.60}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    if isinstance(value, Iterator):
        return "a generator"
    return f"of the type {type(value).__name__}"


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads what is given as images, at the size of the model."""

    spec: ImageSpec

    def one(self, image: Any, *, name: str = "image") -> UInt8[np.ndarray, "S S 3"]:
        """
        Args:
          name: of the argument, for errors.

        Raises:
          UserError: it is no picture, or one that cannot be read.
        """
        try:
            return self._decoded(image, name=name)
        except UnusableImage as error:
            which = f" ({str(image)!r})" if isinstance(image, str | Path) else ""
            raise UserError(f"{name}{which} cannot be used: {' '.join(str(error).split())}") from error

    def listed(self, images: Any, *, name: str = "images") -> Sequence[Any]:
        """What can be counted and gone through again; nothing is read yet.

        Raises:
          UserError: it is no list, or an empty one.
        """
        images = self._in_folder(images, name=name)
        if not isinstance(images, Sequence | np.ndarray):
            raise UserError(f"{name} is {described(images)}; give a list, which is gone through more than once")
        if not len(images):
            raise UserError(f"{name} is empty; give at least one")
        return list(images)

    def batches(self, images: Any, batch_size: int, *, name: str = "images") -> Iterator[UInt8[np.ndarray, "b S S 3"]]:
        """Any number of images, of which one batch is in memory.

        Raises:
          UserError: as `one`; there is none, or `images` is one image alone.
        """
        numbered = enumerate(self._in_folder(images, name=name))
        first = True
        while batch := list(itertools.islice(numbered, batch_size)):
            first = False
            yield np.stack(list(self._pool.map(lambda item: self.one(item[1], name=f"{name}[{item[0]}]"), batch)))
        if first:
            raise UserError(f"{name} is empty; give at least one")

    def read(self, images: Sequence[Any], *, name: str = "images") -> UInt8[np.ndarray, "b S S 3"]:
        """All of a few images."""
        return next(self.batches(images, len(images), name=name))

    def _in_folder(self, images: Any, *, name: str) -> Any:
        if isinstance(images, str | Path):
            if str(images) and "\0" not in str(images) and user_path(images).is_dir():
                files = image_files(images)
                if not files:
                    raise UserError(f"{name}={str(images)!r} is a folder without images ({', '.join(IMAGE_ENDINGS)})")
                return files
            raise UserError(f"{name} is {str(images)!r:.200}, which is no folder; put a single file in brackets")
        if isinstance(images, jax.Array):
            images = np.asarray(images)
        single = isinstance(images, Image.Image) or isinstance(images, np.ndarray) and images.ndim == 3
        if single:
            raise UserError(f"{name} is a single image; put it in brackets")
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise UserError(f"{name} is {described(images)}; give uint8 [count, height, width, 3]")
        if not isinstance(images, Iterable) or isinstance(images, Mapping | Set | bytes | bytearray):
            raise UserError(f"{name} is {described(images)}; give a list, each of {NEEDED}")
        return images

    def _decoded(self, image: Any, *, name: str) -> UInt8[np.ndarray, "S S 3"]:
        if isinstance(image, jax.Array):
            image = np.asarray(image)
        if isinstance(image, Image.Image):
            if not all(image.size):
                raise UserError(f"{name} has {image.width} x {image.height} pixels; give one that has some")
            return evaluate_transform(upright_rgb(image), size=self.spec.size)
        if isinstance(image, str | Path):
            path = user_path(image) if str(image) else Path()
            if path.is_dir():
                raise UserError(f"{name} is {str(image)!r}, a folder; give {NEEDED}")
            return self.spec.unaugmented(read_image(path))
        if not isinstance(image, np.ndarray):
            raise UserError(f"{name} is {described(image)}; give {NEEDED}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f"{name} is {described(image)}; give {NEEDED}")
        return evaluate_transform(np.ascontiguousarray(image), size=self.spec.size)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(available_cpus())
