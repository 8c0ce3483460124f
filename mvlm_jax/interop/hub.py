"""Reads names on the Hugging Face Hub through its local cache, and uploads a folder.

A name is written `hf:owner/name[/folder][@revision]`. The library is an extra; it finds its own cache, login and
endpoint: `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

import contextlib
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mvlm_jax.errors import UserError
from mvlm_jax.files import HUB
from mvlm_jax.stores import mirror
from mvlm_jax.stores.objects import StoreError

GRAMMAR = f"{HUB}owner/name[/folder][@revision]"
# Never a pickle: it could run code. Small files are the configs, the tokenizer, and what a task exports beside them.
SMALL = ("*.json", "vocab.txt")
WEIGHTS = ("model.safetensors", "model-*.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LOG_IN = "run hf auth login, or set HF_TOKEN"
_NAME = re.compile(rf"{HUB}([\w.-]+(?:/[\w.-]+)?)((?:/[\w.-]+)*)(?:@([\w./-]+))?", re.ASCII)


class Name(NamedTuple):
    text: str  # as the user wrote it
    repository: str
    inside: str  # path of a folder or a file in it; empty: its root
    revision: str | None  # branch, tag or commit; None: the default branch


def is_name(source: str | Path) -> bool:
    return str(source).startswith(HUB)


def meant(path: str | Path) -> str:
    """The end of an error about a path where nothing is: how it is written as a name, if it may be meant as one."""
    names_a_file = Path(path).suffix in (".safetensors", *PICKLES)
    if names_a_file or re.fullmatch(r"\w[\w-]*/\w[\w.-]*", str(path), re.ASCII) is None:
        return ""
    return f"; a repository on the Hugging Face Hub is written {HUB}{path}"


def parse(text: str, *, name: str = "") -> Name:
    """
    Args:
      name: of the field that gives it; for the error.

    Raises:
      UserError: not of the form of a name.
    """
    match = _NAME.fullmatch(text)
    if match is None or any(part in (".", "..") for part in re.split("[/@:]", text)):
        given = f"{name}={text}" if name else text
        raise UserError(f"{given} is no name on the Hugging Face Hub; it is written {GRAMMAR}")
    return Name(text, match[1], match[2].lstrip("/"), match[3])


def local_path(source: str | Path, *, weights: bool = True) -> Path:
    """As `user_path`; for an address in a store the copy of its folder, or of its file, on this machine; for a name on
    the Hub its folder, or its file, in the cache, fetched where it is not there.

    Within a process a name always stands for the same commit. Where the Hub cannot be reached it is the cached one.

    Args:
      weights: whether the weights are needed too, or only the small files.

    Raises:
      UserError: as `user_path`; a store that cannot be read; no such repository, revision or folder; no access to
        it; no weights that are not a pickle; no network and not in the cache; or the library is not installed.
    """
    if is_name(source):
        return _fetch(parse(str(source)), weights=weights)
    try:
        return mirror.fetched(source)
    except StoreError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error


def commit_of(source: str | Path) -> str:
    """The commit that a name on the Hub stands for; empty for a local path."""
    return _commit(parse(str(source))) if is_name(source) else ""


def _fetch(name: Name, *, weights: bool) -> Path:
    if name.inside.endswith(PICKLES):
        raise UserError(f"{name.text} is a pickle, which is not fetched from the Hub; name a .safetensors file")
    if name.inside.endswith(".safetensors"):
        folder, _, file = name.inside.rpartition("/")
        path = _snapshot(name, folder, (file,)) / file
        if not path.is_file():
            raise UserError(f"{name.text}: there is no such file in the repository")
        return path
    path = _snapshot(name, name.inside, (*SMALL, *WEIGHTS) if weights else SMALL)
    if weights and not any(path.glob("*.safetensors")):
        _snapshot(name, name.inside, (_only_weights(name),))
    return path


@functools.cache
def _commit(name: Name) -> str:
    # The folder of a snapshot is named after its commit. A small file is enough to learn it, online or from the cache.
    return _download(name, ["config.json"], revision=name.revision).name


@functools.cache
def _snapshot(name: Name, folder: str, patterns: tuple[str, ...]) -> Path:
    """A folder of the repository in the cache, with those files of it that match."""
    start = f"{folder}/" if folder else ""
    # A * matches a / too, so that the folders in the folder have to be left out.
    inner = [f"{start}*/*"]
    return _download(name, [start + each for each in patterns], but=inner, revision=_commit(name)) / folder


def _download(name: Name, patterns: list[str], *, revision: str | None, but: list[str] | None = None) -> Path:
    library = _library(name)
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """Shown on a terminal only."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **({"disable": None} | kwargs))

    with _one_line(name):
        return Path(
            library.snapshot_download(
                name.repository,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=but,
                tqdm_class=Bar,
            )
        )


def _only_weights(name: Name) -> str:
    """The one file of weights, where it has another name than usual."""
    library = _library(name)
    with _one_line(name):
        files = library.HfApi().list_repo_files(name.repository, revision=_commit(name))
    start = f"{name.inside}/" if name.inside else ""
    held = [file.removeprefix(start) for file in files if file.startswith(start)]
    if not held:
        raise UserError(f"{name.text}: there is no folder {name.inside} in the repository")
    top = sorted(file for file in held if "/" not in file)
    found = [file for file in top if file.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{name.text} holds {len(found)} weight files ({', '.join(found[:5])}); name one of them behind a /"
        )
    if pickles := [file for file in top if file.endswith(PICKLES)]:
        raise UserError(
            f"{name.text} has no .safetensors, only {', '.join(pickles[:3])}; a pickle is not fetched from the Hub: "
            "give the path of one that you have fetched and trust, or another revision"
        )
    folders = sorted({str(Path(file).parent) for file in held if file.endswith(".safetensors")})
    hint = f"; its folders {', '.join(folders[:3])} have some" if folders else ""
    raise UserError(f"{name.text} has no .safetensors{hint}")


def check_push(text: str) -> Name:
    """Before the work whose result is pushed.

    Raises:
      UserError: no name of a repository, no login, no network allowed, or the library is not installed.
    """
    if not is_name(text):
        raise UserError(f"--push={text} is no name on the Hugging Face Hub; it is written {HUB}owner/name[@branch]")
    name = parse(text)
    if name.inside:
        raise UserError(f"--push={text} is a folder of a repository; give the repository, {HUB}{name.repository}")
    library = _library(name)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push={text} needs the network, and HF_HUB_OFFLINE is set")
    if library.get_token() is None:
        raise UserError(f"--push={text} needs a login at {constants.ENDPOINT}: {LOG_IN}")
    return name


def push(folder: Path, name: Name, *, message: str) -> str:
    """Uploads a folder as one commit and returns its address. A repository that is not there is made, and is private.

    Files that only the repository has are left alone.

    Raises:
      UserError: the login may not write there, or the upload fails.
    """
    library = _library(name)
    from huggingface_hub import constants

    try:
        with _quiet():
            api = library.HfApi()
            repository = api.create_repo(name.repository, private=True, exist_ok=True).repo_id
            if name.revision:
                api.create_branch(repository, branch=name.revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, revision=name.revision, commit_message=message
            )
    # What the transport raises depends on the version of the library.
    except Exception as error:
        branch = f" --revision {shlex.quote(name.revision)}" if name.revision else ""
        raise UserError(
            f"{name.text} cannot be pushed to {constants.ENDPOINT}: {_reason(error)}; {folder} is written, and "
            f"hf upload --private {name.repository} {shlex.quote(str(folder))}{branch} tries again"
        ) from error
    return commit.commit_url


def _library(name: Name) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name.text} needs huggingface_hub, the extra [hub]; pip install huggingface_hub") from error
    return huggingface_hub


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, which say less than what it raises."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    if verbosity == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _one_line(name: Name) -> Iterator[None]:
    """What the library raises where it fetches, as a `UserError`."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    try:
        with _quiet():
            yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name.text} is gated: accept its terms at {hub}/{name.repository} and log in: {LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name.text}: {hub} has no repository {name.repository}, or shows it only to those who may read it; "
            f"check the name, or log in: {LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name.text}: {name.repository} has no revision {name.revision or 'main'}") from error
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set; unset it once, so that it can be fetched"
        else:
            reason = f"{hub} cannot be reached ({_reason(error.__cause__ or error)}); try again later"
        raise UserError(f"{name.text} is not whole in the cache {cache}, and {reason}") from error
    # What else the transport raises depends on the version of the library.
    except Exception as error:
        raise UserError(f"{name.text} cannot be fetched from {hub}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(error).split())[:200]
    return f"it answered {status}" if status else f"{type(error).__name__}: {text}" if text else type(error).__name__
