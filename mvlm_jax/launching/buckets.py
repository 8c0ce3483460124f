"""Buckets of Cloud Storage: `gs://BUCKET/PATH` is `/gcs/BUCKET/PATH` on every machine that is launched.

Vertex AI mounts all buckets there by itself; the other platforms do the same, so that a command means the same on each.
"""

import re
from collections.abc import Iterable

from mvlm_jax.errors import UserError

MOUNT = "/gcs"
# Of Cloud Storage FUSE, with the section of its configuration in front where there is one; None: a switch.
# A rename must move whole directories (checkpoints), and another host's files must show at once.
SETTINGS = {"implicit-dirs": None, "rename-dir-limit": "200000", "metadata-cache:ttl-secs": "0"}
NAME = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"


def bucket(text: str) -> str:
    """The name in `gs://BUCKET`, `gs://BUCKET/` or `BUCKET`.

    Raises:
      UserError: it is none of these.
    """
    name = text.removeprefix("gs://").rstrip("/")
    if not re.fullmatch(NAME, name):
        raise UserError(f"--bucket={text} is not the name of a bucket; give BUCKET or gs://BUCKET")
    return name


def mounted(path: str) -> str:
    """The path of `gs://BUCKET/PATH` where the bucket is mounted; other paths stay.

    Raises:
      UserError: the name of the bucket is not one.
    """
    if not path.startswith("gs://"):
        return path
    name, _, rest = path.removeprefix("gs://").partition("/")
    if not re.fullmatch(NAME, name):
        raise UserError(f"{path} names no bucket; give gs://BUCKET/PATH")
    return f"{MOUNT}/{name}/{rest}".rstrip("/")


def address(path: str) -> str:
    """`gs://BUCKET/PATH` of a path under the mount."""
    return "gs://" + path.removeprefix(f"{MOUNT}/")


def mount_flags() -> list[str]:
    """The settings as flags of gcsfuse."""
    flags = {f"--{name.replace(':', '-')}": value for name, value in SETTINGS.items()}
    return [flag if value is None else f"{flag}={value}" for flag, value in flags.items()]


def mount_options(*, user: int) -> str:
    """The settings as the driver of GKE takes them, in `mountOptions`.

    Args:
      user: to whom the files belong.
    """
    options = []
    for name, value in (SETTINGS | {"uid": str(user), "gid": str(user)}).items():
        options.append(name if value is None else f"{name}{':' if ':' in name else '='}{value}")
    return ",".join(options)


def named(words: Iterable[str]) -> set[str]:
    """The buckets whose mounted paths occur in words."""
    return {found for word in words for found in re.findall(rf"(?<![\w/]){MOUNT}/({NAME})(?=[/,;]|$)", word)}
