"""More files from a scene that was saved, without the model."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastvggt_jax.errors import Error, FileError, InputError, TargetError
from fastvggt_jax.export.base import (
    Export,
    ExportOptions,
    Format,
    all_formats,
    always_written,
    check_formats,
    write_formats,
)
from fastvggt_jax.export.photographs import find_photographs
from fastvggt_jax.io.files import check_output_folder, output_folder, reason, temporary_sibling
from fastvggt_jax.scene import Scene


def export_saved(
    folder: str | os.PathLike,
    formats: Iterable[str],
    options: ExportOptions | None = None,
    *,
    output: str | os.PathLike | None = None,
    photos: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a saved scene in several formats, into its own folder or as a new `output`, with cameras.json and
    scene.json, which name what is there. Returns a JSON-able account of it.

    photos: the folder that holds the photographs now, if they are no longer where they were.
    overwrite: replace files of these formats that are there already. Nothing else in the folder is touched.

    Raises what Scene.load, check_formats and the writers raise; TargetError for files that are there; and
    InputError for cameras other than those that the folder's files have.
    """
    folder, options = Path(folder), options or ExportOptions()
    chosen = check_formats(always_written(formats))
    if output is None:
        _check_in_place(folder, options, chosen, overwrite)
    else:
        ours = [pattern for format in all_formats() for pattern in format.files]
        check_output_folder(output, overwrite=overwrite, ours=ours)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        scene = Scene.load(folder)
        frames = () if photos is None else find_photographs(scene, photos)
        export = Export.of(scene, options, frames)
        if output is None:
            files = _write_into(folder, export, chosen)
        else:
            with output_folder(output, overwrite=overwrite, ours=ours) as new:
                files = write_formats(export, new, chosen)
    return {
        "output": str(folder if output is None else output),
        "files": sorted(files),
        "photographs": list(scene.names),
        "tracks": export.tracks_report(),
        "warnings": [str(w.message) for w in caught if issubclass(w.category, UserWarning)],
    }


def _check_in_place(folder: Path, options: ExportOptions, formats: list[Format], overwrite: bool) -> None:
    other = {"shared_camera": options.shared_camera, "camera_model": options.camera_model != "PINHOLE"}
    for argument, changes in other.items():
        if changes:
            text = f"{argument} gives other cameras than the files in {folder} have: give a new output folder"
            raise InputError(text, argument=argument)
    if overwrite:
        return
    for format in formats:
        present = [pattern for pattern in format.files if next(folder.glob(pattern), None) is not None]
        if present and not format.describes:
            text = f"{folder} holds {present[0]} already; give another folder, or overwrite to replace it"
            raise TargetError(text, argument="overwrite")


def _write_into(folder: Path, export: Export, formats: list[Format]) -> list[str]:
    """All files are whole beside the folder before the first comes into it."""
    folder = Path(os.path.realpath(folder))
    new = temporary_sibling(folder)
    try:
        names = write_formats(export, new, [format for format in formats if not format.describes])
        for path in sorted(new.rglob("*")):
            if path.is_symlink() or path.is_file():
                target = folder / path.relative_to(new)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        if isinstance(error, Error) and str(new) not in str(error):
            raise
        raise FileError(f"{folder} could not be written to: {reason(error)}", cause=error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return names + write_formats(export, folder, [format for format in formats if format.describes])
