"""Before and after the model: image loading and camera geometry."""

from __future__ import annotations

import jax
import numpy as np

from fastvggt_jax import geometry
from fastvggt_jax.sources import Images, load_images
from fastvggt_jax.sources.sizing import area_size
from tests.parity.goldens import Goldens


def cameras(golden: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, jax.Array]:
    cam_from_world, K = geometry.decode_pose(golden["in.pose_enc"], *size)
    return {
        "quat_to_mat": geometry.quat_xyzw_to_rotation(golden["in.quat_xyzw"]),
        "mat_to_quat": geometry.rotation_to_quat_xyzw(golden["in.mat"]),
        "extrinsics": cam_from_world,
        "intrinsics": K,
        "pose_enc_again": geometry.encode_pose(golden["extrinsics"], golden["intrinsics"], *size),
        "inverse_se3": geometry.invert_se3(golden["in.unproject_extrinsics"]),
        "unproject_world_points": geometry.unproject_depth(
            golden["in.depth"], golden["in.unproject_intrinsics"], golden["in.unproject_extrinsics"]
        ),
    }


def geometry_case(goldens: Goldens) -> dict[str, np.ndarray]:
    case = goldens.case("geometry")
    return {k: np.asarray(v) for k, v in cameras(goldens.load("geometry"), (case["H"], case["W"])).items()}


def preprocess(goldens: Goldens) -> dict[str, np.ndarray]:
    """Upstream's image loading, as 8-bit pixels at the golden's subsample."""
    groups, mine = goldens.case("preprocess")["groups"], {}
    for key in goldens.load("preprocess"):
        if key == "pi3.resize_rule":
            rows = goldens.load("preprocess")[key]
            mine[key] = np.array(
                [[w, h, limit, *area_size(w, h, limit, 14)] for w, h, limit, *_ in rows.tolist()], rows.dtype
            )
            continue
        model, mode, group = key.split(".")
        if model == "pi3":
            photos = [goldens.folder / "images" / name for name in goldens.case("preprocess")["pi3_sorted"]]
            side = int(int(mode.removeprefix("limit")) ** 0.5)
            images = load_images(
                photos, mode="area", size=side if side**2 == int(mode.removeprefix("limit")) else None
            )
            mine[key] = subsample(images)
            continue
        square = mode.startswith("square")
        names = groups["all_mixed" if square else group]
        photos = [goldens.folder / "images" / f"{name}.png" for name in names]
        images = load_images(
            photos,
            mode="square" if square else mode,
            size=int(mode.removeprefix("square")) if square else 518,
        )
        if group == "coords":  # the corners of each photo in the square, and its size
            sizes = [(t.original_width, t.original_height) for t in images.transforms]
            corners = [
                t.to_model([(0, 0), wh]).ravel() for t, wh in zip(images.transforms, sizes, strict=True)
            ]
            mine[key] = np.concatenate([corners, sizes], -1).astype(np.float32)
            continue
        mine[key] = subsample(images)
    return mine


def subsample(images: Images) -> np.ndarray:
    pixels = images.pixels
    return np.moveaxis(pixels, -1, 1)[..., 3::7, 2::7]


CASES = {"geometry": geometry_case, "preprocess": preprocess}
