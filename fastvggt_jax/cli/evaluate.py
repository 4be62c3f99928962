"""`fastvggt evaluate`: how good a model is on a data set whose truth is known, dense and sparse."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fastvggt_jax import __version__
from fastvggt_jax.cli.errors import INTERRUPTED, one_sentence, say
from fastvggt_jax.cli.options import (
    Block,
    CacheDir,
    Dtype,
    Float8Scores,
    Json,
    Overwrite,
    Quiet,
    Size,
    Sparsities,
    Weights,
    check_sparse,
    take_gpu_memory,
    use_compilation_cache,
)
from fastvggt_jax.errors import (
    Error,
    InputError,
    printable,
)

if TYPE_CHECKING:
    from fastvggt_jax.evaluate.ablations import Configuration
    from fastvggt_jax.models.base import Model


@one_sentence(smaller="take fewer --views, a smaller --size or a smaller --batch")
def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A data set, such as synthetic, rendered scenes, or real, photographs with a cameras.json; "
            "a wrong name lists all. all: the paper's tables, of the data sets whose folders lie in --root."
        ),
    ],
    weights: Weights,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for evaluation.json and quality.png.")
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help="How many scenes. Default: the data set's own, 200 of synthetic.")
    ] = None,
    first: Annotated[int | None, typer.Option(help="Number of the first one.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Views of each scene. Default: the data set's own, 8 of synthetic.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Of the photographs of a scene every so manieth.")
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file of {scene: [numbers of its photographs]}, as π³'s evaluation has them."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How it is measured: pi3-2025-08, the default where papers measure on the data set, ours, "
            "or another; a wrong name lists all."
        ),
    ] = None,
    size: Size = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files, where it does not bring them along.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Scenes at a time, at most.")] = 8,
    sparsity: Sparsities = None,
    ablations: Annotated[
        bool,
        typer.Option("--ablations", help="All of the method's ablations and its baseline of random blocks."),
    ] = False,
    family: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the ablations these only, such as 'random blocks'; may be given several times."
        ),
    ] = None,
    block: Block = None,
    float8_scores: Float8Scores = False,
    dtype: Dtype = "auto",
    points_from: Annotated[
        str | None,
        typer.Option(help="VGGT's points: depth, unprojected, or point_head. Default: the model's own."),
    ] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Write gallery.png: the worst, the median and the best scene.")
    ] = False,
    plot: Annotated[
        bool | None,
        typer.Option("--plot/--no-plot", help="Write quality.png. Default: if matplotlib is installed."),
    ] = None,
    overwrite: Overwrite = False,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cameras, depth and points of a data set's scenes, as far as their truth is known.

    Interrupted (Ctrl-C), it reports the scenes up to there. With -o the numbers are written down batch by
    batch, beside that folder: the same command goes on where one was ended, however it was. Where scenes were
    left out, it measures these alone: they may have been mended.
    """
    from fastvggt_jax.datasets.base import Options
    from fastvggt_jax.evaluate.plot import require_matplotlib
    from fastvggt_jax.evaluate.protocols import protocol_named
    from fastvggt_jax.evaluate.suite import ALL, Table, tables_in
    from fastvggt_jax.evaluate.task import OURS, Setup, Task, carry_out, is_open, report_in, seen, task_of
    from fastvggt_jax.io.files import check_output_folder
    from fastvggt_jax.pretrained import recommended_block, weight_file
    from fastvggt_jax.sparsity import parse_block

    blocks = parse_block(block) if block else recommended_block(weights)
    if not (ablations or family):
        check_sparse(sparsity or ["dense"], block=block)
    if protocol is not None:
        protocol_named(protocol)
    given = Options(scenes, first, views, size, root, stride, frames, protocol)
    missing: list[str] = []
    if dataset == ALL:
        given.refuse(ALL, "first", "views", "stride", "frames", "protocol")
        tables, missing = tables_in(root)
        assert root is not None
        tables = [
            table._replace(
                options=dataclasses.replace(
                    table.options, scenes=scenes, size=size, root=root / table.dataset
                )
            )
            for table in tables
        ]
    else:
        tables = [Table(dataset, dataset, given)]
    failed: dict[str, Error] = {}

    @contextlib.contextmanager
    def by_itself(label: str) -> Iterator[None]:
        """One of all data sets that cannot be measured does not end the others."""
        try:
            yield
        except Error as error:
            if dataset != ALL:
                raise
            failed[label] = error
            say("error", f"{label}: {error}")

    tasks: dict[str, Task] = {}
    for table in tables:
        with by_itself(table.label):
            tasks[table.label] = task_of(table, output / table.label if output and dataset == ALL else output)
    if plot or gallery:
        require_matplotlib()
        if output is None:
            what = ("--plot", "quality.png") if plot else ("--gallery", "gallery.png")
            raise InputError(f"{what[0]} needs a folder to write {what[1]} into: give -o")
    plot = importlib.util.find_spec("matplotlib") is not None if plot is None else plot
    if batch < 1:
        raise InputError(f"batch must be at least 1, not {batch}", argument="batch")
    for task in tasks.values():
        if dataset != ALL and output is not None and not is_open(report_in(output) or {}, len(task.data)):
            check_output_folder(output, overwrite=overwrite, ours=OURS)
    by_hand = _by_hand(sparsity, blocks, dense=not (ablations or family))
    take_gpu_memory()
    use_compilation_cache(cache_dir)
    model, params = _load(weights, dtype, points_from)
    model = model.clone(float8_scores=float8_scores)
    setup = Setup(
        model,
        params,
        weights,
        weight_file(weights),
        __version__,
        blocks,
        by_hand,
        ablations,
        family,
        batch,
        points_from,
        plot,
        gallery,
        overwrite,
        partial(_progress, silent=quiet or as_json),
        partial(typer.echo, err=True),
        {},
    )
    reports: dict[str, Any] = {}
    for label, task in tasks.items():
        with by_itself(label):
            found, whole = carry_out(setup, task, goes_on=dataset == ALL)
            reports[label] = found
        if label in failed:
            continue
        if not (quiet or as_json):
            if dataset == ALL:
                typer.echo(f"\n{label}")
            _say(found)
        if not quiet:
            _say_left_out(found)
        if not whole:
            on = "" if output is None else "; the same command goes on"
            counted = f"{seen(found)} of {len(task.data)} scenes"
            typer.echo(f"interrupted: this is of the first {counted}{on}", err=True)
            raise typer.Exit(INTERRUPTED)
    if missing and not quiet:
        typer.echo(f"not in {root}, so not measured: {', '.join(missing)}", err=True)
    if as_json:
        reports |= {label: {"error": error.text} for label, error in failed.items()}
        typer.echo(json.dumps(reports if dataset == ALL else reports[dataset]))
    if failed:
        typer.echo(f"{len(failed)} of {len(tables)} tables could not be made: {', '.join(failed)}", err=True)
        raise typer.Exit(max(error.exit_code for error in failed.values()))


@contextlib.contextmanager
def _progress(total: int, *, silent: bool) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:
        task = progress.add_task("evaluate", total=total)
        yield lambda scenes: progress.advance(task, scenes)


def _say(found: dict[str, Any]) -> None:
    from fastvggt_jax.evaluate.report import baseline_table, comparison, table

    typer.echo(table(found["configurations"], found["published"]))
    if baselines := baseline_table(found["configurations"]):
        typer.echo(baselines)
    for line in comparison(found):
        typer.echo(line)


def _say_left_out(found: dict[str, Any]) -> None:
    from fastvggt_jax.evaluate.report import left_out_lines

    for line in left_out_lines(found["dataset"]):
        typer.echo(printable(line), err=True)


def _by_hand(texts: list[str] | None, block: tuple[int, int], *, dense: bool) -> list[Configuration]:
    """The configurations that --sparsity names; without it dense, where that is wanted."""
    from fastvggt_jax.evaluate.ablations import configuration
    from fastvggt_jax.sparsity import parse_sparsity

    chosen = texts or (["dense"] if dense else [])
    return [configuration(parse_sparsity(text, block)) for text in chosen]


def _load(weights: str, dtype: str, points_from: str | None) -> tuple[Model, Any]:
    """(model, params) with the heads that are measured."""
    import jax

    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import from_pretrained, read_model

    model, params = from_pretrained(weights, heads=read_model(weights).heads_for(points_from))
    if dtype == "float32" and jax.default_backend() == "gpu":
        # And not TF32, whose errors would be measured too.
        jax.config.update("jax_default_matmul_precision", "highest")
    return model.clone(dtype=compute_dtype(dtype)), params
