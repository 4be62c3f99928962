"""Protocols by name: what a model sees, which metrics it gets, and over what they are averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastvggt_jax.datasets.base import CATEGORIES, MEDIANS, PAIRS, SCENES, Dataset, Field
from fastvggt_jax.errors import InputError
from fastvggt_jax.evaluate import clouds, metrics
from fastvggt_jax.sources import ImagePolicy

OURS, PI3, VGGT_CO3D, CUT3R, MAPANYTHING = "ours", "pi3-2025-08", "vggt-co3d", "cut3r", "mapanything"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One of them. version: counts changes of ours that change numbers. only: the data sets that it is for,
    () for all. changes: fields of a data set's `Field` that are others here. published: whether
    `evaluate.published` has its numbers. See `Rules` for the others.
    """

    name: str
    version: int
    about: str
    order: str
    mean_over: str | None
    widened: bool
    by_field: bool = True
    only: tuple[str, ...] = ()
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: bool = False


PROTOCOLS = {
    one.name: one
    for one in (
        Protocol(
            OURS,
            1,
            "our own metrics, in the model's own pixels; lengths in percent of the scene's size",
            metrics.I_FROM_J,
            PAIRS,
            widened=False,
            by_field=False,
        ),
        Protocol(
            PI3,
            1,
            "π³'s released evaluation (branch evaluation of yyfz/Pi3, August 2025), after CUT3R, MonST3R, "
            "Spann3R and VGGT; Tanks & Temples after MASt3R-SfM and FlowMap",
            metrics.J_FROM_I,
            None,
            widened=True,
            published=True,
        ),
        Protocol(
            VGGT_CO3D,
            1,
            "VGGT's official script on CO3Dv2: 41 seen categories, the mean over categories, inv(T_i) T_j; "
            "the model's own sizing",
            metrics.IN_WORLD,
            CATEGORIES,
            widened=False,
            only=("co3dv2",),
            published=True,
        ),
        Protocol(
            CUT3R,
            1,
            "CUT3R's and Spann3R's point clouds (eval/mv_recon): no similarity, but the medians of depth and "
            "of distance from the middle; of the middle 224 x 224 of 512 pixels",
            metrics.J_FROM_I,
            SCENES,
            widened=True,
            only=("7scenes", "nrgbd"),
            changes={"width": 512, "multiple": 1, "alignment": MEDIANS, "crop": 224},
        ),
        Protocol(
            MAPANYTHING,
            1,
            "MapAnything's dense N-view benchmark, but for its choice of views and its copies of the data: "
            "seen from the first view, in units of the points' mean distance; the model's own sizing",
            metrics.I_FROM_J,
            SCENES,
            widened=False,
            only=("eth3d",),
            changes={"metrics": ("cameras", "normalised views")},
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Rules:
    """A protocol for one data set.

    wanted: groups of metrics, of `datasets.base.METRICS` and FIELD. order: of relative poses, see
    `metrics.pair_errors`. mean_over: see `datasets.base.Field`, whose others are in `field`. library: for
    clouds.
    """

    protocol: Protocol
    wanted: tuple[str, ...]
    mean_over: str
    field: Field

    @property
    def order(self) -> str:
        return self.protocol.order

    def policy(self, policy: ImagePolicy) -> ImagePolicy:
        """How photographs are sized for a model that by itself wants them so."""
        return policy._replace(mode="wide", size=self.field.width) if self.protocol.widened else policy

    def describe(self) -> dict[str, Any]:
        """JSON values that pin it."""
        found = {"name": self.protocol.name, "version": self.protocol.version, "about": self.protocol.about}
        found |= {"metrics": list(self.wanted), "mean_over": self.mean_over, "relative_pose": self.order}
        if "clouds" in self.wanted:
            found |= {"icp_reach": self.field.reach, "clouds_by": clouds.library()}
            found |= {"clouds_aligned_by": self.field.alignment, "clouds_cropped_to": self.field.crop}
        return found


def default_protocol(dataset: Dataset) -> str:
    """The one of papers, where they measure on it."""
    return OURS if getattr(dataset, "field", None) is None else PI3


def rules_for(dataset: Dataset, name: str | None = None) -> Rules:
    """Raises InputError for an unknown protocol, and for one that is not made for the data set."""
    name = name or default_protocol(dataset)
    protocol = protocol_named(name)
    field = getattr(dataset, "field", None)
    if protocol.by_field and (field is None or (protocol.only and dataset.name not in protocol.only)):
        fits: Sequence[str] = protocol.only or ("the data sets of papers",)
        text = f"protocol {name} is for {', '.join(fits)}, not for {dataset.name}"
        raise InputError(f"{text}: take {default_protocol(dataset)}", argument="protocol")
    field = dataclasses.replace(field or Field(()), **protocol.changes)
    wanted = field.metrics if protocol.by_field else tuple(dataset.metrics)
    return Rules(protocol, wanted, protocol.mean_over or field.mean_over or SCENES, field)


def protocol_named(name: str) -> Protocol:
    """Raises InputError for an unknown one."""
    if name not in PROTOCOLS:
        text = f"protocol must be one of {', '.join(PROTOCOLS)}, not {name!r}"
        raise InputError(text, argument="protocol")
    return PROTOCOLS[name]
