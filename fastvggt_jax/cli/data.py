"""`fastvggt data`: data sets made ready for `fastvggt evaluate`, and which there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fastvggt_jax.cli.errors import one_sentence
from fastvggt_jax.cli.options import Quiet
from fastvggt_jax.errors import FailedError, InputError, printable

# What is to be made ready, as released files are not read as they are: a function of root, output, say.
PREPARATIONS = {
    "eth3d": "fastvggt_jax.datasets.eth3d_prepare:prepare",
    "co3dv2": "fastvggt_jax.datasets.co3dv2_prepare:prepare",
}


@one_sentence()
def data(
    action: Annotated[
        Literal["prepare", "list"],
        typer.Argument(help="prepare: make one ready. list: name all that are read."),
    ],
    dataset: Annotated[str | None, typer.Argument(help="The data set to prepare, such as eth3d.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the files as they are released.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for what `evaluate --root` reads.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Data sets for `fastvggt evaluate`. Interrupted, the same command goes on where one was ended."""
    from importlib import import_module

    from fastvggt_jax.datasets.base import names

    if action == "list":
        for name in names():
            typer.echo(name)
        return
    if dataset not in PREPARATIONS:
        text = (
            f"dataset must be one of {', '.join(PREPARATIONS)}, not {dataset!r}: others are read as they are"
        )
        raise InputError(text, argument="dataset")
    if root is None or output is None:
        raise InputError(
            "--root, the released files, and -o, a folder for what is made of them, must be given"
        )
    module, _, function = PREPARATIONS[dataset].partition(":")
    say = (lambda text: None) if quiet else typer.echo
    failed = getattr(import_module(module), function)(root, output, say)
    if failed:
        reasons = "; ".join(f"{scene}: {why}" for scene, why in failed)
        raise FailedError(f"{len(failed)} scenes of {dataset} could not be prepared: {printable(reasons)}")
