"""The program as one file that is sent to machines without an image of it."""

import tarfile
from pathlib import Path

import mvlm_jax
from mvlm_jax.errors import UserError

# Nothing else of a checkout leaves the machine: no data, no runs, and no file with a key that lies about.
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "configs", "mvlm_jax")
RECIPE = "sent_recipe.py"


def checkout() -> Path:
    """
    Raises:
      UserError: the package was installed without its sources.
    """
    root = Path(mvlm_jax.__file__).resolve().parent.parent
    if missing := [name for name in FILES if not (root / name).exists()]:
        raise UserError(
            f"the machines install this checkout, and {root} has no {missing[0]}; run mvlm from a clone of the "
            "repository, installed with pip install --editable"
        )
    return root


def write(file: Path, *, recipe: Path | None) -> None:
    """A tar file of the program, and of a recipe that is not part of it."""
    root = checkout()
    with tarfile.open(file, "w:gz") as archive:
        for name in FILES:
            archive.add(root / name, arcname=name, filter=_without_caches)
        if recipe is not None:
            archive.add(recipe.resolve(), arcname=RECIPE)


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
