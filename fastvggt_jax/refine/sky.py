"""Sky, by what the model says it is unsure of."""

from __future__ import annotations

import dataclasses

import numpy as np

from fastvggt_jax.scene import Scene


def without_sky(scene: Scene) -> Scene:
    """The scene without the pixels that hang together with a photograph's upper edge and whose confidence is
    that of nothing (`Scene.conf_floor`): they are not valid any more.
    """
    from scipy import ndimage

    valid = scene.valid.copy()
    for shown, conf in zip(valid, scene.depth_conf, strict=True):
        unsure = shown & (conf < scene.conf_floor)
        labels, _ = ndimage.label(unsure, np.ones((3, 3)))
        top = np.argmax(shown, 0)  # the first row that shows the photograph, of each column
        at_edge = labels[top, np.arange(len(top))]
        shown &= ~np.isin(labels, at_edge[at_edge > 0])
    return dataclasses.replace(scene, valid=valid)
