"""What a data set gives, photographs and what is true of them, and which data sets there are.

To add one for evaluation: a `Dataset` in a file of this folder and a line in DATASETS. From outside the
package, `register`, or an entry point (see `Registry`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flax.struct

from fastvggt_jax.errors import InputError, whole_number
from fastvggt_jax.registry import Registry


@flax.struct.dataclass
class Truth:
    """What B scenes of F photographs really look like, in any coordinates and any unit; numpy or jax arrays.

    Training needs all but the tracks. A data set for evaluation leaves out what it does not know.

    Attributes:
      cam_from_world: f32[B, F, 3, 4], OpenCV axes.
      K: f32[B, F, 3, 3] in pixels, the outer corner of the first one being (0, 0).
      depth: f32[B, F, H, W] along the camera's z. points: f32[B, F, H, W, 3] in the world. valid: bool[B, F,
        H, W], where these are known; elsewhere they are any finite number.
      tracks: f32[B, F, Q, 2], where the points to track are in each view, in the tracker's pixels, the centre
        of the first one being (0, 0). visible: bool[B, F, Q]. None without such points.
    """

    cam_from_world: Any = None
    K: Any = None
    depth: Any = None
    points: Any = None
    valid: Any = None
    tracks: Any = None
    visible: Any = None


class Sample(NamedTuple):
    """One scene.

    Attributes:
      name: what reports and errors call it.
      images: its F photographs as `load_images` takes them, such as u8[F, H, W, 3] or a list of files; the
        first is the reference.
      truth: in the photographs' own pixels, without the axis B. What is not known is None. Maps of
        photographs of several sizes are lists of F arrays. Without `valid`, depths that are finite and
        positive are known; without `points`, they follow from depth, K and cameras.
    """

    name: str
    images: Any
    truth: Truth


METRICS = ("cameras", "depth", "points", "rank correlation")
# What papers measure by their own definitions, see `evaluate.measures`.
FIELD = ("cameras", "Procrustes", "trajectory", "clouds", "video depth", "normalised views")
PAIRS, SCENES, PIXELS, CATEGORIES = "pairs", "scenes", "pixels", "categories"
POSE_WIDTH, CLOUD_WIDTH = 512, 518  # pixels that π³'s evaluation shows its models
# How a predicted cloud is brought to the true one before ICP.
CLOUD_ALIGNMENTS = UMEYAMA, MEDIANS = "similarity", "medians"


@dataclasses.dataclass(frozen=True)
class Field:
    """How papers measure a data set, π³'s evaluation first; `evaluate.protocols` has what others change.

    metrics: of FIELD. mean_over: of what the reported means are: PAIRS of views of all scenes together, or
    SCENES. width: pixels that the model sees. reach: how far ICP looks for partners, in the data set's unit.
    multiple: of which the height is that clouds are compared at. alignment: of CLOUD_ALIGNMENTS. crop: pixels
    a side of the middle of each photograph, of which a cloud is made; None: of all. farthest: depth from
    which on a video's pixels do not count, None: all do; clipped: whether predictions are cut there too.
    """

    metrics: tuple[str, ...]
    mean_over: str = SCENES
    width: int = POSE_WIDTH
    reach: float = 0.1
    multiple: int = 14
    alignment: str = UMEYAMA
    crop: int | None = None
    farthest: float | None = None
    clipped: bool = False


class Dataset(Protocol):
    """Scenes to measure models on.

    Attributes:
      name: what reports call it.
      metrics: which of METRICS are to be measured, where a scene's truth has what they need. The rank
        correlation needs depths in the right order alone, in whatever unit.
      size: pixels of what the model is to see, as `load_images` takes it; None is the model's own.

    It may have a `field`, a Field, if papers measure on it.
    """

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> int | None: ...

    def __len__(self) -> int:
        """How many scenes."""

    def __getitem__(self, number: int, /) -> Sample:
        """One of them; IndexError beyond the last. Called from several threads at a time. Raises
        SceneError for one that cannot be measured, which is left out.
        """

    def describe(self) -> dict[str, Any]:
        """What a report has to say so that the same scenes can be found again: JSON values."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen of a data set; None is its own default.

    scenes: how many, from number `first` on. views: photographs of each. size: see `Dataset`. root: the
    folder that its files lie in. stride: of the photographs of a scene every so manieth. frames: a JSON file
    of {scene: [numbers of its photographs]}, in the place of a list that is generated. protocol: of
    `evaluate.protocols`, where it decides which photographs are taken. Raises InputError, naming the field,
    for what is no such thing.
    """

    scenes: int | None = None
    first: int | None = None
    views: int | None = None
    size: int | None = None
    root: Path | None = None
    stride: int | None = None
    frames: Path | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        for field in ("scenes", "first", "views", "size", "stride"):
            if getattr(self, field) is not None:
                whole_number(field, getattr(self, field))
        for field, kind in (("root", "folder"), ("frames", "file")):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise InputError(f"{field} must be a {kind}, not {value!r}", argument=field)

    def refuse(self, name: str, *arguments: str) -> None:
        """Raises InputError if one of these was chosen, which the data set of this name has no choice of."""
        for argument in arguments:
            if getattr(self, argument) is not None:
                text = f"{argument} cannot be chosen of the data set {name}; leave it out"
                raise InputError(text, argument=argument)


Build = Callable[[Options], Dataset]
# What builds each of them. It raises errors.Error for options that the data set does not have, and for files
# or packages that are missing.
DATASETS: Registry[Build] = Registry(
    "data set",
    {
        "synthetic": "fastvggt_jax.datasets.rendered:Rendered.build",
        "stereo": "fastvggt_jax.datasets.stereo:Stereo.build",
        "real": "fastvggt_jax.datasets.real:Real.build",
        "colmap": "fastvggt_jax.datasets.colmap:Colmap.build",
        "nerfstudio": "fastvggt_jax.datasets.nerfstudio:Nerfstudio.build",
        "idr": "fastvggt_jax.datasets.idr:IDR.build",
        "realestate10k": "fastvggt_jax.datasets.realestate10k:RealEstate10K.build",
        "co3dv2": "fastvggt_jax.datasets.co3dv2:CO3Dv2.build",
        "tanksandtemples": "fastvggt_jax.datasets.tanksandtemples:TanksAndTemples.build",
        "eth3d": "fastvggt_jax.datasets.eth3d:ETH3D.build",
        "7scenes": "fastvggt_jax.datasets.seven_scenes:SevenScenes.build",
        "nrgbd": "fastvggt_jax.datasets.nrgbd:NRGBD.build",
        "dtu": "fastvggt_jax.datasets.dtu:DTU.build",
        "scannet": "fastvggt_jax.datasets.scannet:ScanNet.build",
        "tum": "fastvggt_jax.datasets.tum:TUM.build",
        "sintel": "fastvggt_jax.datasets.sintel:Sintel.build",
        "bonn": "fastvggt_jax.datasets.bonn:Bonn.build",
        "kitti": "fastvggt_jax.datasets.kitti:KITTI.build",
    },
)
register, registered, names = DATASETS.register, DATASETS.registered, DATASETS.names


def load_dataset(name: str, options: Options = Options()) -> Dataset:
    """The data set of this name. Raises InputError for an unknown one, and what its own file raises."""
    return DATASETS.find(name, argument="dataset")(options)
