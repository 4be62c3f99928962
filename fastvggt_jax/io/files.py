"""Writing that leaves nothing half-written: under a temporary name beside the target, then renamed onto it."""

import contextlib
import fnmatch
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path


def temporary_sibling(path: Path) -> Path:
    """A name that does not exist yet, in the folder of `path`, so that a rename never crosses file systems."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_file(path: str | os.PathLike, *parts: bytes | memoryview) -> None:
    """Write the parts one after another to `path`, making its folder.

    Raises OSError, with the file unchanged, if that cannot be done (its errno says why: ENOSPC for a full
    disk). Everything that is written goes through plain `write`, because numpy's tofile and Pillow's encoders
    lose the errno.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# what the first entry of `ours` holds near its start: a file of that name alone proves nothing
OUR_NAME = b"fastvggt_jax"


def check_output_folder(
    path: str | os.PathLike, *, overwrite: bool = False, ours: Sequence[str] = ()
) -> None:
    """Raises OSError, in one sentence, if `path` may not be written by output_folder, which see."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"the output {path} is a file; give a folder")
    if os.path.ismount(path):
        raise FileExistsError(
            f"the output folder {path} is a mount point, which has no rename; give a folder in it"
        )
    present = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if present and not overwrite:
        raise FileExistsError(
            f"the output folder {path} is not empty; give another one, or --overwrite to replace it"
        )
    foreign = _foreign(path, ours) if present else []
    if foreign:
        raise FileExistsError(
            f"the output folder {path} holds what was not written here ({foreign[0]}), so --overwrite does not touch it"
        )
    parent = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"the output folder {path} cannot be made: no permission to write in {parent}")


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
    Raises as check_output_folder.
    """
    # The folder itself, not a link to it; and "." has no name of its own to put the temporary folder beside.
    path = Path(os.path.realpath(path))
    check_output_folder(path, overwrite=overwrite, ours=ours)
    new, old = temporary_sibling(path), temporary_sibling(path)
    try:
        new.mkdir(parents=True)
    except OSError as error:  # the temporary name would tell the user nothing
        raise OSError(error.errno, error.strerror, str(path)) from error
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
    finally:
        shutil.rmtree(new, ignore_errors=True)
