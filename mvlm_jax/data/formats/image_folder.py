"""A folder with a folder of images for each class."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from mvlm_jax.data.formats.texts import read_text
from mvlm_jax.data.images import IMAGE_ENDINGS
from mvlm_jax.errors import UserError


def open_image_folder(
    directory: Path, *, names: Mapping[str, str] | None = None
) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes in the order of their folders, and each image with the place of its class.

    Args:
      names: of the class in each folder; None: the folder's own name, `_` read as a space.

    Raises:
      UserError: no such folder, fewer than two classes, no image, or `names` are those of other folders.
    """
    if not directory.is_dir():
        raise UserError(f"{str(directory)!r} is not a folder; give one that holds a folder of images for each class")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(f"{str(directory)!r} holds {len(folders)} folders; at least two classes are needed")
    if names is None:
        names = {folder.name: folder.name.replace("_", " ").strip() for folder in folders}
    unnamed = [folder.name for folder in folders if folder.name not in names]
    if unnamed:
        raise UserError(f"the class names lack {len(unnamed)} folders of {str(directory)!r}, the first {unnamed[0]!r}")
    unknown = sorted(set(names) - {folder.name for folder in folders})
    if unknown:
        raise UserError(f"{str(directory)!r} lacks {len(unknown)} folders of the class names, the first {unknown[0]!r}")
    images, others = [], []
    for number, folder in enumerate(folders):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower()[1:] in IMAGE_ENDINGS:
                images.append((path, number))
            elif not path.is_dir():
                others.append(path)
    if others:
        logging.warning("%d files are no images by their endings and left out, the first %s", len(others), others[0])
    if not images:
        raise UserError(f"the folders in {str(directory)!r} hold no image ({', '.join(IMAGE_ENDINGS)})")
    return [names[folder.name] for folder in folders], images


def read_class_names(file: Path) -> dict[str, str]:
    """The name of the class in each folder, from lines of a folder, a tab and a name.

    Raises:
      UserError: no such file, a line of another form, or a folder with two names.
    """
    pairs = [tuple(part.strip() for part in line.split("\t")) for line in _lines(file, "class names")]
    wrong = next((pair for pair in pairs if len(pair) != 2 or not all(pair)), None)
    if wrong or not pairs:
        received = f", not {' '.join(wrong)!r}" if wrong else ""
        raise UserError(f"class names {str(file)!r} needs lines of a folder, a tab and a name{received}")
    names = {pair[0]: pair[1] for pair in pairs}
    if len(names) < len(pairs):
        [(twice, _)] = Counter(folder for folder, _ in pairs).most_common(1)
        raise UserError(f"class names {str(file)!r} name the folder {twice!r} more than once")
    return names


def read_templates(file: Path) -> list[str]:
    """Prompts, one a line, each with {} in the place of the class.

    Raises:
      UserError: no such file, or a line without {}.
    """
    lines = _lines(file, "templates")
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise UserError(f"templates {str(file)!r} needs lines with one {{}} each, such as 'a photo of a {{}}.'")
    return lines


def _lines(file: Path, what: str) -> list[str]:
    return [line.strip() for line in read_text(file, what=what).splitlines() if line.strip()]
