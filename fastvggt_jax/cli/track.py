"""`fastvggt track`: chosen points followed through photographs or a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastvggt_jax.cli.errors import one_sentence, say
from fastvggt_jax.cli.options import (
    CacheDir,
    Dtype,
    Overwrite,
    Quiet,
    Size,
    Weights,
    made_by,
    take_gpu_memory,
    use_compilation_cache,
)
from fastvggt_jax.errors import InputError, memory_errors, printable

OURS = ("tracks.json", "tracks.mp4", "frames/*.jpg")


@one_sentence(smaller="take fewer photographs or points, or a smaller --size")
def track(
    photos: Annotated[
        list[str], typer.Argument(help="A folder, image files, a video: what reconstruct takes.")
    ],
    weights: Weights,
    queries: Annotated[
        str,
        typer.Option(
            metavar="FILE|grid:N",
            help="The points: grid:8 are 8 x 8 of the first photograph; or a JSON list of "
            '{"frame": 0, "x": 10.5, "y": 20.5} in the photographs\' pixels.',
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    size: Size = None,
    dtype: Dtype = "auto",
    cache_dir: CacheDir = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Where points are seen in all photographs, with the probability that they are; drawn over them too."""
    import jax
    import numpy as np

    from fastvggt_jax.io.files import check_output_folder, output_folder
    from fastvggt_jax.pipeline import compute_dtype
    from fastvggt_jax.pretrained import from_pretrained, read_model
    from fastvggt_jax.seeing.tracks import Followed, parse_points, write_tracks
    from fastvggt_jax.sources import load_images

    check_output_folder(output, overwrite=overwrite, ours=OURS)
    take_gpu_memory()
    use_compilation_cache(cache_dir)
    model = read_model(weights)
    if "track" not in model.heads:
        text = f"weights {weights} has no track head, only {', '.join(model.heads)}"
        raise InputError(f"{text}: take weights of VGGT with its track head", argument="weights")
    images = load_images(photos, model.image_policy, size=size)
    points = parse_points(queries, images)
    how: dict[str, Any] = dict(dtype=compute_dtype(dtype), param_dtype="compute")
    model, params = from_pretrained(weights, heads=("track",), **how)
    frames, xy, where = points.batched()
    with memory_errors("take fewer photographs or points, or a smaller size"):
        run = jax.jit(lambda params, pixels, xy: model.apply(params, pixels, xy, frames))
        found = jax.block_until_ready(run(params, images.pixels[None], xy))
    place, visible, sure = (
        np.asarray(x, np.float64)[0][:, where] for x in (found.track, found.vis, found.conf)
    )
    followed = Followed(place + 0.5, visible, sure)
    with output_folder(output, overwrite=overwrite, ours=OURS) as folder:
        names = write_tracks(images, points, followed, folder, about=made_by())
    if quiet:
        return
    if "tracks.mp4" not in names:
        say("warning", "no tracks.mp4: pip install 'fastvggt_jax[video]'")
    typer.echo(f"{printable(str(output))}: {', '.join(names)}; {len(points.frame):,} points")
