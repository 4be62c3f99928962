"""`fastvggt evaluate`: how good a model is on a data set whose truth is known, dense and sparse."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
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
from fastvggt_jax.cli.errors import INTERRUPTED, one_sentence
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
    use_compilation_cache,
)
from fastvggt_jax.errors import InputError, printable

if TYPE_CHECKING:
    from fastvggt_jax.datasets.base import Dataset
    from fastvggt_jax.evaluate.ablations import Configuration
    from fastvggt_jax.evaluate.journal import Journal
    from fastvggt_jax.evaluate.protocols import Rules
    from fastvggt_jax.evaluate.runner import Result
    from fastvggt_jax.models.base import Model

OURS = ("evaluation.json", "quality.png")  # what --overwrite may replace


@one_sentence(smaller="take fewer --views, a smaller --size or a smaller --batch")
def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(help="A data set, such as synthetic, rendered scenes; a wrong name lists all."),
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
    batch, beside that folder: the same command goes on where one was ended, however it was.
    """
    from fastvggt_jax.datasets.base import Options, load_dataset
    from fastvggt_jax.evaluate.journal import Journal
    from fastvggt_jax.evaluate.plot import measured_panels, require_matplotlib, write_plot
    from fastvggt_jax.evaluate.protocols import protocol_named, rules_for
    from fastvggt_jax.evaluate.report import baseline_table, encode, left_out_lines, report, table
    from fastvggt_jax.evaluate.runner import check_size, whole_batch
    from fastvggt_jax.io.files import check_output_folder, output_folder, write_file
    from fastvggt_jax.pretrained import recommended_block
    from fastvggt_jax.sparsity import parse_block

    blocks = parse_block(block) if block else recommended_block(weights)
    if protocol is not None:
        protocol_named(protocol)
    data = load_dataset(dataset, Options(scenes, first, views, size, root, stride, frames, protocol))
    rules = rules_for(data, protocol)
    batch = whole_batch(len(data), batch)
    if plot:
        require_matplotlib()
        if output is None:
            raise InputError("--plot needs a folder to write quality.png into: give -o")
    plot = importlib.util.find_spec("matplotlib") is not None if plot is None else plot
    if output is not None:
        check_output_folder(output, overwrite=overwrite, ours=OURS)
    by_hand = _by_hand(sparsity, blocks, dense=not (ablations or family))
    use_compilation_cache(cache_dir)
    model, params = _load(weights, dtype)
    model = model.clone(float8_scores=float8_scores)
    check_size(data, rules.policy(model.image_policy))
    runs = _ablations(model, data, blocks, family, rules) if ablations or family else []
    runs = list({run.label: run for run in (*runs, *by_hand)}.values())
    described = _describe(weights, model)
    with contextlib.ExitStack() as stack:
        journal = None
        if output is not None:
            of = {
                "model": described,
                "weights": _version_of(weights),
                "dataset": {"name": data.name, **data.describe(), "scenes": len(data)},
                "options": [
                    first,
                    views,
                    size,
                    root and os.path.abspath(root),
                    stride,
                    frames and str(frames),
                ],
                "protocol": rules.describe(),
                "configurations": [repr(run) for run in runs],
                "batch": batch,
                "version": __version__,
            }
            journal = stack.enter_context(Journal(_so_far(output), of, overwrite=overwrite))
            if journal.batches:
                done = sum(next(iter(b.values())).seen for b in journal.batches.values())
                typer.echo(f"{done} scenes were measured before, and stand in {journal.path}", err=True)
        results = _measure(model, params, runs, data, batch, journal, rules, silent=quiet or as_json)
        found = report(
            described, data, runs, results, batch=batch, block=blocks, version=__version__, rules=rules
        )
        rows, measured = found["configurations"], len(found["dataset"]["scenes"])
        seen = measured + len(found["dataset"].get("left_out", []))
        if output is not None:
            with output_folder(output, overwrite=overwrite, ours=OURS) as folder:
                write_file(folder / "evaluation.json", encode(found))
                if plot and not measured_panels(rows):
                    typer.echo("nothing of what quality.png shows was measured: it is not written", err=True)
                elif plot:
                    what = f"{measured} scene{'s' * (measured != 1)} of {data.name}"
                    write_plot(rows, f"{Path(weights).stem}: {what}", folder / "quality.png")
        if journal is not None and seen == len(data):
            journal.remove()
    if as_json:
        typer.echo(json.dumps(found))
    elif not quiet:
        typer.echo(table(rows))
        if baselines := baseline_table(rows):
            typer.echo(baselines)
    if not quiet:
        for line in left_out_lines(found["dataset"]):
            typer.echo(printable(line), err=True)
    if seen < len(data):
        text = f"interrupted: this is of the first {seen} of {len(data)} scenes"
        on = "" if output is None else "; the same command with --overwrite goes on"
        typer.echo(text + on, err=True)
        raise typer.Exit(INTERRUPTED)


def _by_hand(texts: list[str] | None, block: tuple[int, int], *, dense: bool) -> list[Configuration]:
    """The configurations that --sparsity names; without it dense, where that is wanted."""
    from fastvggt_jax.evaluate.ablations import configuration
    from fastvggt_jax.sparsity import parse_sparsity

    chosen = texts or (["dense"] if dense else [])
    return [configuration(parse_sparsity(text, block)) for text in chosen]


def _ablations(
    model: Model,
    data: Dataset,
    block: tuple[int, int],
    family: list[str] | None,
    rules: Rules | None = None,
) -> list[Configuration]:
    from fastvggt_jax.evaluate.ablations import ablations
    from fastvggt_jax.evaluate.runner import sized_images

    policy = model.image_policy if rules is None else rules.policy(model.image_policy)
    frames, height, width, _ = sized_images(data, data[0].images, policy).pixels.shape
    return ablations(model.depth, block, frames * height * width // policy.patch**2, family)


def _load(weights: str, dtype: str) -> tuple[Model, Any]:
    """(model, params) with the heads that are measured."""
    import jax

    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import from_pretrained, read_model

    model, params = from_pretrained(weights, heads=read_model(weights).heads_for(None))
    if dtype == "float32" and jax.default_backend() == "gpu":
        # And not TF32, whose errors would be measured too.
        jax.config.update("jax_default_matmul_precision", "highest")
    return model.clone(dtype=compute_dtype(dtype)), params


def _measure(
    model: Model,
    params: Any,
    runs: list[Configuration],
    data: Dataset,
    batch: int,
    journal: Journal | None,
    rules: Rules,
    *,
    silent: bool,
) -> dict[str, Result]:
    import jax

    from fastvggt_jax.evaluate.runner import evaluate, predictor
    from pallas_kernels import compiles_in_threads

    predictors = {run.label: predictor(model.clone(sparsity=run.sparsity), params) for run in runs}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:
        task = progress.add_task("evaluate", total=len(runs) * len(data))
        return evaluate(
            predictors,
            model.image_policy,
            data,
            batch=batch,
            advance=lambda scenes: progress.advance(task, scenes),
            # Only where compiling takes longer than running.
            together=jax.default_backend() == "gpu" and compiles_in_threads(model.dtype),
            journal=journal,
            rules=rules,
        )


def _so_far(output: Path) -> Path:
    """Where the numbers stand until the folder appears."""
    return Path(f"{os.path.abspath(output)}.so-far.jsonl")


def _version_of(weights: str) -> list[int]:
    """Of a weight file: another file under the same name is another model."""
    from fastvggt_jax.pretrained import weight_file

    status = weight_file(weights).stat()
    return [status.st_size, status.st_mtime_ns]


def _describe(weights: str, model: Model) -> dict[str, Any]:
    import jax.numpy as jnp

    return {
        "file": Path(weights).name,
        "class": type(model).__name__,
        "dtype": jnp.dtype(model.dtype).name,
        "float8_scores": model.float8_scores,
        "image_policy": model.image_policy._asdict(),
    }
