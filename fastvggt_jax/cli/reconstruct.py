"""`fastvggt reconstruct`: photographs to cameras, depth, points and whatever other formats are asked for."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fastvggt_jax.cli.errors import one_sentence, printable, say
from fastvggt_jax.cli.options import (
    WEIGHTS_HELP,
    AlignTo,
    Block,
    BundleAdjust,
    CacheDir,
    CameraModel,
    ConfPercentile,
    CopyPhotographs,
    DepthOriginal,
    Dtype,
    EdgeFilter,
    Float8Scores,
    Float16,
    Formats,
    GlbMesh,
    Intrinsics,
    Json,
    MaxPoints,
    Overwrite,
    Quiet,
    SharedCamera,
    Size,
    SparsityText,
    Voxel,
    check_sparse,
    export_options,
    made_by,
    say_tracks,
    take_gpu_memory,
    use_compilation_cache,
)
from fastvggt_jax.errors import FailedError, InputError

if TYPE_CHECKING:
    from fastvggt_jax.pipeline import Settings

MODES = Literal["crop", "pad", "square", "area"]


@one_sentence(smaller="take fewer photographs, a smaller --size, or weights in bfloat16")
def reconstruct(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; it appears when all is done.")
    ],
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="A folder, image files, a pattern in quotes ('photos/*.jpg'), a video, a .txt file that "
            "lists photographs, or the folder of a COLMAP model."
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option("-c", "--weights", help=WEIGHTS_HELP)] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Without photographs or weights: bundled views and the bundled model."),
    ] = False,
    mode: Annotated[
        MODES | None,
        typer.Option(
            help="crop (VGGT's default): full width, what is higher than --size is cut off; pad, square: "
            "all, in a square; area (π³'s default): all, in the proportions of the first."
        ),
    ] = None,
    size: Size = None,
    sparsity: SparsityText = "dense",
    block: Block = None,
    special_keys: Annotated[
        Literal["dense", "official"] | None,
        typer.Option(help="Block-sparse: dense always attends to camera and register tokens (default)."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--sparse-layers", help="Block-sparse: these global layers only, such as 0-9,18-23."),
    ] = None,
    frame_layers: Annotated[
        str | None,
        typer.Option(help="Global layers whose patches attend within their frame alone, such as 0-8."),
    ] = None,
    float8_scores: Float8Scores = False,
    dtype: Dtype = "auto",
    points_from: Annotated[
        str | None,
        typer.Option(
            help="VGGT: points from depth and cameras (depth, the default), or from the point_head."
        ),
    ] = None,
    formats: Formats = None,
    conf_percentile: ConfPercentile = 25.0,
    edge_filter: EdgeFilter = None,
    voxel: Voxel = None,
    max_points: MaxPoints = None,
    glb_mesh: GlbMesh = False,
    depth_original: DepthOriginal = False,
    float16: Float16 = False,
    shared_camera: SharedCamera = False,
    camera_model: CameraModel = "PINHOLE",
    copy_photographs: CopyPhotographs = False,
    bundle_adjust: BundleAdjust = False,
    tracks: Annotated[
        bool,
        typer.Option(
            "--tracks",
            help="colmap, nerfstudio, splat: points that VGGT's track head has followed.",
        ),
    ] = False,
    intrinsics: Intrinsics = None,
    align_to: AlignTo = None,
    cameras: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Known cameras: a cameras.json, a COLMAP folder or nerfstudio's transforms.json. Pi3X takes "
            "them as input; of other models the scene is aligned to them and gets their K.",
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Known depth, an input of Pi3X: NAME.npy, .npz or .png of 16 bits (millimetres) of some or "
            "all photographs, in the unit of --cameras.",
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of masks, NAME.JPG.png or NAME.png: what is black makes no point and no depth.",
        ),
    ] = None,
    paint_masks: Annotated[
        bool, typer.Option("--mask-input", help="Also paint it white before the model sees it.")
    ] = False,
    mask_sky: Annotated[
        bool,
        typer.Option("--mask-sky", help="No points, tracks and depth of what the model takes for sky."),
    ] = False,
    white: Annotated[
        int | None,
        typer.Option(
            help="The number that is white in grey photographs of more than 8 bits, such as 4095. "
            "Default: the largest that their bits can hold."
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Of a video: frames per second, the sharpest ones. Default: 2.")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Of a video: frames in all, at most. Default: 300.")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Reconstruct so many photographs at a time, in their order, and join the chunks. Default: "
            "all at once, which is more exact, or as many as fit into memory.",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of chunks: photographs in two of them. Default: a quarter."),
    ] = None,
    loops: Annotated[
        bool,
        typer.Option("--loops", help="Of chunks: find places that are come back to, and close the loop."),
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Share the photographs among so many devices, or all; the result is the same. Default: one "
            "device.",
        ),
    ] = None,
    bucket: Annotated[
        bool,
        typer.Option(
            "--bucket",
            help="Compile for the next of 1, 2, 3, 4, 6, 8, 12, 16, ... photographs, a program that other "
            "scenes and later runs share; the result is the same.",
        ),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without unreadable photographs.")
    ] = False,
    overwrite: Overwrite = False,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cameras, depth and points of a scene from its photographs; the first one sets the coordinates."""
    chosen, weights = _inputs(photos, weights, demo)
    settings = chosen_settings(
        photos=tuple(chosen),
        weights=weights,
        output=output,
        mode=mode,
        size=size,
        sparsity=sparsity,
        block=block,
        special_keys=special_keys,
        layers=layers,
        frame_layers=frame_layers,
        float8_scores=float8_scores,
        dtype=dtype,
        points_from=points_from,
        formats=formats,
        conf_percentile=conf_percentile,
        edge_filter=edge_filter,
        voxel=voxel,
        max_points=max_points,
        glb_mesh=glb_mesh,
        depth_original=depth_original,
        float16=float16,
        shared_camera=shared_camera,
        camera_model=camera_model,
        copy_photographs=copy_photographs,
        bundle_adjust=bundle_adjust,
        tracks=tracks,
        intrinsics=intrinsics,
        align_to=align_to,
        cameras=cameras,
        depth=depth,
        masks=masks,
        paint_masks=paint_masks,
        mask_sky=mask_sky,
        white=white,
        fps=fps,
        max_frames=max_frames,
        chunk=chunk,
        overlap=overlap,
        loops=loops,
        devices=int(devices) if devices is not None and devices.isdecimal() else devices,
        bucket=bucket,
        skip_bad=skip_bad,
        overwrite=overwrite,
    )
    if devices == "all" and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        import jax

        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            text = "devices=all: the tasks of this job step did not find one another"
            raise FailedError(f"{text} ({error}); start it by srun", argument="devices") from error
    report = _run(settings, cache_dir, silent=quiet or as_json)
    if "output" not in report:  # another host writes it
        return
    if formats is None:
        report["warnings"] += without_extras()
    _print_report(report, quiet, as_json)


def chosen_settings(
    *,
    weights: str,
    sparsity: str,
    block: str | None,
    special_keys: str | None,
    layers: str | None,
    frame_layers: str | None,
    formats: str | None,
    max_points: int | None,
    conf_percentile: float,
    edge_filter: float | None,
    voxel: float | None,
    glb_mesh: bool,
    depth_original: bool,
    float16: bool,
    shared_camera: bool,
    camera_model: str,
    copy_photographs: bool,
    bundle_adjust: bool,
    **others: Any,
) -> Settings:
    """The pipeline's Settings of what a command was given. Raises InputError."""
    from fastvggt_jax.export import default_formats
    from fastvggt_jax.pipeline import Settings
    from fastvggt_jax.pretrained import recommended_block
    from fastvggt_jax.sparsity import parse_block, parse_layers, parse_sparsity

    check_sparse([sparsity], special_keys=special_keys, sparse_layers=layers, block=block)
    return Settings(
        weights=weights,
        sparsity=parse_sparsity(
            sparsity,
            parse_block(block) if block else recommended_block(weights),
            special_keys=special_keys or "dense",
            layers=parse_layers(layers) if layers else None,
            frame_layers=parse_layers(frame_layers) if frame_layers else (),
        ),
        formats=default_formats() if formats is None else tuple(formats.split(",")),
        export=export_options(
            max_points,
            conf_percentile=conf_percentile,
            edge_filter=edge_filter,
            voxel=voxel,
            glb_mesh=glb_mesh,
            depth_original=depth_original,
            float16=float16,
            shared_camera=shared_camera,
            camera_model=camera_model,
            copy_photographs=copy_photographs,
        ),
        bundle=bundle_adjust,
        **others,
    )


def without_extras() -> list[str]:
    """A sentence for each format that would be written if its extra were there."""
    from fastvggt_jax.export import missing_formats

    return [
        f"no {', '.join(format.files)}: pip install 'fastvggt_jax[{format.extra}]'"
        " (or say what to write: --format)"
        for format in missing_formats()
    ]


def _inputs(photos: list[str] | None, weights: str | None, demo: bool) -> tuple[list[str], str]:
    """What to reconstruct, and with what. Raises InputError."""
    from fastvggt_jax.pretrained import BUNDLED

    if demo:
        if photos or weights:
            raise InputError("--demo has photographs and weights of its own; give none, or leave --demo out")
        return [str(BUNDLED["mini"].path.parent / "views")], "mini"
    if not photos:
        raise InputError("no photographs were given: name a folder or files, or try --demo")
    return photos, check_weights(weights)


def check_weights(weights: str | None) -> str:
    """Raises InputError where there are none."""
    if weights:
        return weights
    raise InputError(
        "--weights is missing: a weight file, a name on the hub, or mini for the small bundled model"
    )


def _run(settings: Any, cache_dir: str | None, *, silent: bool) -> dict[str, Any]:
    """pipeline.reconstruct with progress on stderr; adds the seconds of every step to its report, and
    keeps it in the folder's scene.json."""
    take_gpu_memory()
    use_compilation_cache(cache_dir)
    from fastvggt_jax.export.conventions import keep_run
    from fastvggt_jax.pipeline import reconstruct

    seconds: dict[str, float] = {}
    tasks: dict[str, TaskID] = {}  # of a step that comes several times one
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent) as progress:

        @contextlib.contextmanager
        def step(name: str) -> Iterator[None]:
            task = tasks[name] = tasks[name] if name in tasks else progress.add_task(name, total=1)
            start = time.perf_counter()
            yield
            seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - start, 3)
            progress.update(task, completed=1)

        def keep(folder: Path, report: dict[str, Any]) -> None:
            keep_run(folder, made_by() | report | {"seconds": seconds})

        return reconstruct(settings, step, keep) | {"seconds": seconds}


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
            say(kind, text)
    size, memory, density = report["size"], report["peak_memory_bytes"], report["model"]["density"]
    count = len(report["photographs"])
    typer.echo(
        f"{count} photograph{'s' * (count != 1)} ({size['width']}x{size['height']}) -> "
        f"{printable(report['output'])}: "
        f"{', '.join(report['files'])}; {report['points']:,} points"
    )
    sequence = report["sequence"]
    if sequence:
        off = [residual for residual in sequence["residuals"] if residual is not None]
        apart = len(sequence["pieces"])
        text = f"joined {len(sequence['chunks'])} chunks" + f" into {apart} pieces" * (apart > 1)
        text += f", the worst two off by {max(off):.2%} of the distance" if off else ""
        typer.echo(f"{text}; {len(sequence['loops'])} loops closed")
    for name, one in (report["known"] or {}).items():
        of = f", {one['photographs']} photographs" if "photographs" in one else ""
        typer.echo(f"{name} {printable(one['file'])}{of}: {one['use']}")
    say_tracks(report)
    if density:
        typer.echo(f"global attention computed {sum(density) / len(density):.1%} of its blocks")
    times = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items())
    peaks = [f"{where} {count / 2**30:.2f} GiB" for where, count in memory.items() if count]
    typer.echo(f"{times} · peak memory {', '.join(peaks) or 'unknown'} · {report['device']}")
