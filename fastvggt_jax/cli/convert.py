"""`fastvggt convert`: an official PyTorch checkpoint to a native weight file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fastvggt_jax.cli.errors import one_sentence, printable
from fastvggt_jax.cli.options import Quiet


@one_sentence()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A safetensors file, its list of shards, a file of PyTorch, a folder, or a hub repository.",
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The native weight file to write (.safetensors).")
    ],
    model: Annotated[
        str | None, typer.Option(help="The name of the model that IN is; by default recognised by its keys.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Sizes of the model if they are not the released one's."),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help="Of checkpoints that no key tells apart, such as tracker-fixed of VGGT, whose track "
            "features carry a position embedding; auto decides by the name of IN."
        ),
    ] = "auto",
    param_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the written weights.")
    ] = "float32",
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            help="Leave out the keys that this matches as a whole; may be given several times.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of the hub repository: a branch, tag or commit.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Official PyTorch weights to the one native weight file: nothing left over, nothing missing."""
    import jax
    from rich.console import Console
    from rich.progress import Progress

    from convert.conversion import convert as run

    # only shapes are asked of JAX: leave the GPU's memory to others
    jax.config.update("jax_platforms", "cpu")
    with Progress(console=Console(stderr=True), disable=quiet or not Console(stderr=True).is_terminal) as bar:
        task = bar.add_task("write", total=None)
        report = run(
            source,
            target,
            model=model,
            config=config,
            variant=variant,
            dtype=param_dtype,
            ignore=ignore or (),
            overwrite=overwrite,
            revision=revision,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if not quiet:
        for line in report.lines():
            typer.echo(printable(line))
