"""What tests of commands share: how one is run, and a model that needs no computing."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from typer.testing import CliRunner

from fastvggt_jax.cli.app import app
from fastvggt_jax.models.prediction import Prediction

PHOTOS = Path(__file__).parents[1] / "golden" / "images"


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def reconstruct_args(
    weights, out, *more, photos=(PHOTOS / "landscape_101x67.png", PHOTOS / "rgba_97x55.png")
):
    return ["reconstruct", *photos, "-c", weights, "-o", out, "--size", 56, *more]


def fake_predict(model, params, images, step, points_from, **others):
    """In place of the model, for tests of what comes after it."""
    frames, height, width, _ = images.pixels.shape
    pose_enc = np.zeros((1, frames, 9), np.float32)
    pose_enc[..., 6:] = 1
    depth = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (1, frames, height, width, 1)), jnp.float32)
    with step("compile"), step("run"):
        prediction = Prediction(
            pose_enc=jnp.asarray(pose_enc), depth=depth, depth_conf=depth[..., 0], made_by=type(model)
        )
        if "point" in model.heads:
            sevens = jnp.full((1, frames, height, width, 3), 7.0)
            prediction = prediction.replace(world_points=sevens, world_points_conf=sevens[..., 0])
        return model.reconstruction(prediction, points_from), None


def assert_sentence(result, match: str, code: int, out: Path):
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error ")]
    assert len(lines) == 1 and match in lines[0], result.stderr
    assert "Traceback" not in result.output
    assert not out.exists() and not [p for p in out.parent.iterdir() if p.name.endswith(".tmp")]
