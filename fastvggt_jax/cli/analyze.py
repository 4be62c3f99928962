"""`fastvggt analyze`: what global attention attends to, and what it costs, as figures and numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvggt_jax.cli.errors import one_sentence
from fastvggt_jax.cli.options import (
    WEIGHTS_HELP,
    Block,
    CacheDir,
    Dtype,
    Overwrite,
    Quiet,
    Size,
    SparsityText,
    check_sparse,
    made_by,
    take_gpu_memory,
    use_compilation_cache,
)
from fastvggt_jax.errors import InputError, printable

OURS = ("analysis.json", "analysis.npz")


@one_sentence(smaller="take fewer photographs, or a smaller --size")
def analyze(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    photos: Annotated[
        list[str] | None, typer.Argument(help="A folder, image files, a video: what reconstruct takes.")
    ] = None,
    weights: Annotated[str | None, typer.Option("-c", "--weights", help=WEIGHTS_HELP)] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Bundled views and the bundled model.")] = False,
    size: Size = None,
    layers: Annotated[
        str | None, typer.Option(help="Global layers to look at, such as 0-9,18-23. Default: all.")
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="FRAME,X,Y",
            help="Show what the patch at this pixel of the model's image attends to. Default: the middle of "
            "the first.",
        ),
    ] = None,
    sparsity: SparsityText = "dense",
    block: Block = None,
    drop: Annotated[
        bool,
        typer.Option(
            "--drop",
            help="Also how cameras and depth change without the attention of some layers: a run for each.",
        ),
    ] = False,
    views: Annotated[
        str | None,
        typer.Option(help="Also the share of time that each part takes of so many views, such as 2,4,8."),
    ] = None,
    dtype: Dtype = "auto",
    cache_dir: CacheDir = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Attention maps, special and patch tokens apart, the strongest matches of a patch, and kept blocks."""
    import numpy as np

    from fastvggt_jax.analyze.attention import check_views, observe, runtime_shares
    from fastvggt_jax.analyze.dropped import without_layers
    from fastvggt_jax.analyze.figures import FIGURES, write_figures
    from fastvggt_jax.cli.reconstruct import _inputs
    from fastvggt_jax.evaluate.plot import require_matplotlib
    from fastvggt_jax.io.files import check_output_folder, output_folder, write_file
    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import from_pretrained, read_model, recommended_block
    from fastvggt_jax.profile import name_kernels
    from fastvggt_jax.sources import load_images
    from fastvggt_jax.sparsity import parse_block, parse_layers, parse_sparsity

    check_sparse([sparsity], block=block)
    chosen, weights = _inputs(photos, weights, demo)
    require_matplotlib()
    ours = (*OURS, *FIGURES)
    check_output_folder(output, overwrite=overwrite, ours=ours)
    sparse = parse_sparsity(sparsity, parse_block(block) if block else recommended_block(weights))
    wanted = None if layers is None else parse_layers(layers)
    counts = () if views is None else tuple(sorted(set(_numbers(views, "views", "numbers such as 2,4,8"))))
    take_gpu_memory()
    if counts:
        name_kernels()
    use_compilation_cache(cache_dir)
    heads = read_model(weights).heads_for(None)
    how: dict[str, Any] = dict(dtype=compute_dtype(dtype), param_dtype="compute")
    model, params = from_pretrained(weights, heads=heads, **how)
    images = load_images(chosen, model.image_policy, size=size)
    pixels = images.pixels[None]
    check_views(counts, len(images.names))
    place = _patch(patch, pixels.shape[1:4], model.image_policy.patch)
    observed = observe(model, params, pixels, patch=place, layers=wanted, sparsity=sparse)
    changes = without_layers(model, params, pixels) if drop else []
    runtime = runtime_shares(model, params, pixels, counts)
    report: dict[str, Any] = {
        "format": "fastvggt_jax analysis",
        "format_version": 1,
        **made_by(),
        "photographs": list(images.names),
        "layers": list(observed.layers),
        "pairs": observed.pairs(),
        "patch": dict(zip(("frame", "row", "column"), place, strict=True)),
        "matches": observed.matches(place[0]),
        "sparsity": None if sparse is None else dataclasses.asdict(sparse),
        "dropped": [dataclasses.asdict(change) for change in changes],
        "runtime": runtime,
    }
    groups = observed.groups
    arrays: dict[str, Any] = {name: getattr(observed, name) for name in ("mean", "maximum", "row")}
    arrays |= {"group_of_token": groups.of, "grid": groups.grid, "cells": groups.cells}
    arrays |= {} if observed.kept is None else {"kept": observed.kept}
    with output_folder(output, overwrite=overwrite, ours=ours) as folder:
        names = write_figures(observed, images.pixels, place, changes, runtime, folder)
        write_file(folder / "analysis.json", json.dumps(report, indent=1).encode())
        with open(folder / "analysis.npz", "wb") as file:
            np.savez(file, **arrays)
    if not quiet:
        typer.echo(f"{printable(str(output))}: {', '.join([*OURS, *names])}")


def _numbers(text: str, argument: str, form: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 7 for part in parts):
        raise InputError(f"{argument} must be {form}, not {text!r}", argument=argument)
    return tuple(map(int, parts))


def _patch(text: str | None, size: tuple[int, int, int], side: int) -> tuple[int, int, int]:
    """(frame, row, column) of the patch that holds a pixel."""
    frames, height, width = size
    form = "FRAME,X,Y such as 0,100,80"
    numbers = (0, width // 2, height // 2) if text is None else _numbers(text, "patch", form)
    if len(numbers) != 3:
        raise InputError(f"patch must be {form}, not {text!r}", argument="patch")
    frame, x, y = numbers
    if frame >= frames or x >= width or y >= height:
        there = f"there are {frames} photographs of {width}x{height} pixels, counted from 0"
        raise InputError(f"patch {text} is not there: {there}", argument="patch")
    return frame, y // side, x // side
