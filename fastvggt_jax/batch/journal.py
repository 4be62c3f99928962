"""batch.jsonl, a file in the folder of results: by what settings they were made, and which folder is of which
scene. From it a run that was killed goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fastvggt_jax.batch.scenes import Scene
from fastvggt_jax.errors import Error, FileError, TargetError
from fastvggt_jax.export.cameras import written_in
from fastvggt_jax.io.files import check_output_folder, held, leftovers, reason, regular_file, write_file
from fastvggt_jax.io.json_files import parse_json
from fastvggt_jax.io.scenes import CAMERAS, piece_folder

NAME, FORMAT = "batch.jsonl", "fastvggt_jax batch"


class Journal:
    """The file, while its folder is held: a line of the settings, one for each scene before its results can
    be there, and one of what became of it.

    A scene is finished when its folder is there, which appears whole, and is another than the one that was
    there when the scene was written down. Damaged lines, such as a half-written last one, are left out.
    """

    def __init__(self, folder: Path, file: BinaryIO, known: dict[str, dict[str, Any]]) -> None:
        self.folder, self._file, self._known = folder, file, known

    def finished(self, scene: Scene) -> bool:
        """Whether its results are there."""
        line, now = self._known.get(scene.name), _state(self.folder / scene.name)
        return line is not None and _is_of(line, scene) and now is not None and now != line["was"]

    def replaces(self, scene: Scene) -> bool:
        """Whether an earlier result is there, which a run that was killed had been told to replace."""
        return _state(self.folder / scene.name) is not None and not self.finished(scene)

    def add(self, scenes: Iterable[Scene]) -> None:
        """Scenes that are to be reconstructed. Raises FileError."""
        for scene in scenes:
            was = _state(self.folder / scene.name)
            line = {"scene": scene.name, "path": scene.path, "options": dict(scene.options), "was": was}
            self._known[scene.name] = line
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Raises FileError."""
        path = self.folder / NAME
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise FileError(f"{path} could not be written: {reason(error)}", cause=error) from error


def clean(target: Path) -> None:
    """Removes what runs that were killed while they wrote it have left; not what is still being written."""
    for path in leftovers(target):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def journal(
    folder: str | os.PathLike, of: Mapping[str, Any], scenes: Sequence[Scene], *, overwrite: bool
) -> Iterator[Journal]:
    """Opens or makes that of a folder. Nothing of the user's is touched: where a scene's results are to be,
    there is nothing, an empty folder, its results, or with `overwrite` others of ours.

    of: all that the results depend on beside the photographs, as JSON values.

    Raises TargetError for a folder that is none, that another program writes, of another batch or with
    something else where a scene's results are to be; FileError.
    """
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise TargetError(f"the output {folder} is a file; give a folder", argument="output")
    path, of = folder / NAME, dict(json.loads(json.dumps(of)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder):
            lines = regular_file(path).read_bytes().splitlines() if os.path.lexists(path) else []
            known = _known(path, lines, of, overwrite)
            for target in (path, *(folder / scene.name for scene in scenes if scene.name in known)):
                clean(target)
            _check_folders(folder, known, scenes, overwrite)
            anew = {scene.name for scene in scenes} if overwrite else set()
            stays = lambda line: line.get("scene") in known and line.get("scene") not in anew
            kept = [{"format": FORMAT, "of": of}, *filter(stays, _parsed(lines[1:]))]
            write_file(path, *(json.dumps(line).encode() + b"\n" for line in kept))
            with open(path, "ab") as file:
                yield Journal(folder, file, {name: line for name, line in known.items() if name not in anew})
    except OSError as error:
        if isinstance(error, Error):
            raise
        text = f"the output folder {folder} cannot be used: {reason(error)}"
        raise FileError(text, cause=error, argument="output") from error


def _known(
    path: Path, lines: list[bytes], of: Mapping[str, Any], overwrite: bool
) -> dict[str, dict[str, Any]]:
    """The last line of each scene by its name; none of a batch of other settings. Raises TargetError for what
    is not our file of this batch.
    """
    if not lines:
        return {}
    first = next(iter(_parsed(lines[:1])), {})
    if first.get("format") != FORMAT:
        text = f"{path} is not of a batch of fastvggt; move it, or give another output"
        raise TargetError(text, argument="output")
    theirs = first.get("of")
    theirs = theirs if isinstance(theirs, dict) else {}
    differ = [name for name in {**of, **theirs} if theirs.get(name) != of.get(name)]
    if differ and not overwrite:
        text = f"{path.parent} holds another batch ({', '.join(differ)} differ): give another output"
        raise TargetError(f"{text}, the same options, or overwrite to replace it", argument="overwrite")
    if differ:
        return {}
    planned = [line for line in _parsed(lines[1:]) if {"path", "options", "was"} <= line.keys()]
    return {str(line.get("scene")): line for line in planned}


def _is_of(line: Mapping[str, Any], scene: Scene) -> bool:
    return line["path"] == scene.path and line["options"] == scene.options


def _parsed(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Those that are whole."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            one = parse_json(line)
            if isinstance(one, dict):
                found.append(one)
    return found


def _check_folders(
    folder: Path, known: dict[str, dict[str, Any]], scenes: Iterable[Scene], overwrite: bool
) -> None:
    """Raises TargetError where something else is where a scene's results are to be."""
    for scene in scenes:
        target = folder / scene.name
        if scene.name.casefold() == NAME:
            text = f"no scene can be called {NAME}, which is this batch's own file"
            raise TargetError(f"{text}: give {scene.path} another name, in an index", argument="scenes")
        line = known.get(scene.name)
        if not overwrite and line is not None and os.path.isdir(target) and _state(target) is not None:
            if not _is_of(line, scene):
                theirs, ours = line["options"] or "no options", dict(scene.options) or "none"
                text = f"{target} is of {line['path']} with {theirs}, not of {scene.path} with {ours}"
                text += ": give it another name in an index"
                raise TargetError(f"{text}, another output, or overwrite to replace it", argument="overwrite")
            continue
        check_output_folder(target, overwrite=overwrite, ours=written_in(target))


def _state(folder: Path) -> list[int] | None:
    """By which one result is told from another; None if there is none. Of a scene in pieces the first
    has it.
    """
    for cameras in (folder / CAMERAS, folder / piece_folder(0) / CAMERAS):
        with contextlib.suppress(OSError):
            stat = os.stat(cameras)
            return [stat.st_ino, stat.st_mtime_ns]
    return None


def settings_of(settings: Any) -> dict[str, Any]:
    """What results depend on, of `pipeline.Settings`, as JSON values."""
    fields = dataclasses.asdict(settings)
    left_out = ("photos", "output", "overwrite", "devices", "bucket")
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in left_out}, default=str))
