"""A result as a page that opens from a file, without a server or a network: WebGL in some hundred lines.

viser can write such a page too, of 0.8 MB without the scene; but it plays a recording, without sliders for
size and confidence, frames or masks, which live in its server.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from fastvggt_jax.errors import printable
from fastvggt_jax.io.files import write_file
from fastvggt_jax.seeing.clouds import Cloud
from fastvggt_jax.seeing.result import jpeg

MOST = 300_000  # points of a result
THUMBNAIL = 200  # pixels of the longer side
PHOTOGRAPHS = 200  # that have a picture; of more, an even choice


def write_page(clouds: Sequence[Cloud], path: str | os.PathLike, title: str) -> None:
    """Write the page. Raises FileError if writing fails."""
    write_file(path, page(clouds, title).encode())


def page(clouds: Sequence[Cloud], title: str) -> str:
    """The HTML of clouds, as they are thinned already."""
    template = (files("fastvggt_jax.seeing") / "share.html").read_text("utf-8")
    data = {
        "size": clouds[0].size,
        "up": (-clouds[0].world_from_cam[:, :3, 1].mean(0)).tolist(),
        "clouds": [_packed(cloud) for cloud in clouds],
    }
    # Of JSON within a script only "<" could end it.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return template.replace("@TITLE@", html.escape(printable(title))).replace("@DATA@", text)


def _packed(cloud: Cloud) -> dict[str, object]:
    """Points from the surest to the least sure, so that what a slider leaves is a beginning of them."""
    order = np.argsort(-cloud.rank, kind="stable")
    count = len(cloud.scene.names)
    pictured = set(np.unique(np.linspace(0, count - 1, min(count, PHOTOGRAPHS)).round().astype(int)).tolist())
    cameras = [
        {
            "name": printable(name),
            "pose": pose[:3].reshape(-1).tolist(),
            "fov": float(fov),
            "aspect": cloud.scene.valid.shape[2] / cloud.scene.valid.shape[1],
            "picture": _url(cloud, i, "photograph") if i in pictured else "",
            "depth": _url(cloud, i, "depth") if i in pictured else "",
        }
        for i, (name, pose, fov) in enumerate(
            zip(cloud.scene.names, cloud.world_from_cam, cloud.fov, strict=True)
        )
    ]
    return {
        "count": len(cloud),
        "xyz": _base64(cloud.xyz[order].astype("<f4")),
        "rgb": _base64(cloud.rgb[order]),
        "rank": _base64(cloud.rank[order].astype("<f4")),
        "frame": _base64(cloud.frame[order].astype("<u2")),
        "masked": _base64(cloud.masked[order].astype(np.uint8)),
        "cameras": cameras,
    }


def _url(cloud: Cloud, i: int, kind: str) -> str:
    pixels = jpeg(cloud.picture(i, kind, THUMBNAIL), quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(pixels).decode()}"


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
