"""Writes a scene in the layout of every data set, from what is true of it."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from fastvggt_jax.datasets.base import Truth

GL = np.diag([1.0, -1, -1, 1])


class True_(NamedTuple):
    """images u8[F, H, W, 3], K f64[3, 3] in our pixels, cam_from_world f64[F, 3, 4], depth f32[F, H, W]."""

    images: np.ndarray
    K: np.ndarray
    poses: np.ndarray
    depth: np.ndarray

    @property
    def world_from_cam(self):
        whole = np.tile(np.eye(4), (len(self.poses), 1, 1))
        whole[:, :3] = self.poses
        return np.linalg.inv(whole)

    @property
    def cam_from_world(self):
        return np.linalg.inv(self.world_from_cam)

    @property
    def centred_K(self):
        """As π³'s evaluation counts pixels."""
        return self.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]

    def truth(self):
        return Truth(self.poses, np.tile(self.K, (len(self.poses), 1, 1)), self.depth)


def save(pixels, path: Path, form=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, form)


def text(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def lines(rows):
    return "".join(" ".join(repr(float(x)) for x in np.ravel(row)) + "\n" for row in rows)


def depth_png(depth, path, per_unit=1000, none=0):
    values = np.where(depth > 0, np.rint(depth * per_unit), none).astype(np.uint16)
    save(values, path)


def realestate10k(root, scene, name="000c3ab189999a83", released=False):
    entries = []
    for i, pose in enumerate(scene.cam_from_world):
        save(scene.images[i], root / name / "images" / f"{i:04}.png")
        where = {"idx": i, "filepath": f"{name}/images/{i:04}.png"}
        entries.append(where | {"intrinsics": scene.K.tolist(), "extrinsics": pose.tolist()})
    if released:
        H, W = scene.images.shape[1:3]
        K = [scene.K[0, 0] / W, scene.K[1, 1] / H, scene.K[0, 2] / W, scene.K[1, 2] / H, 0, 0]
        rows = [[1e6 * i, *K, *pose.ravel()] for i, pose in enumerate(scene.poses)]
        text(root / "test" / f"{name}.txt", "https://example.org/watch\n" + lines(rows))
    else:
        text(root / name / "annotations.json", json.dumps(entries[::-1]))


def co3dv2(root, scene, category="apple", names=("110_13051_23361",), repeat=1):
    """Each sequence has the frames `repeat` times."""
    content = {}
    for name in names:
        frames = content[name] = []
        for i in range(repeat * len(scene.images)):
            pose = scene.poses[i % len(scene.images)]
            file = f"{category}/{name}/images/frame{i + 1:06}.jpg"
            save(scene.images[i % len(scene.images)], root / "data" / file, "PNG")  # exact
            flip = np.diag([-1.0, -1, 1])
            R, T = pose[:, :3].T @ flip, flip @ pose[:, 3]
            frames.append({"filepath": file, "R": R.tolist(), "T": T.tolist(), "focal_length": [2, 2]})
    path = root / f"{category}_test.jgz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))


def colmap(folder, scene, binary=True):
    H, W = scene.images.shape[1:3]
    K = scene.K
    parameters = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    names = [f"view{i:03}.png" for i in range(len(scene.images))]
    for name, pixels in zip(names, scene.images, strict=True):
        save(pixels, folder / "images" / name)
    quats = Rotation.from_matrix(scene.poses[:, :, :3]).as_quat()[:, [3, 0, 1, 2]]
    model = folder / "sparse" / "0"
    model.mkdir(parents=True, exist_ok=True)
    if binary:
        (model / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, W, H, *parameters))
        data = struct.pack("<Q", len(names))
        for i, name in enumerate(names):
            data += struct.pack("<i7di", i + 1, *quats[i], *scene.poses[i, :, 3], 1) + name.encode() + b"\0"
            data += struct.pack("<Q", 0)
        (model / "images.bin").write_bytes(data)
    else:
        text(model / "cameras.txt", f"# one\n1 PINHOLE {W} {H} " + lines([parameters]))
        poses = [lines([[*q, *t]]).strip() for q, t in zip(quats, scene.poses[:, :, 3], strict=True)]
        rows = [f"{i + 1} {poses[i]} 1 {name}\n\n" for i, name in enumerate(names)]
        text(model / "images.txt", "".join(rows[::-1]))


def tanksandtemples(root, scene, name="Barn"):
    for i, pixels in enumerate(scene.images):
        save(pixels, root / name / f"{i + 1:06}.png")
    blocks = [f"{i} {i} 0\n" + lines(pose) for i, pose in enumerate(scene.world_from_cam)]
    text(root / f"{name}_COLMAP_SfM.log", "".join(blocks))


def nerfstudio(folder, scene):
    frames = []
    for i, pose in enumerate(scene.world_from_cam):
        save(scene.images[i], folder / "images" / f"{i:03}.png")
        frames.append({"file_path": f"images/{i:03}.png", "transform_matrix": (pose @ GL).tolist()})
    text(folder / "transforms.json", json.dumps({"frames": frames}))


def idr(folder, scene):
    matrices = {}
    for i, pose in enumerate(scene.poses):
        save(scene.images[i], folder / "image" / f"{i:06}.png")
        matrices[f"world_mat_{i}"] = np.concatenate([-3 * scene.K @ pose, [[0, 0, 0, 1]]])
        matrices[f"scale_mat_{i}"] = np.eye(4)
    np.savez(folder / "cameras_sphere.npz", **matrices)


def eth3d(root, scene, name="courtyard"):
    folder = root / name
    for i, pixels in enumerate(scene.images):
        stem = f"DSC_{i:04}"
        save(pixels, folder / "images/custom_undistorted" / f"{stem}.JPG", "PNG")
        raw = folder / "ground_truth_depth/custom_undistorted" / f"{stem}.JPG"
        raw.parent.mkdir(parents=True, exist_ok=True)
        np.where(scene.depth[i] > 0, scene.depth[i], np.inf).astype("<f4").tofile(raw)
        camera = folder / "custom_undistorted_cam" / f"{stem}.npz"
        camera.parent.mkdir(parents=True, exist_ok=True)
        np.savez(camera, intrinsics=scene.centred_K, extrinsics=scene.cam_from_world[i])


def seven_scenes(root, scene, name="chess/seq-03"):
    for i, pixels in enumerate(scene.images):
        stem = root / name / f"frame-{i:06}"
        save(pixels, Path(f"{stem}.color.png"))
        depth_png(scene.depth[i], Path(f"{stem}.depth.proj.png"), none=65535)
        text(Path(f"{stem}.pose.txt"), lines(scene.world_from_cam[i]))


def nrgbd(root, scene, name="breakfast_room"):
    for i, pixels in enumerate(scene.images):
        save(pixels, root / name / "images" / f"img{i}.png")
        depth_png(scene.depth[i], root / name / "depth" / f"depth{i}.png")
    text(root / name / "poses.txt", lines((scene.world_from_cam @ GL).reshape(-1, 4)))


def dtu(root, scene, name="scan1"):
    for i, pixels in enumerate(scene.images):
        stem = f"{i:08}"
        save(np.kron(pixels, np.ones((2, 2, 1), np.uint8)), root / name / "images" / f"{stem}.jpg", "PNG")
        for folder in ("depths", "cams"):
            (root / name / folder).mkdir(parents=True, exist_ok=True)
        np.save(root / name / "depths" / f"{stem}.npy", scene.depth[i])
        mask = np.full(scene.depth[i].shape, 255, np.uint8)
        mask[:, :4] = 0
        save(mask, root / name / "binary_masks" / f"{stem}.png")
        camera = "extrinsic\n" + lines(scene.cam_from_world[i]) + "\nintrinsic\n" + lines(scene.centred_K)
        text(root / name / "cams" / f"{stem}_cam.txt", camera + "\n425.0 2.5\n")


def scannet(root, scene, name="scene0707_00", prepared=True):
    count = len(scene.images)
    for i, pixels in enumerate(scene.images):
        if prepared:
            save(pixels, root / name / f"color_{count}" / f"frame_{i:04}.jpg", "PNG")
        else:
            for j in range(3):  # every third is taken
                save(pixels if j == 0 else 255 - pixels, root / name / "color" / f"{3 * i + j}.jpg", "PNG")
                pose = scene.world_from_cam[i] if j == 0 else np.full((4, 4), -np.inf)
                text(root / name / "pose" / f"{3 * i + j}.txt", lines(pose))
    if prepared:
        text(root / name / f"pose_{count}.txt", lines(scene.world_from_cam.reshape(-1, 16)))


TUM = "rgbd_dataset_freiburg3_sitting_static"


def tum(root, scene, name=TUM, prepared=True):
    count, quats = len(scene.images), Rotation.from_matrix(scene.world_from_cam[:, :3, :3]).as_quat()
    known = [[i, *scene.world_from_cam[i, :3, 3], *quats[i]] for i in range(count)]
    if prepared:
        for i, pixels in enumerate(scene.images):
            save(pixels, root / name / f"rgb_{count}" / f"{i:04}.png")
        text(root / name / f"groundtruth_{count}.txt", lines(known))
        return
    frames = []
    for i, pixels in enumerate(scene.images):
        for j in range(3):
            file = f"rgb/{i}.{j}.png"
            save(pixels if j == 0 else 255 - pixels, root / name / file)
            frames.append(f"{i + 0.1 * j + 0.005:.6f} {file}\n")
    turned = [[i + 0.1 * j, *known[i][1:]] for i in range(count) for j in range(3)]
    text(root / name / "rgb.txt", "# colours\n" + "".join(frames) + "99.5 rgb/nothing.png\n")
    text(root / name / "groundtruth.txt", "# time\n" + lines(turned[::-1]))


def sintel(root, scene, name="alley_2"):
    tag = struct.pack("<f", 202021.25)
    for i, pixels in enumerate(scene.images):
        stem = f"frame_{i + 1:04}"
        save(pixels, root / "training/final" / name / f"{stem}.png")
        for folder in ("depth", "camdata_left"):
            (root / "training" / folder / name).mkdir(parents=True, exist_ok=True)
        H, W = scene.depth[i].shape
        values = np.where(scene.depth[i] > 0, scene.depth[i], 1e4).astype("<f4").tobytes()
        (root / "training/depth" / name / f"{stem}.dpt").write_bytes(tag + struct.pack("<ii", W, H) + values)
        camera = np.concatenate([scene.K.ravel(), scene.poses[i].ravel()]).astype("<f8").tobytes()
        (root / "training/camdata_left" / name / f"{stem}.cam").write_bytes(tag + camera)


def bonn(root, scene, name="rgbd_bonn_balloon2", prepared=True):
    before = 0 if prepared else 30
    for i in range(before + len(scene.images)):
        pixels, depth = (x[max(i - before, 0)] for x in (scene.images, scene.depth))
        end = "_110" if prepared else ""
        save(pixels, root / name / f"rgb{end}" / f"{i:04}.png")
        depth_png(depth, root / name / f"depth{end}" / f"{i:04}.png", 5000)


def kitti(root, scene, name="2011_09_26_drive_0002_sync_02"):
    images, depth = (
        root / "val_selection_cropped" / kind / name
        for kind in ("image_gathered", "groundtruth_depth_gathered")
    )
    for i, pixels in enumerate(scene.images):
        save(pixels, images / f"{i:010}.png")
        depth_png(scene.depth[i], depth / f"{i:010}.png", 256)
