"""cameras.json: every photograph's camera, at its original resolution."""

import json
import os

from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import Scene

CONVENTIONS = {
    "axes": "OpenCV: x right, y down, z into the scene",
    "world_from_cam": "4x4, row by row; x_world = world_from_cam @ [x_cam, 1]; its last column is the camera's centre",
    "world": "the first camera's frame, about (VGGT) or exactly (π³); the unit is arbitrary, not metres",
    "K": "3x3 in pixels of width x height, the photograph as it is seen (EXIF orientation applied); "
    "the outer corner of the first pixel is (0, 0), its centre (0.5, 0.5); no distortion. VGGT's points are unprojected as "
    "upstream does, from the model's whole-numbered pixels, which is half a model pixel off",
    "intrinsics": "where K comes from: predicted by the model; recovered, that is fitted to the model's points in camera coordinates by "
    "least squares, reweighted to the smallest sum of distances; or guessed, where that failed",
    "model": "the image that the model saw: x_model = scale[0] * x + offset[0], and the same in y; "
    "valid = [left, top, right, bottom] of it is photograph, the rest padding",
}


def write_cameras(scene: Scene, path: str | os.PathLike) -> None:
    """Write K, world_from_cam, name, size and model transform of every photograph as JSON. Raises OSError."""
    images = []
    for i, (name, t, pose) in enumerate(
        zip(scene.names, scene.transforms, scene.world_from_cam, strict=True)
    ):
        model = {
            "width": t.model_width,
            "height": t.model_height,
            "scale": [t.scale_x, t.scale_y],
            "offset": [t.offset_x, t.offset_y],
            "valid": list(t.valid),
            "K": scene.K[i].tolist(),
        }
        images.append(
            {
                "name": name,
                "width": t.original_width,
                "height": t.original_height,
                "K": scene.K_original(i).tolist(),
                "intrinsics": scene.intrinsics[i],
                "world_from_cam": pose.tolist(),
                "model": model,
            }
        )
    content = {
        "format": "fastvggt_jax cameras",
        "format_version": 1,
        "conventions": CONVENTIONS,
        "images": images,
    }
    write_file(path, json.dumps(content, indent=1, allow_nan=False).encode())
