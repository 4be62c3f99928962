"""`fastvggt evaluate`: the model on rendered scenes whose truth is known, and on a real stereo pair."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from fastvggt_jax.cli.options import CacheDir, Json, Overwrite, Quiet, use_compilation_cache
from fastvggt_jax.cli.sentences import INTERRUPTED, one_sentence

if TYPE_CHECKING:
    from fastvggt_jax.evaluate.ablations import Configuration
    from fastvggt_jax.evaluate.runner import Scenes

app = typer.Typer(
    help="How good a model is: on rendered scenes with their truth, and on a real stereo pair.",
    no_args_is_help=True,
)

Model = Annotated[
    str, typer.Option(help="A converted weight file (.safetensors), or mini, the bundled model.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        help="Of the backbone's matrix products; auto: bfloat16, but float32 on a CPU. float32 is that, not TF32."
    ),
]
Block = Annotated[str, typer.Option(help="Queries and keys of a block of block-sparse attention.")]

OURS = ("evaluation.json", "quality.png")  # what --overwrite may replace
COLUMNS = {  # of the table: name in a summary -> (heading, format)
    "effective sparsity": ("sparsity", "8.1%"),
    "rotation error": ("rot °", "7.2f"),
    "RRA@5": ("RRA@5", "6.1f"),
    "RTA@5": ("RTA@5", "6.1f"),
    "AUC@5": ("AUC@5", "6.1f"),
    "AUC@30": ("AUC@30", "6.1f"),
    "ATE": ("ATE %", "6.2f"),
    "AbsRel": ("AbsRel", "7.4f"),
    "delta": ("δ<1.25", "6.1f"),
    "point error": ("point %", "7.2f"),
    "accuracy": ("acc %", "6.2f"),
    "completeness": ("comp %", "6.2f"),
    "Chamfer": ("Chamfer", "7.2f"),
    "normal consistency": ("NC", "5.3f"),
}


@app.command()
def synthetic(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for evaluation.json and quality.png.")
    ] = None,
    scenes: Annotated[int, typer.Option(help="How many scenes of the test split.")] = 200,
    first: Annotated[int, typer.Option(help="Number of the first one.")] = 0,
    views: Annotated[int, typer.Option(help="Views of a scene.")] = 8,
    size: Annotated[int, typer.Option(help="Width and height of a view in pixels, a multiple of 14.")] = 224,
    batch: Annotated[int, typer.Option(help="Scenes at a time, at most.")] = 8,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            help="dense, or ρ and τ as 0.5,0.7, or one of them as 0.5 or ,0.7; may be given several times. Default: dense."
        ),
    ] = None,
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
    block: Block = "128,64",
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
    """Cameras, depth and points on rendered scenes of the test split, dense and at several sparsities.

    Interrupted (Ctrl-C), it reports the scenes up to there.
    """
    with one_sentence(
        output or Path(), as_json, smaller="take fewer --views, a smaller --size or a smaller --batch"
    ):
        from fastvggt_jax.evaluate import ablations as configurations
        from fastvggt_jax.evaluate.plot import require_matplotlib, write_plot
        from fastvggt_jax.evaluate.runner import DEFINITIONS, Scenes
        from fastvggt_jax.io.files import check_output_folder, output_folder, write_file

        chosen = Scenes(scenes, first, views, size, batch)
        if plot:
            require_matplotlib()
            if output is None:
                raise ValueError("--plot needs a folder to write quality.png into: give -o")
        plot = importlib.util.find_spec("matplotlib") is not None if plot is None else plot
        if output is not None:
            check_output_folder(output, overwrite=overwrite, ours=OURS)
        use_compilation_cache(cache_dir)
        net, params = _load(model, dtype)
        if size < net.patch_size or size % net.patch_size:
            raise ValueError(
                f"--size must be a positive multiple of the model's patches of {net.patch_size} pixels, not {size}"
            )
        blocks = _block(block)
        patches = views * (size // net.patch_size) ** 2
        runs = configurations.ablations(net.depth, blocks, patches, family) if ablations or family else []
        runs += [
            configurations.parse(text, blocks)
            for text in sparsity or ([] if runs else [configurations.DENSE])
        ]
        runs = list({run.label: run for run in runs}.values())
        rows = _measure(net, params, runs, chosen, silent=quiet or as_json)
        measured = len(rows[0]["scenes"]["AUC@30"])
        report = {
            "format": "fastvggt_jax evaluation",
            "version": __version__,
            "model": _describe(model, net),
            "scenes": {
                "split": "test",
                "first": first,
                "count": measured,
                "views": views,
                "size": size,
                "batch": chosen.batch,
            },
            "block": list(blocks),
            "device": _device(),
            "definitions": DEFINITIONS,
            "configurations": rows,
        }
        if output is not None:
            with output_folder(output, overwrite=overwrite, ours=OURS) as folder:
                write_file(
                    folder / "evaluation.json",
                    json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode(),
                )
                if plot:
                    write_plot(
                        rows,
                        f"{Path(model).stem}: {measured} scenes of {views} views, {size}×{size}",
                        folder / "quality.png",
                    )
    if as_json:
        typer.echo(json.dumps(report))
    elif not quiet:
        typer.echo(table(rows))
        typer.echo(baseline_table(rows))
    if measured < scenes:
        typer.echo(f"interrupted: this is of the first {measured} of {scenes} scenes", err=True)
        raise typer.Exit(INTERRUPTED)


@app.command()
def stereo(
    model: Model,
    size: Annotated[int | None, typer.Option(help="As for `fastvggt reconstruct`.")] = None,
    sparsity: Annotated[
        str, typer.Option(help="dense, or ρ and τ as 0.5,0.7, or one of them as 0.5 or ,0.7.")
    ] = "dense",
    block: Block = "128,64",
    dtype: Dtype = "auto",
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Depth of a real photograph, a Middlebury stereo pair's left one: does it order the pixels as the
    measured disparity does?
    """
    with one_sentence(Path(), as_json, smaller="take a smaller --size"):
        from fastvggt_jax.datasets.stereo import evaluate_pair, motorcycle
        from fastvggt_jax.evaluate.ablations import parse

        configuration = parse(sparsity, _block(block))
        pair = motorcycle()
        use_compilation_cache(cache_dir)
        net, params = _load(model, dtype)
        report = {"pair": "Middlebury 2014 motorcycle", "model": _describe(model, net), "device": _device()}
        report["sparsity"] = configuration.label
        report |= evaluate_pair(net.clone(sparsity=configuration.sparsity), params, *pair, size)
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(
        f"rank correlation of predicted inverse depth with the measured disparity: {report['rank correlation']:.3f} "
        f"over {report['pixels']:,} pixels ({report['share of pixels']:.0%} of the left photograph, {configuration.label})"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each configuration."""
    labels = [row["label"] for row in rows]
    width = max(map(len, labels))
    cells = [[f"{row['summary'][name]:{form}}" for name, (_, form) in COLUMNS.items()] for row in rows]
    heads = [heading.rjust(len(cell)) for (heading, _), cell in zip(COLUMNS.values(), cells[0], strict=True)]
    lines = [" " * width + "  " + "  ".join(heads)]
    lines += [f"{label:{width}}  " + "  ".join(values) for label, values in zip(labels, cells, strict=True)]
    return "\n".join(lines)


def baseline_table(rows: list[dict[str, Any]]) -> str:
    """AUC@30 of near and far pairs of views, a line for each configuration."""
    bins = rows[0]["baselines"]  # the same scenes, so the same for all
    share = "% of pairs"
    width = max(len(label) for label in (share, *(row["label"] for row in rows)))
    heads = [f"{b['from']}-{b['to']}" if b["to"] else f"{b['from']}-" for b in bins]
    line = lambda label, cells: f"{label:{width}}  " + "  ".join(f"{cell:>6}" for cell in cells)
    lines = ["AUC@30 of pairs of views by their distance, in percent of the scene's size", line("", heads)]
    lines.append(line(share, [f"{b['share']:.1f}" for b in bins]))
    lines += [line(row["label"], [f"{b['AUC@30']:.1f}" for b in row["baselines"]]) for row in rows]
    return "\n".join(lines)


def _load(path: str, dtype: str) -> tuple[Any, Any]:
    """(model, params) with the heads that are measured."""
    import jax

    from fastvggt_jax.models.vggt import VGGT
    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import from_pretrained, read_model

    heads = ("camera", "depth") if isinstance(read_model(path), VGGT) else None
    model, params = from_pretrained(path, heads=heads)
    if dtype == "float32" and jax.default_backend() == "gpu":
        jax.config.update(
            "jax_default_matmul_precision", "highest"
        )  # and not TF32, whose errors would be measured too
    return model.clone(dtype=compute_dtype(dtype)), params


def _measure(
    net: Any, params: Any, runs: list[Configuration], scenes: Scenes, *, silent: bool
) -> list[dict[str, Any]]:
    import jax

    from fastvggt_jax.evaluate.runner import evaluate, predictor
    from pallas_kernels import compiles_in_threads

    predictors = {run.label: predictor(net.clone(sparsity=run.sparsity), params) for run in runs}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:
        task = progress.add_task("evaluate", total=len(runs) * scenes.count // scenes.batch)
        # Only where compiling takes longer than running.
        together = jax.default_backend() == "gpu" and compiles_in_threads(net.dtype)
        results = evaluate(predictors, scenes, lambda: progress.advance(task), together=together)
    return [
        {"label": run.label, "family": run.family, "name": run.name} | results[run.label].report()
        for run in runs
    ]


def _describe(path: str, net: Any) -> dict[str, Any]:
    import jax.numpy as jnp

    return {"file": Path(path).name, "class": type(net).__name__, "dtype": jnp.dtype(net.dtype).name}


def _device() -> str:
    import jax

    return jax.devices()[0].device_kind


def _block(text: str) -> tuple[int, int]:
    """From "128,64" to (128, 64)."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"--block must be two positive numbers such as 128,64 (queries, keys), not {text!r}")
    return int(parts[0]), int(parts[1])
