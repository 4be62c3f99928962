"""A contact sheet: a row of views of each of several scenes, and their depth.

python -m fastvggt_jax.datasets.synthetic docs/synthetic.jpg --split train --scenes 8
"""

import argparse
import io
import sys

import numpy as np
from PIL import Image

from fastvggt_jax.datasets.synthetic import SPLITS, sample
from fastvggt_jax.datasets.synthetic.sample import SUPERSAMPLING
from fastvggt_jax.io.colors import DepthColors
from fastvggt_jax.io.files import write_file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastvggt_jax.datasets.synthetic", description=__doc__.split("\n")[0]
    )
    parser.add_argument("output", help="the picture to write (.jpg, .png)")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first scene")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[120, 160], metavar=("H", "W"))
    parser.add_argument("--supersampling", type=int, default=SUPERSAMPLING, help="rays a pixel and side")
    args = parser.parse_args(arguments)
    form = Image.registered_extensions().get("." + args.output.rpartition(".")[2].lower())
    if form not in ("JPEG", "PNG"):
        print(f"error: {args.output} must end in .jpg or .png", file=sys.stderr)
        return 2
    if min(args.scenes, args.frames, args.supersampling) < 1 or min(args.size) < 8:
        print(
            "error: --scenes, --frames and --supersampling must be at least 1, --size at least 8 8",
            file=sys.stderr,
        )
        return 2
    rows = []
    for index in range(args.first, args.first + args.scenes):
        height, width = args.size
        scene = sample(
            args.split,
            index,
            frames=args.frames,
            height=height,
            width=width,
            supersampling=args.supersampling,
        )
        views = np.rint(np.asarray(scene.images) * 255).astype(np.uint8)
        depth = np.where(scene.valid[0], scene.depth[0, ..., 0], np.float32(np.nan))
        rows.append(np.concatenate([*views, DepthColors(depth)(depth)], 1))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format=form, quality=85)
    write_file(args.output, buffer.getbuffer())
    return 0


if __name__ == "__main__":
    sys.exit(main())
