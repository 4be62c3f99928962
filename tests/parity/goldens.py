"""Reading golden files, and the models that they were made with."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from convert.conversion import convert
from fastvggt_jax.pretrained import from_pretrained
from tests import make_checkpoint
from tests.compare import compare

FOLDER = Path(__file__).parents[1] / "golden"
LIMIT = 8.0  # error in units of the noise floor; a correct port lands at 0.5-3
# The tracker feeds sin(1000 x) back into itself: rounding grows 20-500x an iteration, so it has limits of its
# own (absolute, pixels and probabilities; reference README §2). Clean stages (update_in.0, delta.0, corr.0,
# update_out) keep LIMIT.
CHAOTIC = {"coords.0": 2e-5, "coords.1": 3e-4, "coords.2": 3e-3, "coords.3": 3e-2, "vis": 2e-2, "conf": 2e-2}
# What iteration k reads and makes inherits the error of the coordinates before it, through an embedding of up
# to 500 radians a pixel.
CHAOTIC |= {
    f"{x}.{k}": 500 * CHAOTIC[f"coords.{k - 1}"] for x in ("corr", "update_in", "delta") for k in (1, 2, 3)
}


class Goldens:
    """The folder of golden files, one case at a time."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = Path(folder)
        self.floors = json.loads((self.folder / "noise_floor.json").read_text())

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def load(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.folder / f"{name}.safetensors")

    def case(self, name: str) -> dict:
        with safe_open(self.folder / f"{name}.safetensors", "np") as f:
            return json.loads(f.metadata()["case"])

    def rows(self, name: str, mine: dict[str, np.ndarray]) -> list[tuple[str, float, float]]:
        """(stage, error, limit) of each golden tensor of the case that `mine` holds.

        Error in units of the noise floor; for chaotic stages of the tracker absolute.
        """
        golden = self.load(name)
        rows = []
        for key, _, error, _ in compare(golden, mine, self.floors.get(name, {})):
            stage = key.removeprefix("track.")
            in_tracker = key.startswith("track.") or name == "layer_tracker"
            limit = CHAOTIC.get(stage) if in_tracker else None
            if limit is not None and np.shape(mine[key]) == golden[key].shape:
                error = float(np.abs(np.asarray(mine[key], np.float64) - golden[key]).max())
            rows.append((key, error, LIMIT if limit is None else limit))
        return rows

    def missing(self, name: str, mine: dict[str, np.ndarray]) -> list[str]:
        return [k for k in self.load(name) if not k.startswith(("in.", "w.", "w_")) and k not in mine]


@functools.cache
def load_model(name: str, seed: int = 0, folder: Path = FOLDER, workdir: Path | None = None):
    """(model, params) of a pseudo-checkpoint in float32, through the converter and the native file, as a user
    loads them.

    `workdir` keeps the files (5 GB each for the full size) for the next time.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(workdir or temporary)
        native = place / f"{name}-{seed}.native.safetensors"
        if not native.exists():
            official = place / f"{name}-{seed}.safetensors"
            manifest = make_checkpoint.load_manifest(folder / f"{name}.manifest.json")
            make_checkpoint.write_checkpoint(manifest, official, seed)
            with contextlib.redirect_stdout(io.StringIO()):
                convert(str(official), native, config=folder / f"{name}.config.json")
            official.unlink()
        return from_pretrained(native, dtype="float32")


def images_of(golden: dict[str, np.ndarray]) -> np.ndarray:
    """f32[B, F, H, W, 3] from the golden's uint8 NCHW."""
    return np.moveaxis(golden["in.images_u8"], 2, -1).astype(np.float32) / np.float32(255)
