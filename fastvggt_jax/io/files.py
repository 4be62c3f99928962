"""Writing that leaves nothing half-written: beside the target under another name, then renamed onto it."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fastvggt_jax.errors import Error, FileError, InputError, MissingError, TargetError, is_full

_TEMPORARY = r"\.[0-9a-f]{8}\.tmp"  # how the names end that `temporary_sibling` gives


def temporary_sibling(path: Path) -> Path:
    """A name that does not exist yet, in the folder of `path`: a rename never crosses file systems then."""
    return path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.tmp")


def _short(name: str) -> str:
    """The name, or as much of it as leaves room for what is put around it: names end at 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:200])


def remove_temporaries(folder: Path) -> None:
    """Those of files in it, and in its folders, that a process which was killed has left."""
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(rf"\..+{_TEMPORARY}", path.name):
            path.unlink()


def leftovers(path: str | os.PathLike) -> list[Path]:
    """What runs that were killed while they wrote `path` have left beside it."""
    path = Path(os.path.abspath(path))
    pattern = re.compile(rf"\.{re.escape(_short(path.name))}{_TEMPORARY}")
    try:
        found = sorted(entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name))
    except OSError:
        return []
    return [entry for entry in found if not _is_being_written(entry)]


def warn_of_leftovers(path: str | os.PathLike) -> None:
    """Names them, for the user to delete."""
    if found := leftovers(path):
        names = ", ".join(map(str, found))
        text = f"a run that was killed while it wrote {path} has left {names}"
        text += ": delete it, once you need nothing of it"
        warnings.warn(text, stacklevel=3)


@contextlib.contextmanager
def being_written(path: Path) -> Iterator[bool]:
    """Holds a lock on a file or folder, by which others see that its writer is alive. Gives False if another
    one holds it.
    """
    with contextlib.ExitStack() as stack:
        mine = True
        # Not every system or file system has such locks.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
        yield mine


def _is_being_written(path: Path) -> bool:
    with being_written(path) as mine:
        return not mine


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
    """Nobody else's, for the time of the block: where the system has such locks, another process that asks
    for the same folder gets a TargetError.
    """
    with being_written(Path(folder)) as mine:
        if not mine:
            text = f"another program is writing the folder {folder}; give another one, or wait for it"
            raise TargetError(text)
        yield


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path`, whose folder is made, when the block ends well.

    Raises FileError, with `path` unchanged, if that cannot be done, TargetError for a pipe or a device, which
    a rename would take away from all who use it. What is written should go through plain `write`: numpy's
    tofile and Pillow's encoders lose the reason.
    """
    path = Path(path)
    check_no_device(path)
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file, being_written(temporary):
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path} could not be written: {reason(error)}", cause=error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_no_device(path: str | os.PathLike, argument: str | None = None) -> None:
    """Raises TargetError for a pipe or a device, which is there and is neither a file nor a folder."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        text = f"{path} is no regular file, but a pipe or a device; give a file"
        raise TargetError(text, argument=argument)


def write_file(path: str | os.PathLike, *parts: bytes | memoryview) -> None:
    """Write the parts one after another to `path`, whole or not at all. Raises as `new_file`."""
    with new_file(path) as file:
        for part in parts:
            file.write(part)


def regular_file(path: str | os.PathLike, argument: str | None = None) -> Path:
    """The path, if it is a file that can be read to its end. Raises MissingError if nothing is there,
    InputError for a folder, a pipe or a device.
    """
    path = Path(path)
    if os.path.isfile(path):  # False too for a name that is too long
        return path
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give a file", argument=argument)
    if os.path.exists(path):
        raise InputError(f"{path} is no regular file, but a pipe or a device; give a file", argument=argument)
    raise MissingError(f"{path}: no such file", argument=argument)


def reason(error: OSError) -> str:
    """The system's words for what it refused, about space in ours."""
    return "no space is left on its disk" if is_full(error) else error.strerror or str(error)


INNER = 512  # bytes that are kept free for paths in an output folder
# what the first entry of `ours` holds near its start: a file of that name alone proves nothing
OUR_NAME = b"fastvggt_jax"


def check_output_folder(
    path: str | os.PathLike, *, overwrite: bool = False, ours: Sequence[str] = ()
) -> None:
    """Raises TargetError if `path` may not be written by output_folder, which see, FileError if the system
    does not let it be looked at. Warns of what killed runs have left.
    """
    if not os.fspath(path):
        raise TargetError("the output has no name; give a folder", argument="output")
    path = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)  # what the next line would not tell from nothing: links that lead in a circle
        if path.exists() and not path.is_dir():
            raise TargetError(f"the output {path} is a file; give a folder", argument="output")
        wrong, argument = _what_is_wrong(path, overwrite, ours)
        if wrong:
            raise TargetError(f"the output folder {path} {wrong}", argument=argument)
    except TargetError:
        raise
    except OSError as error:
        text = f"the output folder {path} cannot be used: {reason(error)}"
        raise FileError(text, cause=error, argument="output") from error
    warn_of_leftovers(path)


def check_name(path: str | os.PathLike, argument: str) -> None:
    """Raises TargetError where the system has no such long names or paths."""
    if wrong := _too_long(Path(path), 0):
        raise TargetError(f"{path} {wrong}", argument=argument)


def _too_long(path: Path, inner: int) -> str | None:
    """A clause, or None. inner: bytes of the longest path in it."""
    parent = _nearest(path)
    longest, whole = (
        (os.pathconf(parent, limit) for limit in ("PC_NAME_MAX", "PC_PATH_MAX"))
        if hasattr(os, "pathconf")
        else (255, 4096)
    )
    if too_long := [name for name in path.parts if len(os.fsencode(name)) > longest]:
        return f"cannot be made: a name of it, {too_long[0][:20]}..., is longer than {longest} bytes"
    if len(os.fsencode(os.path.abspath(path))) + inner > whole:
        return f"cannot be made: a path may have {whole} bytes, of which {inner} are for what is in it"
    return None


def check_space(path: str | os.PathLike, least_bytes: int) -> None:
    """Raises FileError if the disk on which `path` will lie has less than that left."""
    try:
        free = shutil.disk_usage(_nearest(Path(path))).free
    except OSError:  # then writing will tell
        return
    if free < least_bytes:
        text = f"the disk of {path} has {free / 1e9:.2f} GB left, and {least_bytes / 1e9:.2f} GB are needed"
        raise FileError(text, argument="output")


def _nearest(path: Path) -> Path:
    """The innermost folder that `path` will lie in and that is there."""
    return next(folder for folder in Path(os.path.abspath(path)).parents if os.path.lexists(folder))


def _what_is_wrong(path: Path, overwrite: bool, ours: Sequence[str]) -> tuple[str | None, str]:
    """A clause, or None; and the argument that it is about."""
    if os.path.ismount(path):
        return "is a mount point, which has no rename; give a folder in it", "output"
    if path.exists() and Path.cwd().is_relative_to(os.path.realpath(path)):
        return "is the current folder, or holds it, so it cannot be replaced; give a folder in it", "output"
    present = path.exists() and any(path.iterdir())
    if present and not overwrite:
        return "is not empty; give another one, or overwrite to replace it", "overwrite"
    foreign = _foreign(path, ours) if present else []
    if foreign:
        return f"holds what was not written here ({foreign[0]}), so overwrite does not touch it", "overwrite"
    parent = _nearest(path)
    if not parent.is_dir():
        return f"cannot be made: {parent} is a file", "output"
    if not os.access(parent, os.W_OK):
        return f"cannot be made: no permission to write in {parent}", "output"
    if wrong := _too_long(path, INNER):
        return wrong, "output"
    return None, "output"


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
    return [name for name in names if not any(_matches(name, pattern) for pattern in ours)]


def _matches(name: str, pattern: str) -> bool:
    """Folder by folder: a * stands for no /."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


@contextlib.contextmanager
def output_folder(
    path: str | os.PathLike, *, overwrite: bool = False, ours: Sequence[str] = ()
) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    An old folder at `path` must be empty, or with `overwrite` hold only files that match the patterns `ours`,
    of which the first names a file that bears our name. It changes places with the new one in one step where
    the system can do that (Linux, macOS), and is removed then. Whether it may be replaced is looked at again
    just before and after: if something has come into it meanwhile, it stays, and the new folder is kept
    beside it under a name that the TargetError tells.
    Raises as check_output_folder, and FileError.
    """
    check_output_folder(path, overwrite=overwrite, ours=ours)
    # The folder itself, not a link to it.
    path = Path(os.path.realpath(path))
    temporary = temporary_sibling(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:  # the temporary name would tell the user nothing
            raise FileError(
                f"the output folder {path} cannot be made: {reason(error)}", cause=error
            ) from error
        with being_written(temporary):
            yield temporary
            with _signals_wait():
                _put_in_place(temporary, path, overwrite, ours)
    except OSError as error:
        # Of a file in it, or of the renames; the temporary name would tell the user nothing.
        if isinstance(error, Error) and str(temporary) not in str(error):
            raise
        text = f"the output folder {path} could not be written: {reason(error)}; nothing was left behind"
        raise FileError(text, cause=error) from error
    finally:
        with _signals_wait():
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in made:  # where nothing has come into them
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _put_in_place(new: Path, path: Path, overwrite: bool, ours: Sequence[str]) -> None:
    """Renames `new` to `path`; what was there before is `new` then, to be removed."""
    wrong = "is a file now" if path.exists() and not path.is_dir() else None
    wrong = wrong or _what_is_wrong(path, overwrite, ours)[0]
    if not wrong and (not path.exists() or not any(path.iterdir())):
        try:
            os.rename(new, path)  # replaces an empty folder, and no other
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            wrong = "has been filled meanwhile"
    if not wrong:
        _exchange(new, path)
        if not (foreign := _foreign(new, ours)):
            return
        _exchange(new, path)
        wrong = f"holds what was not written here ({foreign[0]})"
    kept = path.with_name(f"{_short(path.name)}.{secrets.token_hex(4)}")
    os.rename(new, kept)
    raise TargetError(f"the output folder {path} {wrong}; the new result is in {kept}", argument="overwrite")


def _exchange(a: Path, b: Path) -> None:
    """Two folders change names, in one step where the system has one."""
    if _exchanged(a, b):
        return
    aside = temporary_sibling(b)
    os.rename(b, aside)
    try:
        os.rename(a, b)
    except BaseException:
        os.rename(aside, b)
        raise
    os.rename(aside, a)


def _exchanged(a: Path, b: Path) -> bool:
    """Whether the system has a call for it, and has done it."""
    import ctypes

    names = os.fsencode(a), os.fsencode(b)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD
            failed = library.renameat2(here, names[0], here, names[1], 2)  # RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):
        return False
    if failed and (number := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(b))
    return not failed


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that would end the program arrive after the block."""
    numbers: list[int] = [
        signal.SIGINT,
        signal.SIGTERM,
        *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
    ]
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def check_not_in(output: str | os.PathLike, paths: Iterable[str | os.PathLike | None]) -> None:
    """Raises TargetError if one of these, which are read, would be replaced with the output folder."""
    if not os.path.isdir(output):
        return
    for path in (path for path in paths if path):
        # A link in it counts as well as what lies there.
        given = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(output))
        if given or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output)):
            text = f"{path} lies in the output folder {output}, which is replaced; give another output"
            raise TargetError(text, argument="output")
