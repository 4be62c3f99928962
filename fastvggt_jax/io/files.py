"""Writing that leaves nothing half-written: beside the target under another name, then renamed onto it."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fastvggt_jax.errors import Error, FileError, TargetError, is_full


def temporary_sibling(path: Path) -> Path:
    """A name that does not exist yet, in the folder of `path`: a rename never crosses file systems then."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path`, whose folder is made, when the block ends well.

    Raises FileError, with `path` unchanged, if that cannot be done. What is written should go through plain
    `write`: numpy's tofile and Pillow's encoders lose the reason.
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path} could not be written: {reason(error)}", cause=error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, *parts: bytes | memoryview) -> None:
    """Write the parts one after another to `path`, whole or not at all. Raises as `new_file`."""
    with new_file(path) as file:
        for part in parts:
            file.write(part)


def reason(error: OSError) -> str:
    """The system's words for what it refused, about space in ours."""
    return "no space is left on its disk" if is_full(error) else error.strerror or str(error)


# what the first entry of `ours` holds near its start: a file of that name alone proves nothing
OUR_NAME = b"fastvggt_jax"


def check_output_folder(
    path: str | os.PathLike, *, overwrite: bool = False, ours: Sequence[str] = ()
) -> None:
    """Raises TargetError if `path` may not be written by output_folder, which see, FileError if the system
    does not let it be looked at.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise TargetError(f"the output {path} is a file; give a folder", argument="output")
        wrong = _what_is_wrong(path, overwrite, ours)
    except TargetError:
        raise
    except OSError as error:
        text = f"the output folder {path} cannot be used: {reason(error)}"
        raise FileError(text, cause=error, argument="output") from error
    if wrong:
        raise TargetError(f"the output folder {path} {wrong}", argument="overwrite")


def _what_is_wrong(path: Path, overwrite: bool, ours: Sequence[str]) -> str | None:
    if os.path.ismount(path):
        return "is a mount point, which has no rename; give a folder in it"
    present = path.exists() and any(path.iterdir())
    if present and not overwrite:
        return "is not empty; give another one, or overwrite to replace it"
    foreign = _foreign(path, ours) if present else []
    if foreign:
        return f"holds what was not written here ({foreign[0]}), so overwrite does not touch it"
    parent = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not os.access(parent, os.W_OK):
        return f"cannot be made: no permission to write in {parent}"
    return None


def _foreign(folder: Path, ours: Sequence[str]) -> list[str]:
    """Files and empty folders, as paths within `folder`, that no run of ours has written."""
    mark = folder / ours[0] if ours else None
    if mark is None or not mark.is_file() or OUR_NAME not in mark.read_bytes()[:65536]:
        return [entry.name for entry in sorted(folder.iterdir())]
    found = [
        entry
        for entry in sorted(folder.rglob("*"))
        if not entry.is_dir() or entry.is_symlink() or not any(entry.iterdir())
    ]
    names = [entry.relative_to(folder).as_posix() for entry in found]
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ours)]


@contextlib.contextmanager
def output_folder(
    path: str | os.PathLike, *, overwrite: bool = False, ours: Sequence[str] = ()
) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    An old folder at `path` must be empty, or with `overwrite` hold only files that match the patterns `ours`,
    of which the first names a file that bears our name; it is removed only once the new one is in its place.
    Raises as check_output_folder, and FileError.
    """
    # The folder itself, not a link to it; and "." has no name of its own to put the temporary folder beside.
    path = Path(os.path.realpath(path))
    check_output_folder(path, overwrite=overwrite, ours=ours)
    new, old = temporary_sibling(path), temporary_sibling(path)
    try:
        new.mkdir(parents=True)
    except OSError as error:  # the temporary name would tell the user nothing
        raise FileError(f"the output folder {path} cannot be made: {reason(error)}", cause=error) from error
    try:
        yield new
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        # Of a file in it, or of the renames; the temporary name would tell the user nothing.
        if isinstance(error, Error) and str(new) not in str(error):
            raise
        text = f"the output folder {path} could not be written: {reason(error)}; nothing was left behind"
        raise FileError(text, cause=error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
