"""What an evaluation has found so far: a file that grows batch by batch, from which a run that was ended goes
on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from fastvggt_jax.errors import Error, FileError, TargetError
from fastvggt_jax.evaluate.runner import LeftOut, Result
from fastvggt_jax.io.files import reason, regular_file, write_file
from fastvggt_jax.io.json_files import parse_json

FORMAT = "fastvggt_jax evaluation so far, 2"
ARRAYS = ("pairs", "baselines", "density")  # fields of a Result that are lists of arrays


class Journal:
    """The file, a JSON line for each batch of scenes, after one that says of what; use as a context manager.

    Each bears a checksum. Lines that are damaged, such as a half-written last one, and those after them are
    left out: their scenes are measured again. Of several lines of one batch the last one holds.

    Attributes:
      batches: by the number of its first scene, what each has given.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        of: Mapping[str, Any],
        frames: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """of: all that the numbers depend on, as JSON values. frames: which photographs of a scene are taken,
        by its name, where that is known: a batch with a scene of others is measured again.

        Raises TargetError if the file is of another evaluation, unless `overwrite`; FileError.
        """
        self.path, self.of, self.frames = Path(path), json.loads(json.dumps(of)), frames or {}
        self.batches: dict[int, dict[str, Result]] = {}
        try:
            lines = regular_file(self.path).read_bytes().splitlines() if os.path.lexists(self.path) else []
            kept = self._read(lines, overwrite)
            write_file(self.path, *(line + b"\n" for line in kept))
            self.file = open(self.path, "ab")  # noqa: SIM115  closed by __exit__
        except OSError as error:
            if isinstance(error, Error):
                raise
            text = f"{self.path} cannot be used: {reason(error)}"
            raise FileError(text, cause=error) from error

    def _read(self, lines: list[bytes], overwrite: bool) -> list[bytes]:
        """Keeps what the lines hold in `batches`; returns those that are whole."""
        first = _parsed(lines[0]) if lines else None
        mine = {"format": FORMAT, "of": self.of}
        if first != mine:
            if lines and not overwrite:
                theirs = first.get("of") if isinstance(first, dict) else None
                theirs = theirs if isinstance(theirs, dict) else None
                names = [name for name in self.of if not theirs or theirs.get(name) != self.of[name]]
                what = f"another evaluation ({', '.join(names)} differ)" if theirs else "something else"
                text = f"{self.path} is of {what}; delete it, give another output, or overwrite it"
                raise TargetError(text, argument="overwrite")
            return [json.dumps(mine).encode()]
        kept = lines[:1]
        for line in lines[1:]:
            found = _parsed(line)
            if not isinstance(found, dict) or found.pop("crc32", None) != _checksum(found):
                break
            results = {name: _result(one) for name, one in found["results"].items()}
            if found["frames"] == self._frames_of(results):
                self.batches[found["start"]] = results
                kept.append(line)
        return kept

    def add(self, start: int, results: Mapping[str, Result]) -> None:
        """What the batch from scene number `start` on has given. Raises FileError."""
        values = {name: _values(result) for name, result in results.items()}
        line = {"start": start, "frames": self._frames_of(results), "results": values}
        try:
            self.file.write(json.dumps(line | {"crc32": _checksum(line)}).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise FileError(f"{self.path} could not be written: {reason(error)}", cause=error) from error

    def _frames_of(self, results: Mapping[str, Result]) -> dict[str, Any]:
        """Of the scenes that were measured."""
        scenes = {scene for result in results.values() for scene in result.scenes}
        return {scene: list(self.frames[scene]) for scene in sorted(scenes) if scene in self.frames}

    def remove(self) -> None:
        """When its evaluation is written."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _checksum(line: dict[str, Any]) -> int:
    """JSON gives back numbers and order as they were, so what was read has the same one."""
    return zlib.crc32(json.dumps(line).encode())


def _values(result: Result) -> dict[str, Any]:
    """JSON has Python's floats whole, so the numbers stay the same bit by bit."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return fields | {name: [array.tolist() for array in fields[name]] for name in ARRAYS}


def _result(values: Mapping[str, Any]) -> Result:
    shaped = {name: [np.asarray(x, np.float64) for x in values[name]] for name in ARRAYS}
    shaped["pairs"] = [x.reshape(2, -1) for x in shaped["pairs"]]
    return Result(**{**values, **shaped, "left_out": [LeftOut(*one) for one in values["left_out"]]})
