"""Protocols by name: what a model sees, which metrics it gets, and over what they are averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastvggt_jax.datasets.base import CATEGORIES, PAIRS, SCENES, Dataset, Field
from fastvggt_jax.errors import InputError
from fastvggt_jax.evaluate import clouds, metrics
from fastvggt_jax.sources import ImagePolicy

OURS, PI3, VGGT_CO3D = "ours", "pi3-2025-08", "vggt-co3d"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One of them. version: counts changes of ours that change numbers. only: the data sets that it is for,
    () for all. See `Rules` for the others.
    """

    name: str
    version: int
    about: str
    order: str
    mean_over: str | None
    widened: bool
    by_field: bool = True
    only: tuple[str, ...] = ()


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
    field = field or Field(())
    wanted = field.metrics if protocol.by_field else tuple(dataset.metrics)
    return Rules(protocol, wanted, protocol.mean_over or field.mean_over or SCENES, field)


def protocol_named(name: str) -> Protocol:
    """Raises InputError for an unknown one."""
    if name not in PROTOCOLS:
        text = f"protocol must be one of {', '.join(PROTOCOLS)}, not {name!r}"
        raise InputError(text, argument="protocol")
    return PROTOCOLS[name]
