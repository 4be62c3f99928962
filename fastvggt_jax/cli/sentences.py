"""Errors as a command's user should see them: one sentence on stderr and an exit code. Only a bug has a
traceback.
"""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import typer

from fastvggt_jax.errors import FailedError, out_of_memory

BAD_INPUT, FAILED, INTERRUPTED = (
    2,
    1,
    130,
)  # exit codes; the last as a shell gives a command that Ctrl-C has ended
_OUR_PACKAGES = ("fastvggt_jax", "pallas_kernels", "convert")


@contextlib.contextmanager
def one_sentence(
    output: Path, as_json: bool = False, *, smaller: str = "take less at a time"
) -> Iterator[None]:
    """Ends the command if the block raises what its user can have caused: a wrong argument or file (exit code
    2), a full disk or memory (1). `output` is the path that is written to. With as_json, stdout gets
    {"error": sentence}. `smaller` is what to do if JAX runs out of memory.
    """
    try:
        yield
    except Exception as error:
        explained = _explain(error, output, smaller)
        if explained is None:
            raise
        text, code = explained
        if as_json:
            typer.echo(json.dumps({"error": text}))
        typer.echo(f"{typer.style('error', fg='red', bold=True)} {text}", err=True)
        raise typer.Exit(code) from error


def _explain(error: Exception, output: Path, smaller: str) -> tuple[str, int] | None:
    """(sentence, exit code), or None if the error is our fault."""
    if isinstance(error, FailedError):
        return str(error), FAILED
    if out_of_memory(error):
        return f"out of memory: {smaller}", FAILED
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {output} is full; nothing was left behind: free some space or give another -o",
                FAILED,
            )
        if error.errno is not None:  # the system's own: a permission, a network drive
            return f"{error.filename or output}: {error.strerror}", FAILED
        return str(error), BAD_INPUT
    ours = _raised_in(error).split(".")[0] in _OUR_PACKAGES
    return (str(error), BAD_INPUT) if isinstance(error, ValueError | ModuleNotFoundError) and ours else None


def _raised_in(error: Exception) -> str:
    """The name of the module that has raised it."""
    traceback = error.__traceback__
    while traceback.tb_next:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "")
