"""What `fastvggt reconstruct` does on the host, without a model: photographs are loaded, get depth and
cameras, and are written in the default formats; seconds of each step, and the peak memory of the process.

    python benchmarks/host_memory.py 1000
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fastvggt_jax import VGGT, export, load_images, to_scene
from fastvggt_jax.models.prediction import Reconstruction

GIB = 2**30


def photographs(folder: Path, count: int) -> list[Path]:
    """Of 1440 × 1080 pixels."""
    rows, columns = np.mgrid[:1080, :1440]
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        picture = np.stack([rows // 5, columns // 6, (rows + columns + i) // 10], -1).astype(np.uint8)
        Image.fromarray(picture).save(path, quality=80)
    return paths


def reconstruction(frames: int, height: int, width: int) -> Reconstruction:
    """A wall four units away that cameras in a row look at."""
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (1, frames, 1, 1))
    poses[..., 0, 3] = -0.01 * np.arange(frames)
    K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
    depth = np.full((1, frames, height, width), 4, np.float32)
    x, y = (np.arange(n, dtype=np.float32) + 0.5 for n in (width, height))
    points = np.empty((*depth.shape, 3), np.float32)
    points[..., 0] = (x - width / 2) / width * 4 + 0.01 * np.arange(frames, dtype=np.float32)[:, None, None]
    points[..., 1] = ((y - height / 2) / width * 4)[:, None]
    points[..., 2] = 4
    conf = np.broadcast_to(1 + x, depth.shape).copy()
    return Reconstruction(poses, np.tile(K, (1, frames, 1, 1)), depth, conf, points, conf)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), count)
        start = time.perf_counter()
        images = load_images(paths, VGGT().image_policy)
        loaded = time.perf_counter()
        found = reconstruction(*images.pixels.shape[:3])
        outputs = sum(x.nbytes for x in (found.depth, found.conf, found.points))
        begun = time.perf_counter()
        files = export.write(to_scene(found, images), Path(folder) / "out", export.default_formats())
        written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{count} photographs as {images.pixels.shape[2]}×{images.pixels.shape[1]}: {', '.join(files)}")
    print(f"loaded in {loaded - start:.1f} s, written in {written - begun:.1f} s")
    print(f"peak {peak / GIB:.2f} GiB, of which the model's outputs are {outputs / GIB:.2f} GiB")


if __name__ == "__main__":
    main(int(sys.argv[1]))
