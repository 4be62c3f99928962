"""`fastvggt report`: one page of a result, to be read and sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fastvggt_jax.cli.errors import one_sentence
from fastvggt_jax.cli.options import Overwrite, Quiet
from fastvggt_jax.errors import TargetError, printable, whole_number

PAGE_START = b"<!doctype html>"


@one_sentence()
def report(
    folder: Annotated[Path, typer.Argument(help="What reconstruct has written, with its scene.npz.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page. Default: report.html in the folder.")
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Known cameras to compare with: a cameras.json, or a COLMAP model's folder."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another result of the same photographs to compare with."),
    ] = None,
    photographs: Annotated[
        int, typer.Option(help="Show so many of the photographs at most, evenly chosen.")
    ] = 60,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """A result as one page of HTML: photographs with depth and confidence, cameras, costs, warnings."""
    from fastvggt_jax.io.scenes import PAGE
    from fastvggt_jax.seeing.report import write_report
    from fastvggt_jax.seeing.result import read_result, truth_of

    whole_number("photographs", photographs, least=1)
    result = read_result(folder)
    path = folder / PAGE if output is None else output
    check_page(path, overwrite)
    other = None if against is None else read_result(against, "against")
    cameras = None if truth is None else truth_of(truth, result.scene)
    write_report(result, path, truth=cameras, against=other, most=photographs)
    if not quiet:
        typer.echo(printable(str(path)))


def check_page(path: Path, overwrite: bool, argument: str = "output") -> None:
    """Raises TargetError for a folder, a device, and a file that may not be replaced or is no page."""
    from fastvggt_jax.io.files import check_no_device

    if os.path.isdir(path):
        raise TargetError(f"{argument} {path} is a folder; give a file", argument=argument)
    check_no_device(path, argument)
    if os.path.lexists(path) and not overwrite:
        text = f"{path} is there already; give another file, or overwrite to replace it"
        raise TargetError(text, argument="overwrite")
    if os.path.isfile(path) and not _is_page(path):
        text = f"{path} is no page of HTML, so overwrite does not touch it; give another file"
        raise TargetError(text, argument="overwrite")


def _is_page(path: Path) -> bool:
    """Whether a file begins as our pages do, or is empty."""
    try:
        with open(path, "rb") as file:
            return file.read(len(PAGE_START)).lower() in (PAGE_START, b"")
    except OSError:  # then writing will tell
        return True
