"""The command `fastvggt`: one file of this folder per command, which has a function of the command's name.

typer, because it comes with what everybody knows: rich help, shell completion, and tests through click's
runner. JAX and the models are imported inside the commands, so that --help is quick.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from fastvggt_jax import __version__
from fastvggt_jax.cli.errors import StandardOutput, StandardOutputError

COMMANDS = (
    "reconstruct",
    "batch",
    "export",
    "report",
    "view",
    "analyze",
    "track",
    "info",
    "evaluate",
    "data",
    "train",
    "convert",
    "bench",
)

app = typer.Typer(
    name="fastvggt",
    help="VGGT, π³ and Pi3X in JAX: photographs of a scene to cameras, depth and a point cloud.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastvggt {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    # XLA's own log lines, a page of them when memory runs out.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


for _name in COMMANDS:
    app.command(_name, no_args_is_help=True)(getattr(import_module(f"fastvggt_jax.cli.{_name}"), _name))


def main() -> None:
    """The entry point of the installed command and of `python -m fastvggt_jax`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # no None, which a closed one is, and no test's
        raw, encoding = StandardOutput(sys.stdout.fileno(), "w", closefd=False), sys.stdout.encoding
        lines = sys.stdout.line_buffering
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=lines)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal's encoding has a π³
            stream.reconfigure(errors="replace")
    try:
        try:
            app(prog_name="fastvggt")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except StandardOutputError as error:
        _discard_stdout()
        if error.errno != errno.EPIPE:  # else whoever reads has read enough
            print(f"error standard output could not be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None


def _discard_stdout() -> None:
    """What is still to be written would raise once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
