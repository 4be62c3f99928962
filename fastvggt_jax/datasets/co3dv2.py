"""CO3Dv2: objects filmed from all around, with cameras by COLMAP; poses.

J. Reizenstein et al., "Common Objects in 3D", ICCV 2021. Photographs as released, below `data/` or the root;
annotations `CATEGORY_test.jgz` as VGGT's and RayDiffusion's preprocess_co3d.py write them, in the root or in
its folder `annotations`.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from fastvggt_jax.datasets.base import PAIRS, Field, Options, Sample, Truth
from fastvggt_jax.datasets.files import (
    SEED,
    FileDataset,
    cameras,
    digest,
    fitting,
    frames_in,
    listed,
    need,
    none_of,
    root_of,
    several,
    stored,
    views_of,
)
from fastvggt_jax.errors import InputError, MissingError, SceneError

SEEN = (
    *("apple", "backpack", "banana", "baseballbat", "baseballglove", "bench", "bicycle", "bottle", "bowl"),
    *("broccoli", "cake", "car", "carrot", "cellphone", "chair", "cup", "donut", "hairdryer", "handbag"),
    *("hydrant", "keyboard", "laptop", "microwave", "motorcycle", "mouse", "orange", "parkingmeter", "pizza"),
    *("plant", "stopsign", "teddybear", "toaster", "toilet", "toybus", "toyplane", "toytrain", "toytruck"),
    *("tv", "umbrella", "vase", "wineglass"),
)
UNSEEN = (
    "ball",
    "book",
    "couch",
    "frisbee",
    "hotdog",
    "kite",
    "remote",
    "sandwich",
    "skateboard",
    "suitcase",
)
VIEWS, SHORTEST, FARTHEST = 10, 50, 1e5
VGGT = "vggt-co3d"  # the protocol, which draws otherwise


@dataclasses.dataclass(frozen=True)
class CO3Dv2(FileDataset):
    """Ten frames of each sequence, in the order in which they are drawn; scenes are "CATEGORY/SEQUENCE".

    entries: of each scene what its annotation says of these frames. counts: of all its frames.
    """

    entries: Mapping[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    name: ClassVar[str] = "co3dv2"
    metrics: ClassVar[tuple[str, ...]] = ("cameras",)
    field: ClassVar[Field] = Field(("cameras",), PAIRS)
    published: ClassVar = {"783d8b45d1971f30": "as published with π³, 2,506 sequences"}

    @classmethod
    def build(cls, options: Options) -> Self:
        options.refuse(cls.name, "stride")
        root, views = root_of(options, cls.name), views_of(options, VIEWS)
        if views > SHORTEST:
            text = f"views must be at most {SHORTEST}, not {views}: shorter sequences are not used"
            raise InputError(text, argument="views")
        official = options.protocol == VGGT
        categories = SEEN if official else SEEN + UNSEEN
        files = {category: _annotation(root, category) for category in categories}
        gone = [f"{category}_test.jgz" for category, path in files.items() if path is None]
        if len(gone) == len(files):
            raise MissingError(f"root {root} holds none of the files {listed(gone)}", argument="root")
        given = None if options.frames is None else frames_in(Path(options.frames))
        generator = np.random.RandomState(0 if official else SEED)
        frames: dict[str, list[int]] = {}
        by_sequence: dict[str, list[int]] = {}
        entries: dict[str, list[dict[str, Any]]] = {}
        counts: dict[str, int] = {}
        for category, path in files.items():
            for sequence, found in _sequences(path, in_order=official) if path is not None else ():
                if given is None:
                    numbers = generator.choice(len(found), views, replace=False).tolist()
                elif sequence in given:
                    numbers = given[sequence]
                else:
                    continue
                scene = f"{category}/{sequence}"
                by_sequence[sequence] = frames[scene] = numbers
                counts[scene] = len(found)
                kept = [found[i] for i in numbers if i < len(found)]
                names = ("filepath", "R", "T")
                entries[scene] = [{name: one.get(name) for name in names} for one in kept]
        if given is not None and not frames:
            raise none_of(options.frames, given, root)  # type: ignore[arg-type]
        for sequence, numbers in (given or {}).items():
            if sequence not in by_sequence:  # which `read` says
                by_sequence[sequence] = frames[sequence] = numbers
        known = {"entries": entries, "counts": counts}
        found_ = cls.of(dataclasses.replace(options, frames=None), root, frames, **known)
        return dataclasses.replace(found_, frame_list=digest(by_sequence))

    def read(self, scene: str) -> Sample:
        if scene not in self.entries:
            text = f"no CATEGORY_test.jgz in {self.root} holds it, with {SHORTEST} frames at least"
            raise SceneError(text, scene=scene)
        entries = self.entries[scene]
        fitting(scene, self.frames[scene], self.counts[scene])
        several(scene, len(entries))
        base = self.root / "data" if (self.root / "data").is_dir() else self.root
        paths = [base / str(one["filepath"]) for one in entries]
        need(scene, paths)
        try:
            poses = np.stack([opencv_camera(one["R"], one["T"]) for one in entries])
        except (TypeError, ValueError) as error:
            raise SceneError(f"its R must be 3x3 and its T 3 numbers ({error})", scene=scene) from error
        return Sample(scene, [stored(path) for path in paths], Truth(cam_from_world=cameras(scene, poses)))


def opencv_camera(R: Any, T: Any) -> np.ndarray:
    """cam_from_world f64[3, 4] of PyTorch3D's R and T, whose x points left and y up, and which multiply from
    the right.
    """
    R, T = np.array(R, np.float64).reshape(3, 3), np.array(T, np.float64).reshape(3)
    T[:2] *= -1
    R[:, :2] *= -1
    return np.concatenate([R.T, T[:, None]], 1)


def _annotation(root: Path, category: str) -> Path | None:
    paths = [root / inside / f"{category}_test.jgz" for inside in ("", "annotations")]
    return next((path for path in paths if path.is_file()), None)


def _sequences(path: Path, *, in_order: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Those of a category that are long enough, and whose cameras are nowhere absurd. Raises InputError."""
    try:
        with gzip.open(path) as file:
            content = json.load(file)
        for sequence in sorted(content) if in_order else content:
            frames = content[sequence]
            if len(frames) >= SHORTEST and not any(sum(one["T"][:3]) > FARTHEST for one in frames):
                yield sequence, frames
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"root: {path} is damaged, or no annotation of CO3D as preprocess_co3d.py writes it ({error})"
        raise InputError(text, argument="root") from error
