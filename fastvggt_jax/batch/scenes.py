"""Which scenes there are: folders, videos, patterns, or an index that lists them, and what each is called."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvggt_jax.errors import Error, ExtraError, FileError, InputError, MissingError
from fastvggt_jax.io.files import reason, regular_file
from fastvggt_jax.io.json_files import parse_json
from fastvggt_jax.sources.lists import COLMAP_FOLDER, is_list, listed
from fastvggt_jax.sources.photographs import SUFFIXES, find_images, matches, natural
from fastvggt_jax.sources.video import Video, expected_frames, is_video

JSON_LINES, PARQUET = (".jsonl", ".ndjson"), (".parquet",)
PATHS = ("scene", "path")  # either may name the column
NUMBERS = ("fps", "max_frames", "white")
TEXTS = ("masks", "intrinsics", "align_to", "cameras", "depth")
OPTIONS = (*NUMBERS, *TEXTS)  # of one scene, as those of `reconstruct`; texts are paths relative to the index
WILD = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One to be reconstructed.

    path: absolute; a folder, a video, a pattern or a list of photographs. name: of its folder of results.
    options: those of `pipeline.Settings` that are its own. size: views, about; they are counted, not read.
    wrong: why it cannot be reconstructed, if that is seen already.
    """

    path: str
    name: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 0
    wrong: str | None = None


def find_scenes(given: Sequence[str], output: str | os.PathLike) -> list[Scene]:
    """The scenes that arguments stand for, in their order, with names that no two share.

    given: folders of photographs, videos, COLMAP folders; patterns of these, or of the photographs of one
      scene; indices: a .txt file with a scene per line, JSON lines (.jsonl) or parquet with a column `scene`
      or `path`, and `name` and OPTIONS where there are. The output folder is none of them.
    Raises InputError, MissingError or ExtraError for an index that cannot be used, a scene that is given
    twice, and a name that cannot be a folder's.
    """
    found = [scene for one in given for scene in _of_argument(os.path.expanduser(one), output)]
    if not found:
        raise InputError(
            "scenes were not given: name folders, videos, patterns or an index", argument="scenes"
        )
    twice = [path for path, count in Counter(scene.path for scene in found).items() if count > 1]
    if twice:
        raise InputError(f"the scene {twice[0]} is given twice; give it once", argument="scenes")
    return _named(found)


def sized(scene: Scene, fps: float | None, max_frames: int | None) -> Scene:
    """With how many views it will have, about, or what is wrong with it."""
    own = {"fps": fps, "max_frames": max_frames} | dict(scene.options)
    video = {name: own[name] for name in ("fps", "max_frames") if own[name] is not None}
    try:
        return dataclasses.replace(scene, size=_size(Path(scene.path), video))
    except Error as error:
        return dataclasses.replace(scene, wrong=str(error))


def holds_video(scene: Scene) -> bool:
    """Whether options of videos are about it."""
    try:
        return any(map(is_video, listed(scene.path) if is_list(scene.path) else (scene.path,)))
    except Error:  # which loading it says again
        return False


def _size(path: Path, video: Mapping[str, Any]) -> int:
    if is_list(path):
        return sum(_size(one, video) for one in listed(path))
    if is_video(path):
        regular_file(path)
        return expected_frames(Video(path, **video))
    if COLMAP_FOLDER.recognises(path):
        return sum(1 for _ in COLMAP_FOLDER.frames(path))
    return len(find_images(path)[0])


def _of_argument(text: str, output: str | os.PathLike) -> list[Scene]:
    path = Path(text)
    if not text:
        raise InputError("scenes holds an empty text; name folders, videos or an index", argument="scenes")
    ending = path.suffix.lower()
    if ending in JSON_LINES:
        return _of_rows(path, enumerate(_json_lines(path), 1))
    if ending in PARQUET:
        return _of_rows(path, enumerate(_parquet(path), 1))
    if is_list(path):
        return _of_rows(path, ((number, {"scene": line}) for number, line in _lines(path)))
    if glob.has_magic(text) and not os.path.lexists(text):
        return _of_pattern(text, output)
    if path.suffix.lower() in SUFFIXES and os.path.isfile(path):
        text = f"{path} is a photograph, not a scene: give its folder, or a pattern in quotes"
        raise InputError(text, argument="scenes")
    return [Scene(os.path.abspath(text))]


def _of_pattern(text: str, output: str | os.PathLike) -> list[Scene]:
    """A scene for each folder and video that it stands for; one of all photographs that it stands for."""
    found = [one for one in sorted(matches(text), key=natural) if not one.name.startswith(".")]
    results = os.path.realpath(output)
    scenes = [one for one in found if (one.is_dir() and os.path.realpath(one) != results) or is_video(one)]
    photographs = [one for one in found if one.suffix.lower() in SUFFIXES and one.is_file()]
    if scenes and photographs:
        wrong = f"the pattern {text} stands for photographs ({photographs[0].name}) as well as for scenes"
        raise InputError(f"{wrong} ({scenes[0].name}): give one that stands for one kind", argument="scenes")
    if not scenes and not photographs:
        wrong = (
            f"the pattern {text} stands for no folder, video or photograph; the paths of scenes are needed"
        )
        raise MissingError(wrong, argument="scenes")
    return [Scene(os.path.abspath(one)) for one in (scenes or [Path(text)])]


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of those that say something."""
    lines = [(number, line.strip()) for number, line in enumerate(_text(path).splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _text(path: Path) -> str:
    try:
        return regular_file(path, "scenes").read_text(encoding="utf-8-sig")
    except Error:
        raise
    except OSError as error:
        raise FileError(f"the index {path} cannot be read: {reason(error)}", cause=error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"the index {path} is no text in UTF-8 ({error})", argument="scenes") from error


def _json_lines(path: Path) -> Iterable[Any]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield parse_json(line)
        except ValueError as error:
            text = f"line {number} of the index {path} is no JSON: {error}"
            raise InputError(text, argument="scenes") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    regular_file(path, "scenes")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        text = f"the index {path} is parquet, which needs pyarrow: pip install 'fastvggt_jax[parquet]'"
        raise ExtraError(text, argument="scenes") from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        text = f"the index {path} is damaged, or no parquet file ({str(error).rstrip('.')})"
        raise InputError(text, argument="scenes") from error


def _of_rows(path: Path, rows: Iterable[tuple[int, Any]]) -> list[Scene]:
    """The scenes of an index, whose paths are relative to it."""
    found = [_of_row(path, number, row) for number, row in rows]
    if not found:
        raise InputError(f"the index {path} names no scenes", argument="scenes")
    return found


def _of_row(path: Path, number: int, row: Any) -> Scene:
    where = f"row {number} of the index {path}"
    if not isinstance(row, dict):
        raise InputError(f'{where} must be an object such as {{"scene": "photos/a"}}', argument="scenes")
    row = {key: _whole(value) for key, value in row.items() if value is not None and value == value}
    unknown = [key for key in row if key not in (*PATHS, "name", *OPTIONS)]
    if unknown:
        known = ", ".join(("scene or path", "name", *OPTIONS))
        raise InputError(f"{where} has {unknown[0]!r}; what it may have is {known}", argument="scenes")
    for key, value in row.items():
        number_wanted = key in NUMBERS
        right = isinstance(value, int | float if number_wanted else str) and not isinstance(value, bool)
        if not right or value == "":
            kind = "a number" if number_wanted else "a text"
            raise InputError(f"{key} in {where} must be {kind}, not {value!r}", argument="scenes")
    paths = [row[key] for key in PATHS if key in row]
    if len(paths) != 1:
        raise InputError(f"{where} must have a scene or a path, one of the two", argument="scenes")
    if Path(paths[0]).suffix.lower() in SUFFIXES and not glob.has_magic(paths[0]):
        text = f"{paths[0]} in {where} is a photograph, not a scene: name its folder, or name a list of"
        raise InputError(f"{text} photographs in an index", argument="scenes")
    beside = os.path.dirname(os.path.abspath(path))
    options = {key: row[key] for key in OPTIONS if key in row}
    for key in TEXTS:
        numbers = key == "intrinsics" and re.fullmatch(r"[\d.,eE+\- ]+", options.get(key, ""))
        if key in options and not numbers:
            options[key] = _beside(beside, options[key])
    return Scene(_beside(beside, paths[0]), row.get("name", ""), options)


def _whole(value: Any) -> Any:
    """3.0 as 3: a parquet column with empty places holds no whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _beside(folder: str, name: str) -> str:
    name = os.path.expanduser(name)
    if glob.has_magic(name) and not os.path.lexists(os.path.join(folder, name)):
        folder = glob.escape(folder)  # the folder's own name is no pattern
    return os.path.abspath(os.path.join(folder, name))


def _named(scenes: list[Scene]) -> list[Scene]:
    """With names after their paths: as many of the folders around as tell them apart, room or north-room."""
    for scene in scenes:
        _check_name(scene)
    parts = [() if scene.name else _parts(scene.path) for scene in scenes]
    names = [scene.name or part[-1] for scene, part in zip(scenes, parts, strict=True)]
    for length in range(2, max(map(len, parts)) + 1):
        taken = Counter(name.casefold() for name in names)  # not every file system tells A from a
        names = [
            "-".join(part[-length:]) if part and taken[name.casefold()] > 1 else name
            for name, part in zip(names, parts, strict=True)
        ]
    by_name: dict[str, Scene] = {}
    for name, scene in zip(names, scenes, strict=True):
        other = by_name.setdefault(name.casefold(), scene)
        if other is not scene:
            text = f"the scenes {other.path} and {scene.path} would both be called {name}"
            raise InputError(f"{text}: give them other names, in an index", argument="scenes")
    return [dataclasses.replace(scene, name=name) for scene, name in zip(scenes, names, strict=True)]


def _parts(path: str) -> tuple[str, ...]:
    """Names of which a scene's own comes last: of a pattern the folder's that it begins with."""
    if WILD.search(path) and not os.path.lexists(path):
        path = re.split(WILD, path)[0].rpartition(os.sep)[0]
    plain = Path(path)
    if is_video(plain) or is_list(plain):
        plain = plain.with_suffix("")
    return tuple(part.lstrip(".") or "scene" for part in plain.parts[1:]) or ("scene",)


def _check_name(scene: Scene) -> None:
    """Raises InputError where a given name cannot be a folder's."""
    name = scene.name
    if (
        name.startswith(".")
        or set(name) & set('/\\:*?"<>|')
        or not name.isprintable()
        or name != name.strip()
    ):
        text = f"the name {name!r} of the scene {scene.path} cannot be a folder's"
        raise InputError(f'{text}: leave out / \\ : * ? " < > | and a dot at its start', argument="scenes")
    if len(os.fsencode(name)) > 200:
        text = f"the name {name[:20]}... of the scene {scene.path} is longer than 200 bytes"
        raise InputError(text, argument="scenes")
