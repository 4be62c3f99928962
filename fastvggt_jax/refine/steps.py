"""What is done to a scene after the model, step by step, with what is known of its photographs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvggt_jax.export.base import ExportOptions
from fastvggt_jax.export.lenses import as_asked, check_given, original_sizes
from fastvggt_jax.export.tracks import Tracks
from fastvggt_jax.refine.alignment import aligned_or_as_it_is
from fastvggt_jax.refine.bundle import adjusted_or_as_it_is
from fastvggt_jax.refine.intrinsics import known_K, with_known_K
from fastvggt_jax.refine.positions import Positions, known_positions
from fastvggt_jax.refine.sky import without_sky
from fastvggt_jax.scene import Scene
from fastvggt_jax.sources import ImageTransform


class Known(NamedTuple):
    """K f64[F, 3, 3] in pixels of the photographs, and where cameras stood, if any is known."""

    K: np.ndarray | None
    positions: Positions | None


def read_known(
    names: Sequence[str],
    transforms: Sequence[ImageTransform],
    files: Sequence[str | os.PathLike | None],
    options: ExportOptions,
    intrinsics: str | None,
    align_to: str | None,
    gives: str = "align_to",
) -> Known:
    """What is known of these photographs; `gives` is the argument that gave `align_to`.

    Raises what `known_K` and `known_positions` raise.
    """
    K = None
    if intrinsics is not None:
        sizes = original_sizes(transforms)
        K = known_K(names, sizes, intrinsics, files)
        check_given(K, sizes, shared_camera=options.shared_camera, camera_model=options.camera_model)
    return Known(K, None if align_to is None else known_positions(align_to, names, gives))


class Refined(NamedTuple):
    """A scene after what was to be done to it, tracks that were measured for it, and accounts of bundle
    adjustment and of alignment.
    """

    scene: Scene
    tracks: Tracks | None
    adjustment: dict[str, Any] | None
    alignment: dict[str, Any] | None


def refine(scene: Scene, options: ExportOptions, bundle: bool, known: Known, *, sky: bool = False) -> Refined:
    """sky: mask it first. bundle: adjust the cameras, by tracks that are measured."""
    tracks = adjustment = alignment = None
    if sky:
        scene = without_sky(scene)
    if known.K is not None:
        scene = with_known_K(scene, known.K)
    scene = as_asked(scene, shared_camera=options.shared_camera, camera_model=options.camera_model)
    if bundle:
        scene, tracks, adjustment = adjusted_or_as_it_is(
            scene,
            conf_percentile=options.conf_percentile,
            shared_camera=options.shared_camera,
            camera_model=options.camera_model,
        )
    if known.positions is not None:
        scene, tracks, alignment = aligned_or_as_it_is(scene, known.positions, tracks)
    return Refined(scene, tracks, adjustment, alignment)
