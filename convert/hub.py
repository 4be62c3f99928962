"""Checkpoints on the Hugging Face hub: which file to take, and the licence that holds for it."""

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from convert.sources import SUFFIXES, require_torch
from convert.table import published
from fastvggt_jax.errors import ExtraError, FailedError, FileError, MissingError
from fastvggt_jax.io.weights import UNKNOWN as UNKNOWN_LICENCE

T = TypeVar("T")
PAUSES = (1, 2)  # seconds, between tries to connect to the hub
UNCONNECTED = ("ConnectError", "ConnectTimeout", "ConnectionError")  # of httpx, and of requests


def is_repository(name: str) -> bool:
    """Whether `name`, which is no file here, has the form of a repository's name: OWNER/NAME, no weight-file
    suffix, and not that of a path, ../NAME.
    """
    form = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)
    return bool(form) and not name.endswith(SUFFIXES) and not os.path.exists(name)


def commit_of(path: Path) -> str:
    """The commit of a file that `fetch` has given: huggingface_hub keeps it under snapshots/COMMIT/."""
    parts = path.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


def licence_of(repository: str | None) -> str:
    """The licence of a hub repository's weights; unknown of a local file (None) or another repository."""
    known = published().get(repository or "")
    return known.licence if known else UNKNOWN_LICENCE


def fetch(repository: str, revision: str | None = None) -> Path:
    """Downloads a repository's checkpoint, or finds it in the hub's cache, and returns its path.

    The file is the known one, else model.safetensors, else the only .pt file (model.pt if there are several).
    The endpoint, cache, token and offline mode are huggingface_hub's own (HF_ENDPOINT, HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE). Raises ImportError (extra hub missing), FileNotFoundError (no such repository or file),
    PermissionError (gated), FailedError (hub out of reach).
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        remedy = "downloading it needs the extra hub (pip install 'fastvggt_jax[hub]')"
        text = f"{repository} is no file here; {remedy}"
        raise ExtraError(text) from error
    known = published().get(repository)
    file = known.file if known else "model.safetensors"
    path = _download(repository, file, revision)
    if path is None:
        file = _torch_file(
            repository, _ask(repository, lambda: HfApi().list_repo_files(repository, revision=revision))
        )
        path = _download(repository, file, revision)
    if path is None:  # it vanished in between
        raise MissingError(f"{repository} on the hub has no {file} any more")
    return path


def _download(repository: str, file: str, revision: str | None) -> Path | None:
    """The path of the downloaded or cached file; None if the repository exists but has no such file."""
    from huggingface_hub import errors, hf_hub_download

    if file.endswith(".pt"):
        require_torch(f"{repository}/{file}")  # before gigabytes are fetched in vain

    def downloaded() -> Path:
        _check_connection(repository, file, revision)
        return Path(hf_hub_download(repository, file, revision=revision))

    try:
        return _ask(repository, downloaded)
    except errors.EntryNotFoundError:
        return None


def _check_connection(repository: str, file: str, revision: str | None) -> None:
    """Raises LocalEntryNotFoundError where the file is not in the cache and nobody can be connected to.

    hf_hub_download says so after 23 seconds at the earliest, and after six minutes behind a firewall that
    drops everything. A hub that is connected to and slow, or that refuses, is left to it.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file, revision=revision)
    if constants.HF_HUB_OFFLINE or isinstance(cached, str):
        return
    for pause in (*PAUSES, None):
        try:
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
            return
        except (errors.HTTPError, OSError) as error:
            if type(error).__name__ not in UNCONNECTED:
                return
            if pause is None:
                raise errors.LocalEntryNotFoundError(str(error)) from error
            time.sleep(pause)


def _ask(repository: str, question: Callable[[], T]) -> T:
    """The hub's answer; its many errors become one sentence each, but for EntryNotFoundError, which is an
    answer.
    """
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # it announces every retry; the outcome is one sentence of ours
    try:
        return question()
    except errors.GatedRepoError as error:
        remedy = f"accept its terms at huggingface.co/{repository}, then set HF_TOKEN or log in"
        text = f"{repository} is gated: {remedy}"
        raise FileError(text) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise MissingError(f"{repository} is neither a file here nor a repository on the hub") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        status = _status(error)
        answer = f"answered with HTTP status {status}" if status else "did not answer"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{endpoint} {answer}"
        where = "neither a file here nor in the hub's cache"
        text = f"{repository} is {where}, and {why}: download it or give a file"
        raise FailedError(text) from error
    except (
        errors.EntryNotFoundError
    ):  # must stand below LocalEntryNotFoundError, a subclass with another meaning
        raise
    except (
        errors.HTTPError,
        OSError,
    ) as error:  # HTTPError is that of the client which the hub's version builds on
        reason = str(error).strip().split("\n")[0]
        raise FailedError(f"{repository} could not be downloaded from {endpoint}: {reason}") from error


def _status(error: BaseException | None) -> int | None:
    """What the hub has answered, where huggingface_hub calls it an answer that did not come."""
    while error is not None:
        if status := getattr(getattr(error, "response", None), "status_code", None):
            return status
        error = error.__cause__ or error.__context__
    return None


def _torch_file(repository: str, files: list[str]) -> str:
    candidates = sorted(file for file in files if file.endswith(".pt"))
    if len(candidates) == 1 or "model.pt" in candidates:
        return "model.pt" if "model.pt" in candidates else candidates[0]
    if not candidates:
        raise MissingError(f"{repository} on the hub holds neither model.safetensors nor a .pt file")
    raise MissingError(
        f"{repository} on the hub holds several .pt files ({', '.join(candidates)}): "
        "download one and give its path"
    )
