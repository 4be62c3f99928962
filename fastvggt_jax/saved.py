"""From a saved scene to more files: what `fastvggt export` runs."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvggt_jax.errors import Error, FileError, InputError, TargetError
from fastvggt_jax.export.base import (
    Export,
    ExportOptions,
    Format,
    always_written,
    check_formats,
    write_formats,
)
from fastvggt_jax.export.cameras import written_in
from fastvggt_jax.export.lenses import as_asked
from fastvggt_jax.export.photographs import find_photographs
from fastvggt_jax.io.files import (
    being_written,
    check_not_in,
    check_output_folder,
    output_folder,
    reason,
    temporary_sibling,
    warn_of_leftovers,
)
from fastvggt_jax.refine.bundle import require
from fastvggt_jax.refine.steps import read_known, refine
from fastvggt_jax.scene import Scene


def export_saved(
    folder: str | os.PathLike,
    formats: Iterable[str],
    options: ExportOptions | None = None,
    *,
    output: str | os.PathLike | None = None,
    photos: str | os.PathLike | None = None,
    bundle: bool = False,
    intrinsics: str | None = None,
    align_to: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a saved scene in several formats, into its own folder or as a new `output`, with cameras.json and
    scene.json, which name what is there. Returns a JSON-able account of it.

    bundle: adjust the cameras first, see `fastvggt_jax.refine.bundle`; intrinsics, align_to: see
      `refine.intrinsics.with_intrinsics` and `refine.alignment.aligned_to`.
    photos: the folder that holds the photographs now, if they are no longer where they were.
    overwrite: replace files of these formats that are there already. Nothing else in the folder is touched.

    Raises what Scene.load, check_formats and the writers raise; TargetError for files that are there; and
    InputError for cameras other than those that the folder's files have.
    """
    folder, options = Path(folder), options or ExportOptions()
    chosen = check_formats(always_written(formats), options)
    if bundle:
        require()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if output is None:
            other = {"bundle_adjust": bundle, "intrinsics": intrinsics, "align_to": align_to}
            _check_in_place(folder, chosen, other, overwrite)
        else:
            check_not_in(output, [folder])
            ours = written_in(output)
            check_output_folder(output, overwrite=overwrite, ours=ours)
        scene = Scene.load(folder)
        if output is None:
            _check_same_cameras(folder, scene, options)
        frames = () if photos is None else find_photographs(scene, photos)
        files: Sequence[Any] = [frame and frame.path for frame in frames] if frames else scene.paths
        if output is not None:
            check_not_in(output, files)
        known = read_known(scene.names, scene.transforms, files, options, intrinsics, align_to)
        scene, measured, adjustment, alignment = refine(scene, options, bundle, known)
        export = Export.of(scene, options, frames, measured=measured)
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
        "bundle_adjustment": adjustment,
        "alignment": alignment,
        "comparison": None,
        "warnings": list(
            dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
        ),
    }


def _check_in_place(folder: Path, formats: list[Format], other: dict[str, Any], overwrite: bool) -> None:
    """Raises InputError, or TargetError, where a folder's own files do not let these be written into it."""
    for argument, changes in other.items():
        if changes:
            raise _other_cameras(argument, folder)
    warn_of_leftovers(folder)
    if overwrite or not os.path.isdir(folder):  # which reading it will say
        return
    for format in formats:
        present = [pattern for pattern in format.files if next(folder.glob(pattern), None) is not None]
        if present and not format.describes:
            text = f"{folder} holds {present[0]} already; give another folder, or overwrite to replace it"
            raise TargetError(text, argument="overwrite")


def _check_same_cameras(folder: Path, scene: Scene, options: ExportOptions) -> None:
    """Raises InputError where options ask for other cameras than the folder's files have."""
    for argument, how in (
        ("shared_camera", dict(shared_camera=options.shared_camera, camera_model="PINHOLE")),
        ("camera_model", dict(shared_camera=False, camera_model=options.camera_model)),
    ):
        if not np.allclose(as_asked(scene, **how).K, scene.K, rtol=1e-5):  # type: ignore[arg-type]
            raise _other_cameras(argument, folder)


def _other_cameras(argument: str, folder: Path) -> InputError:
    text = f"{argument} gives other cameras than the files in {folder} have: give a new output folder"
    return InputError(text, argument=argument)


def _write_into(folder: Path, export: Export, formats: list[Format]) -> list[str]:
    """All files are whole beside the folder before the first comes into it."""
    folder = Path(os.path.realpath(folder))
    new = temporary_sibling(folder)
    try:
        new.mkdir()
        with being_written(new):
            names = write_formats(export, new, [format for format in formats if not format.describes])
        made = [path for path in sorted(new.rglob("*")) if path.is_symlink() or path.is_file()]
        targets = [folder / path.relative_to(new) for path in made]
        for target in targets:
            _check_free(folder, target)
        for path, target in zip(made, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    except OSError as error:
        if isinstance(error, Error) and str(new) not in str(error):
            raise
        raise FileError(f"{folder} could not be written to: {reason(error)}", cause=error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return names + write_formats(export, folder, [format for format in formats if format.describes])


def _check_free(folder: Path, target: Path) -> None:
    """Raises TargetError for a folder where the file is to be, or a file where one of its folders is."""
    inner = [parent for parent in target.parents if parent.is_relative_to(folder)]
    for path in (target, *inner):
        if os.path.lexists(path) and os.path.isdir(path) == (path == target):
            raise TargetError(
                f"{path} is in the way of what is written there: move it, or give another output"
            )
