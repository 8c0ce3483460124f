"""A folder with a folder of images for each class."""

from pathlib import Path

from mvlm_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")


def open_image_folder(directory: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes in alphabetical order, `_` read as a space, and each image with the place of its class.

    Raises:
      UserError: no such folder, fewer than two classes, or no image.
    """
    if not directory.is_dir():
        raise UserError(f"{str(directory)!r} is not a folder; give one that holds a folder of images for each class")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(f"{str(directory)!r} holds {len(folders)} folders; at least two classes are needed")
    images = [
        (path, number)
        for number, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not images:
        raise UserError(f"the folders in {str(directory)!r} hold no image ({', '.join(SUFFIXES)})")
    return [folder.name.replace("_", " ").strip() for folder in folders], images


def read_templates(file: Path) -> list[str]:
    """Prompts, one a line, each with {} in the place of the class.

    Raises:
      UserError: no such file, or a line without {}.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"templates {str(file)!r} cannot be read as text: {error}") from error
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise UserError(f"templates {str(file)!r} needs lines with one {{}} each, such as 'a photo of a {{}}.'")
    return lines
