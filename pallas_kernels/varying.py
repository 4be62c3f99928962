"""Loops inside `jax.shard_map`, which is strict about what differs between devices."""

from __future__ import annotations

from typing import Any, TypeVar

import jax

T = TypeVar("T")


def varying_as(start: T, like: jax.Array) -> T:
    """Arrays that a loop starts from, said to differ between the devices that `like`, which flows into the
    loop, differs between. Outside `jax.shard_map` they stay as they are.
    """
    axes = axes_of(like)

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - axes_of(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, start)


def result(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """What a kernel returns, which differs between the devices that `like` differs between."""
    kind = getattr(jax.typeof(like), "manual_axis_type", None)
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def axes_of(x: jax.Array) -> frozenset[str]:
    """Of the mesh, along which x differs; jax before 0.10 called them `vma`."""
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying
