"""`fastvggt export`: a saved scene in more formats, without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastvggt_jax.cli.errors import one_sentence, say
from fastvggt_jax.cli.options import (
    AlignTo,
    BundleAdjust,
    CameraModel,
    ConfPercentile,
    CopyPhotographs,
    DepthOriginal,
    EdgeFilter,
    Float16,
    GlbMesh,
    Intrinsics,
    Json,
    MaxPoints,
    Overwrite,
    Quiet,
    SharedCamera,
    Voxel,
    export_options,
    say_tracks,
)
from fastvggt_jax.errors import printable


@one_sentence(smaller="take a smaller --max-points")
def export(
    folder: Annotated[Path, typer.Argument(help="What reconstruct has written, with its scene.npz.")],
    formats: Annotated[str, typer.Option("--format", help="What to write, such as colmap,nerfstudio,splat.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A new folder to write. Default: the same folder.")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="The folder that holds the photographs, if they have moved."),
    ] = None,
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
    intrinsics: Intrinsics = None,
    align_to: AlignTo = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A scene that reconstruct has written, in more formats; the model is not needed."""
    from fastvggt_jax.saved import export_saved

    options = export_options(
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
    )
    report = export_saved(
        folder,
        formats.split(","),
        options,
        output=output,
        photos=photos,
        bundle=bundle_adjust,
        intrinsics=intrinsics,
        align_to=align_to,
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps(report))
    if as_json or quiet:
        return
    for text in report["warnings"]:
        say("warning", text)
    typer.echo(printable(f"{report['output']}: {', '.join(report['files'])}"))
    say_tracks(report)
