"""The command `fastvggt`. JAX and the models are imported inside the commands, so that --help is quick.

typer, because it comes with what everybody knows: rich help, shell completion, and tests through click's
runner.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fastvggt_jax import __version__
from fastvggt_jax.cli.evaluate import app as evaluate_app
from fastvggt_jax.cli.options import CacheDir, Json, Overwrite, Quiet, use_compilation_cache
from fastvggt_jax.cli.sentences import one_sentence
from fastvggt_jax.cli.train import train

app = typer.Typer(
    name="fastvggt",
    help="VGGT and π³ in JAX: photographs of a scene to cameras, depth and a point cloud.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastvggt {__version__}")
        raise typer.Exit


app.add_typer(evaluate_app, name="evaluate")


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command()
def reconstruct(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; it appears when all is done.")
    ],
    photos: Annotated[
        list[str] | None,
        typer.Argument(help="A folder, image files, or a pattern in quotes ('photos/*.jpg')."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "-c", "--checkpoint", help="A converted weight file (.safetensors), or mini, the bundled model."
        ),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo", help="Without photographs or a checkpoint: bundled views and the bundled model."
        ),
    ] = False,
    mode: Annotated[
        Literal["crop", "pad", "square", "area"] | None,
        typer.Option(
            help="crop (VGGT's default): full width, what is higher than --size is cut off; pad, square: all, in a square; "
            "area (π³'s default): all, in the proportions of the first."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Width of what the model sees, in pixels, a multiple of 14 (VGGT-1B's is 518); area: of a square of as many pixels (505)."
        ),
    ] = None,
    sparse_ratio: Annotated[
        float | None,
        typer.Option(help="Block-sparse global attention: share of blocks that may be dropped, 0 to 1."),
    ] = None,
    cdf_threshold: Annotated[
        float | None, typer.Option(help="Block-sparse: share of attention that is kept at least, 0 to 1.")
    ] = None,
    special_keys: Annotated[
        Literal["dense", "official"] | None,
        typer.Option(help="Block-sparse: dense always attends to camera and register tokens (default)."),
    ] = None,
    sparse_layers: Annotated[
        str | None, typer.Option(help="Block-sparse: these global layers only, such as 0-9,18-23.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the backbone's matrix products; auto: bfloat16, but float32 on a CPU."),
    ] = "auto",
    points_from: Annotated[
        Literal["depth", "point_head"] | None,
        typer.Option(help="VGGT: points from depth and cameras (default), or from the point head."),
    ] = None,
    conf_percentile: Annotated[
        float, typer.Option(help="Drop points less confident than this percentile, and sky; 0: none.")
    ] = 25.0,
    edge_filter: Annotated[
        float | None,
        typer.Option(help="Drop points at depth jumps larger than this share of the depth, such as 0.03."),
    ] = None,
    voxel: Annotated[
        float | None, typer.Option(help="Keep one point in every cube of this side (in the scene's unit).")
    ] = None,
    max_points: Annotated[
        int, typer.Option(help="Keep at most this many points, evenly spread.")
    ] = 5_000_000,
    depth_original: Annotated[
        bool,
        typer.Option("--depth-original", help="Depth in the photographs' own pixels instead of the model's."),
    ] = False,
    glb: Annotated[
        bool | None, typer.Option("--glb/--no-glb", help="Write scene.glb. Default: if trimesh is installed.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without unreadable photographs.")
    ] = False,
    overwrite: Overwrite = False,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cameras, depth and a point cloud of a scene from its photographs; the first one sets the coordinates."""
    options = dict(
        mode=mode, size=size, dtype=dtype, points_from=points_from, conf_percentile=conf_percentile
    )
    options |= dict(
        edge_filter=edge_filter, voxel=voxel, max_points=max_points, depth_original=depth_original
    )
    options |= dict(glb=_has_trimesh() if glb is None else glb, skip_bad=skip_bad, overwrite=overwrite)
    with one_sentence(output, as_json):
        photos, checkpoint = _inputs(photos, checkpoint, demo)
        options["sparsity"] = _sparsity(sparse_ratio, cdf_threshold, special_keys, sparse_layers)
        report = _run(photos, checkpoint, output, options, cache_dir, silent=quiet or as_json)
    if glb is None and not options["glb"]:
        report["warnings"].append("no scene.glb: pip install 'fastvggt_jax[glb]' (or say --no-glb)")
    _print_report(report, quiet, as_json)


@app.command()
def info(
    checkpoint: Annotated[Path, typer.Argument(help="A weight file (.safetensors), or mini.")],
    as_json: Json = False,
) -> None:
    """What a weight file holds: model, heads, numbers of parameters, source, licence."""
    with one_sentence(checkpoint, as_json):
        import math

        from fastvggt_jax.io.tensors import WeightsError, open_safetensors
        from fastvggt_jax.pretrained import weight_file

        checkpoint = weight_file(checkpoint)
        file = open_safetensors(checkpoint)
        metadata = dict(file.metadata() or {})
        try:
            config = json.loads(metadata.pop("config", "{}"))
        except ValueError as error:
            raise WeightsError(f"{checkpoint} has a config that is no JSON: {error}") from error
        parameters: dict[str, int] = {}
        dtypes = set()
        for name in file.keys():
            part = name.replace(".", "/").split("/")[0]
            tensor = file.get_slice(name)
            parameters[part] = parameters.get(part, 0) + math.prod(tensor.get_shape())
            dtypes.add(tensor.get_dtype())
    report = {
        "file": str(checkpoint),
        "bytes": checkpoint.stat().st_size,
        **metadata,
        "parameters": sum(parameters.values()),
        "parameters_by_part": parameters,
        "dtypes": sorted(dtypes),
        "config": config,
    }
    if as_json:
        typer.echo(json.dumps(report))
        return
    for key, value in report.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, number in value.items():
                typer.echo(f"  {inner:22} {_plain(number)}")
        else:
            typer.echo(f"{key + ':':24} {_plain(value)}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def bench(arguments: typer.Context) -> None:
    """Whole-model time and peak memory over frames and sparsity (python -m fastvggt_jax.bench --help)."""
    from fastvggt_jax import bench

    raise typer.Exit(bench.main(arguments.args))


app.command()(train)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _inputs(photos: list[str] | None, checkpoint: str | None, demo: bool) -> tuple[list[str], str]:
    """What to reconstruct, and with what. Raises ValueError."""
    from fastvggt_jax.pretrained import BUNDLED

    if demo:
        if photos or checkpoint:
            raise ValueError(
                "--demo has photographs and a checkpoint of its own; give none, or leave --demo out"
            )
        return [str(BUNDLED["mini"].parent / "views")], "mini"
    if not photos:
        raise ValueError("no photographs were given: name a folder or files, or try --demo")
    if not checkpoint:
        raise ValueError(
            "--checkpoint is missing: a converted weight file, or mini for the small bundled model"
        )
    return photos, checkpoint


def _run(photos, checkpoint, output, options, cache_dir, *, silent) -> dict[str, Any]:
    """reconstruct.reconstruct with progress on stderr; adds the seconds of every step to its report."""
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # XLA's own log lines, a page of them when memory runs out
    use_compilation_cache(cache_dir)
    from fastvggt_jax.pipeline import Settings, reconstruct

    seconds: dict[str, float] = {}
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:

        @contextlib.contextmanager
        def step(name: str) -> Iterator[None]:
            task = progress.add_task(name, total=1)
            start = time.perf_counter()
            yield
            seconds[name] = round(time.perf_counter() - start, 3)
            progress.update(task, completed=1)

        report = reconstruct(Settings(tuple(photos), checkpoint, output, **options), step)
    return report | {"seconds": seconds}


def _print_report(report: dict[str, Any], quiet: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
    if as_json or quiet:
        return
    # No rich markup from here on: file names may hold brackets.
    for kind, texts in (
        ("skipped", [s["reason"] for s in report["skipped"]]),
        ("warning", report["warnings"]),
    ):
        for text in texts:
            typer.echo(f"{typer.style(kind, fg='yellow')} {text}", err=True)
    size, memory, density = report["size"], report["peak_memory_bytes"], report["model"]["density"]
    count = len(report["photographs"])
    typer.echo(
        f"{count} photograph{'s' * (count != 1)} ({size['width']}x{size['height']}) -> {report['output']}: "
        f"{', '.join(report['files'])}; {report['points']:,} points"
    )
    if density:
        typer.echo(f"global attention computed {sum(density) / len(density):.1%} of its blocks")
    times = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items())
    peaks = [f"{where} {count / 2**30:.2f} GiB" for where, count in memory.items() if count]
    typer.echo(f"{times} · peak memory {', '.join(peaks) or 'unknown'} · {report['device']}")


def _sparsity(ratio, threshold, special_keys, layers):
    """A Sparsity, or None for dense attention. Raises ValueError."""
    if ratio is None and threshold is None:
        given = [
            n for n, v in (("--special-keys", special_keys), ("--sparse-layers", layers)) if v is not None
        ]
        if given:
            raise ValueError(f"{given[0]} needs --sparse-ratio, --cdf-threshold or both")
        return None
    from fastvggt_jax.sparsity import Sparsity

    return Sparsity(ratio, threshold, special_keys=special_keys or "dense", layers=_layers(layers))


def _layers(text: str | None) -> tuple[int, ...] | None:
    """From "0-2,5" to (0, 1, 2, 5)."""
    if text is None:
        return None
    layers = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise ValueError(f"--sparse-layers must be numbers and ranges such as 0-9,18-23, not {text!r}")
        layers += range(int(first), int(last or first) + 1)
    return tuple(layers)


def _has_trimesh() -> bool:
    import importlib.util

    return importlib.util.find_spec("trimesh") is not None


def main() -> None:
    """The entry point of the installed command and of `python -m fastvggt_jax`."""
    app(prog_name="fastvggt")
