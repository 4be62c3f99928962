"""What a person can cause: `Error` is what to catch, and what a command turns into one sentence.

Anything else that is raised is a bug of ours and keeps its traceback. Where a built-in class says the same,
ours is a kind of it too, so that `except ValueError` and `except FileNotFoundError` still do what they say.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from numbers import Integral
from typing import Any


class Error(Exception):
    """The text is one sentence that names the file or argument, what is wrong with it, and what would be
    right.

    Attributes:
      argument: the name of the library's argument at fault, by which a command finds the option to name
        instead.
      exit_code: of a command that ends with this error: 2 for wrong input, 1 for what failed though the input
        was right.
    """

    exit_code = 2

    def __init__(self, text: str, *, argument: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.argument = argument

    def __str__(self) -> str:
        return self.text


class InputError(Error, ValueError):
    """An argument, or the contents of a file, is not what it has to be."""


class ImageError(InputError):
    """A photograph that cannot be used; the text names it."""


class SceneError(InputError):
    """A scene of a data set that cannot be measured: an evaluation goes on without it, and says so.

    Attributes:
      scene: what reports call it.
    """

    def __init__(self, text: str, *, scene: str) -> None:
        super().__init__(text)
        self.scene = scene


class WeightsError(InputError):
    """A weight file that is damaged, of another kind, or that does not fit the model."""


class MissingError(Error, FileNotFoundError):
    """A file, a folder or a repository that is not there."""


class ExtraError(Error, ModuleNotFoundError):
    """An optional package is not installed; the text names the extra that brings it."""


class FileError(Error, OSError):
    """The system refused to read or to write: a permission, a full disk.

    `errno` is the system's, where it gave one.
    """

    exit_code = 1

    def __init__(self, text: str, *, cause: OSError | None = None, argument: str | None = None) -> None:
        super().__init__(text, argument=argument)
        if cause is not None:
            self.errno, self.strerror, self.filename = cause.errno, cause.strerror, cause.filename

    def __reduce__(self) -> tuple[Any, ...]:  # OSError's own forgets what was set
        system = {name: getattr(self, name) for name in ("errno", "strerror", "filename")}
        return type(self), (self.text,), self.__dict__ | system


class TargetError(Error, OSError):
    """What is to be written to cannot be: it is there already, is something else, or may not be written."""


class FailedError(Error, RuntimeError):
    """Memory, space, the network or a finite number was missing, though all input was right."""

    exit_code = 1


class OutOfMemoryError(FailedError):
    """Something does not fit the device, or the host; the text says how much it needs and what to lower."""


def whole_number(argument: str, value: Any, least: int | None = None) -> int:
    """`value` as an int. Raises InputError, naming the argument, for anything else, True and False too."""
    if isinstance(value, Integral) and not isinstance(value, bool) and (least is None or int(value) >= least):
        return int(value)
    limit = "" if least is None else f", at least {least}"
    raise InputError(f"{argument} must be a whole number{limit}, not {value!r}", argument=argument)


def printable(text: str) -> str:
    """The text with escapes in the place of control characters, also of those that turn its direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is raised for want of memory. JAX's error is known by its name, so that JAX need not be
    imported.
    """
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def memory_errors(smaller: str) -> Iterator[None]:
    """Turns running out of memory within the block into an OutOfMemoryError that says to do `smaller`."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory: {smaller}") from error


def is_full(error: BaseException) -> bool:
    """Whether the disk is full, or the user's share of it."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or "No space left on device" in str(error)
