"""What data sets that lie in files share: a folder, scenes that are read when they are measured, and what may
be wrong with them. A scene that cannot be measured is a SceneError: the evaluation goes on without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import numpy as np
from PIL import Image

from fastvggt_jax.datasets.base import Options, Sample
from fastvggt_jax.errors import ImageError, InputError, MissingError, SceneError, whole_number
from fastvggt_jax.geometry.alignment import is_rotation
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.sources.base import Frame
from fastvggt_jax.sources.photographs import SUFFIXES, natural, open_as_stored, opened

MOST = 10  # files that are named, of those that are missing
# What numpy raises for a file of arrays that is damaged, is of other arrays, or is none.
DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError),
    *(zlib.error, zipfile.BadZipFile),
)
SEED = 42  # of the lists of frames that π³'s evaluation draws


@dataclasses.dataclass(frozen=True)
class FileDataset:
    """A data set below the folder `root`; a child has `name`, `metrics` and `read`.

    scenes: their names, in order. size: see `Dataset`. frames: which photographs of each are taken, by their
    numbers. frame_list: `digest` of the list of all scenes of the copy, of which `published` are those that
    papers use.
    """

    root: Path
    scenes: tuple[str, ...]
    size: int | None = None
    frames: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    frame_list: str | None = None

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ("cameras", "depth", "points")
    published: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, options: Options, root: Path, frames: Mapping[str, Sequence[int]], **more: Any) -> Self:
        """With these frames, or those of the options' file, and as many scenes as are asked for. Raises
        InputError.
        """
        if options.frames is not None:
            given = frames_in(Path(options.frames))
            if not set(given) & set(frames):
                raise none_of(options.frames, given, root)
            frames = given
        scenes = chosen(list(frames), options)
        kept = {scene: frames[scene] for scene in scenes}
        known = digest(frames) if any(frames.values()) else None  # else they are chosen when a scene is read
        return cls(root=root, scenes=scenes, size=options.size, frames=kept, frame_list=known, **more)

    @classmethod
    def of_folders(
        cls, options: Options, is_scene: Callable[[Path], bool], lacking: str, **more: Any
    ) -> Self:
        """Of a root that is a scene, or holds some. lacking: what a root holds that does neither, which is a
        MissingError.
        """
        root = root_of(options, cls.name)
        scenes = [name for name in folders(root) if is_scene(root / name)]
        if is_scene(root):
            root, scenes = root.absolute().parent, [root.absolute().name]
        if not scenes:
            raise MissingError(f"root {root} holds {lacking}", argument="root")
        return cls.of(options, root, {scene: [] for scene in scenes}, **more)

    def taken(self, scene: str, count: int, least: int = 2) -> list[int]:
        """The numbers of a scene's photographs, of which its copy has `count`. Raises SceneError where they
        do not fit it, or are fewer than `least`.
        """
        wanted = list(self.frames[scene])
        if not (self.root / scene).is_dir():
            raise SceneError(f"the folder {self.root / scene} is missing", scene=scene)
        fitting(scene, wanted, count)
        if len(wanted) < least:
            text = f"of its {count} frames {len(wanted)} are taken, and {least} are needed"
            raise SceneError(text, scene=scene)
        return wanted

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self.scenes):
            raise IndexError(number)
        return self.read(self.scenes[number])

    def read(self, scene: str) -> Sample:
        """Raises SceneError for one that cannot be measured."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {"size": self.size}
        if self.frame_list is not None:
            found["frame_list"] = self.published.get(self.frame_list, f"of this copy ({self.frame_list})")
            found["frames"] = {scene: list(numbers) for scene, numbers in self.frames.items()}
        return found


class Lazy(Sequence):
    """Maps of photographs, each read when it is looked at."""

    def __init__(self, reads: Iterable[Callable[[], np.ndarray]]) -> None:
        self.reads = list(reads)

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, number: Any) -> Any:
        return self.reads[number]()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read() for read in self.reads)


def root_of(options: Options, name: str) -> Path:
    """The folder that was given. Raises InputError without one, MissingError if there is none."""
    if options.root is None:
        text = f"root must be given for the data set {name}: the folder of its files, see docs/evaluation.md"
        raise InputError(text, argument="root")
    root = Path(options.root)
    if not root.is_dir():
        raise MissingError(f"root {root} is no folder", argument="root")
    return root


def chosen(scenes: Sequence[str], options: Options) -> tuple[str, ...]:
    """Those of a data set's scenes that the options ask for. Raises InputError if that is none."""
    first = options.first or 0
    if first < 0 or (options.scenes is not None and options.scenes < 1):
        name = "first" if first < 0 else "scenes"
        raise InputError(f"{name} must be at least {int(first >= 0)}", argument=name)
    if not scenes:
        raise InputError(f"root {options.root} holds no scene that can be measured", argument="root")
    if first >= len(scenes):
        text = f"first must be below {len(scenes)}, the number of scenes, not {first}"
        raise InputError(text, argument="first")
    return tuple(scenes[first : None if options.scenes is None else first + options.scenes])


def there(root: Path, scenes: Sequence[str], inside: str = "") -> None:
    """Raises MissingError, naming what would be right, if not one of these folders is in the root."""
    if not any((root / scene / inside).is_dir() for scene in scenes):
        names = listed([f"{scene}/{inside}".rstrip("/") for scene in scenes])
        raise MissingError(f"root {root} holds none of the folders {names}", argument="root")


def need(scene: str, files: Iterable[Path]) -> None:
    """Raises SceneError, naming them, if some of these files are missing."""
    gone = [str(path) for path in files if not path.is_file()]
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        raise SceneError(f"{listed(gone)} {verb} missing", scene=scene)


def fitting(scene: str, numbers: Sequence[int], count: int) -> None:
    """Raises SceneError for a list of frames that goes beyond a copy's `count`."""
    if max(numbers, default=-1) >= count:
        text = f"the list of frames goes to number {max(numbers)}, and the copy has {count} frames"
        raise SceneError(text, scene=scene)


def listed(names: Sequence[str]) -> str:
    """At most ten of them, and how many more there are."""
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def several(scene: str, count: int, least: int = 2) -> None:
    """Raises SceneError for a scene of too few views."""
    if count < least:
        views = f"{count} view{'s' * (count != 1)}"
        raise SceneError(f"it has {views}, and {least} are compared", scene=scene)


def cameras(scene: str, cam_from_world: Any) -> np.ndarray:
    """f64[F, 3, 4]. Raises SceneError for what is not finite, or no rotation and translation."""
    poses = np.asarray(cam_from_world, np.float64)[:, :3]
    bad = np.flatnonzero(~(is_rotation(poses[:, :, :3]) & np.isfinite(poses).all((1, 2))))
    if len(bad):
        what = "not finite" if not np.isfinite(poses[bad[0]]).all() else "no rotation and translation"
        raise SceneError(f"the camera of its view {bad[0]} is {what} ({len(bad)} in all)", scene=scene)
    return poses


def inverted(world_from_cam: np.ndarray) -> np.ndarray:
    """f64[F, 4, 4] -> f64[F, 4, 4] by the rotation's transpose; what is not finite stays so."""
    found = np.array(world_from_cam, np.float64)
    R = found[:, :3, :3].swapaxes(1, 2)
    found[:, :3, 3] = -np.einsum("fij,fj->fi", R, found[:, :3, 3])
    found[:, :3, :3] = R
    return found


def numbers_in(path: Path, scene: str, shape: tuple[int, ...]) -> np.ndarray:
    """f64 of this shape (-1 for any length), of a text file. Raises SceneError."""
    try:
        return np.array(path.read_text(encoding="utf-8-sig").split(), np.float64).reshape(shape)
    except (OSError, ValueError) as error:
        wanted = " x ".join("n" if side < 0 else str(side) for side in shape)
        raise SceneError(f"{path} must hold {wanted} numbers ({error})", scene=scene) from error


def stored(path: Path) -> Frame:
    """A photograph whose pixels are taken as they lie in the file, as cameras count them."""
    return Frame(partial(open_as_stored, path), path)


def millimetres(path: Path, scene: str, *, per_unit: float = 1000.0, none: int = 0) -> np.ndarray:
    """f32[H, W] of a PNG of 16 bits, 0 where there is none. Raises SceneError."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise SceneError(f"{path} cannot be read as a depth image ({error})", scene=scene) from error
    if values.ndim != 2 or values.dtype == np.uint8:
        text = f"{path} must be grey of 16 bits, not {values.dtype} of shape {list(values.shape)}"
        raise SceneError(text, scene=scene)
    return np.where(values == none, 0, values).astype(np.float32) / np.float32(per_unit)


def within(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """The depth, 0 where it is outside of these."""
    return np.where(np.isfinite(depth) & (depth >= nearest) & (depth <= farthest), depth, 0)


def intrinsics(fx: float, fy: float, cx: float, cy: float, *, centres: bool = False) -> np.ndarray:
    """K f64[3, 3] in our pixels; centres: the given one counts from the first pixel's centre."""
    half = 0.5 if centres else 0.0
    return np.array([[fx, 0, cx + half], [0, fy, cy + half], [0, 0, 1]])


def drawn(counts: Mapping[str, int], views: int) -> dict[str, list[int]]:
    """The frames of each scene, in the order in which they were drawn: one generator of numpy's legacy kind,
    seeded once, goes through all scenes (π³'s evaluation branch, relpose/sampling.py).
    """
    generator = np.random.RandomState(SEED)
    return {
        scene: generator.choice(count, views, replace=False).tolist() if count >= views else []
        for scene, count in counts.items()
    }


def strided(count: int, stride: int) -> list[int]:
    return list(range(0, count, stride))


def stride_of(options: Options, default: int) -> int:
    """Raises InputError."""
    return whole_number("stride", default if options.stride is None else options.stride, least=1)


@overload
def views_of(options: Options, default: int) -> int: ...
@overload
def views_of(options: Options, default: None) -> int | None: ...
def views_of(options: Options, default: int | None) -> int | None:
    """None are all. Raises InputError."""
    views = default if options.views is None else options.views
    if views is not None and views < 2:
        raise InputError(f"views must be at least 2, not {views}: cameras are compared", argument="views")
    return views


def frames_in(path: Path) -> dict[str, list[int]]:
    """{scene: numbers} of a JSON file. Raises MissingError, FileError, InputError."""
    found = read_json(path, "frames")
    good = isinstance(found, dict) and all(
        isinstance(numbers, list) and all(type(x) is int and x >= 0 for x in numbers)
        for numbers in found.values()
    )
    if not good or not found:
        text = f"frames {path} must hold an object of lists of numbers from 0 on, a list for each scene"
        raise InputError(text, argument="frames")
    return found


def none_of(path: Path, given: Mapping[str, Any], root: Path) -> InputError:
    """For a list of frames whose scenes are others than those of the copy."""
    text = f"frames {path} names {len(given)} scenes, such as {next(iter(given))}, none of which is in {root}"
    return InputError(text, argument="frames")


def folders(root: Path) -> list[str]:
    """The names of those in a folder, sorted."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def numbered(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern, 2 before 10; none where there is no such folder."""
    return sorted(folder.glob(pattern), key=natural)


def pictures(folder: Path) -> list[Path]:
    """The photographs in a folder, by name as it is sorted by characters."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."
    )


def size_of(path: Path, scene: str) -> tuple[int, int]:
    """(width, height) of a photograph as stored. Raises SceneError."""
    try:
        with opened(path) as image:
            return image.size
    except ImageError as error:
        raise SceneError(error.text, scene=scene) from error


def of_size(paths: Iterable[Path], size: tuple[int, int], scene: str) -> None:
    """Raises SceneError unless all photographs are (width, height), for which the data set's K is."""
    for path in paths:
        if (found := size_of(path, scene)) != size:
            text = "{} is {}x{} pixels, and the data set's cameras are known for {}x{}, as released"
            raise SceneError(text.format(path, *found, *size), scene=scene)


def digest(frames: Mapping[str, Sequence[int]]) -> str:
    """By which a list of frames is known again."""
    return hashlib.sha256(json.dumps(frames, sort_keys=True).encode()).hexdigest()[:16]
