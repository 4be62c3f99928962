"""Masks that lie beside photographs: a folder of images, black where a photograph is not to be used."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError, MissingError
from fastvggt_jax.sources.photographs import opened


class Masks:
    """The masks of a folder, by the photographs' names: NAME.JPG.png, as COLMAP has them, or NAME.png; where
    photographs come from several folders, in folders of these names, or all together. A mask is of one
    photograph.

    What is 0 is masked; of colours the brightest channel counts, and what is transparent is masked too.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        """Raises MissingError if there is no such folder, InputError for what is no path."""
        if not isinstance(folder, str | os.PathLike):
            text = f"masks must be a folder, not a {type(folder).__name__}"
            raise InputError(text, argument="masks")
        self.folder = Path(folder)
        if not os.path.isdir(self.folder):
            raise MissingError(f"masks {self.folder}: no such folder", argument="masks")
        self._owner: dict[Path, Path] = {}
        self._lock = threading.Lock()

    def of(self, path: Path | None, label: str, size: tuple[int, int]) -> np.ndarray:
        """bool[height, width] of the photograph at `path` of this size (width, height), as it stands upright.

        Raises InputError for a photograph that has no file or no mask, or whose mask has another size;
        ImageError for a mask that is damaged.
        """
        if path is None:
            text = f"masks are found by the names of files, and {label} has none"
            raise InputError(text, argument="masks")
        found = self._find(path)
        try:
            with opened(found) as image:
                if image.size != size:
                    theirs, ours = ("{}x{}".format(*s) for s in (image.size, size))
                    text = f"the mask {found} has {theirs} pixels, but {path} has {ours}"
                    text += ": masks are as large as the photographs, upright"
                    raise InputError(text, argument="masks")
                return _shown(image)
        except ImageError as error:
            raise ImageError(f"the mask {error}") from error

    def _find(self, path: Path) -> Path:
        names = (f"{path.name}.png", f"{path.stem}.png")
        above = Path(os.path.abspath(path)).parent.parts[1:]
        # In as many of its own folders as it lies in.
        for depth in range(len(above), -1, -1):
            folder = self.folder.joinpath(*above[len(above) - depth :])
            for name in names:
                found = folder / name
                if os.path.isfile(found) and os.path.realpath(found) != os.path.realpath(path):
                    return self._of_one(found, path)
        text = f"masks {self.folder} holds none of {path.name}"
        raise InputError(f"{text}: it would be {names[0]} or {names[1]}", argument="masks")

    def _of_one(self, mask: Path, path: Path) -> Path:
        with self._lock:  # photographs are opened in several threads
            owner = self._owner.setdefault(mask, path)
        if owner != path:
            text = f"the mask {mask} may be of {owner} or of {path}"
            raise InputError(f"{text}: put masks into folders as the photographs are", argument="masks")
        return mask


def _shown(image: Image.Image) -> np.ndarray:
    """bool[height, width], where a mask is not black."""
    if image.mode == "P" or image.has_transparency_data:
        image = image.convert("RGBA")
    values = np.asarray(image)
    if image.mode in ("RGBA", "LA"):
        return (values[..., :-1].max(-1) > 0) & (values[..., -1] > 0)
    return values.max(-1) > 0 if values.ndim == 3 else values > 0
