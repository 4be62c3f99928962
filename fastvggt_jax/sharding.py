"""One scene on several devices, exactly: its frames lie along the axis `frames` of a mesh, and scenes, if
there are several, along `scenes`.

What concerns one frame (the encoder, frame attention, dense heads) is computed where the frame is. Global
attention needs every key: an all-to-all turns tokens of some frames, all heads, into tokens of all frames,
some heads, of which the mask and the kernels see no difference, and another one turns the result back. All of
it runs inside `jax.shard_map`, with its checks on but where kernels cannot take them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fastvggt_jax.errors import InputError
from pallas_kernels import Lengths
from pallas_kernels.varying import axes_of

Array = jax.Array
T = TypeVar("T")
FRAMES, SCENES = "frames", "scenes"  # axes of a mesh
Attend = Callable[[Array, Array, Array], tuple[Array, Array | None]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where the frames of a scene are, as the program of one of the devices sees it: each has `local` of
    them, one device after another. Where they do not come out even the last devices repeat the last frame, to
    which nobody attends then and whose results are cut off.

    Attributes:
      frames: of a scene.
      devices: that share them; 1: there is nothing to exchange.
      axes: of the mesh, along which arrays differ.
      real: how many of the frames count, the first ones, i32[], known at run time; nobody attends to the
        others, whose results mean nothing. None: all. On one device only.
    """

    frames: int
    devices: int = 1
    axes: tuple[str, ...] = ()
    real: Array | None = None

    @property
    def local(self) -> int:
        return -(-self.frames // self.devices)

    @property
    def repeated(self) -> int:
        return self.local * self.devices - self.frames

    def lengths(self, tokens: int = 1) -> Lengths | None:
        """How many count, as queries and as keys, of so many tokens of every frame."""
        return None if self.real is None else Lengths(self.real * tokens, (self.real * tokens,))

    def differing(self, arrays: T) -> T:
        """The same, known to differ between the devices."""

        def cast(x: Array) -> Array:
            missing = tuple(axis for axis in self.axes if axis not in axes_of(x))
            return jax.lax.pcast(x, missing, to="varying") if missing else x

        return jax.tree.map(cast, arrays)

    def numbers(self) -> Array | np.ndarray:
        """i32[local], which frames of the scene these are; the repeated ones count on."""
        own = np.arange(self.local)
        return own if self.devices == 1 else jax.lax.axis_index(FRAMES) * self.local + own

    def all_frames(self, x: Array) -> Array:
        """[B, local, ...] -> [B, F, ...], of every device on every device."""
        if self.devices == 1:
            return x
        return jax.lax.all_gather(x, FRAMES, axis=1, tiled=True)[:, : self.frames]

    def own_frames(self, found: T, axis: int = 1) -> T:
        """Arrays [B, F, ...], frames along `axis` -> [B, local, ...]."""
        if self.devices == 1:
            return found

        def own(x: Array) -> Array:
            x = jnp.pad(x, [(0, self.repeated if a == axis else 0) for a in range(x.ndim)])
            return jax.lax.dynamic_slice_in_dim(x, self.numbers()[0], self.local, axis)

        return jax.tree.map(own, found)

    def over_heads(self, attend: Attend, q: Array, k: Array, v: Array) -> tuple[Array, Array | None]:
        """Attention between all frames, each device for some of the heads.

        Where these do not divide, the first ones are computed once more in the places that are left: a copy
        costs what a head does, while heads of zeros would keep all their blocks.

        Args:
          attend: q, k and v [B, F·P, n, H] -> [B, F·P, n, H] and the density of each head f32[n], or None.
          q, k, v: [B, local·P, N, H].

        Returns:
          [B, local·P, N, H], and the mean density of all heads and scenes f32[], or None.
        """
        N = q.shape[2]
        if self.devices == 1:
            out, density = attend(q, k, v)
        else:
            out, density = self._exchanged(attend, q, k, v)
        if density is None:
            return out, None
        density = density.sum() / N
        if FRAMES in self.axes:
            density = jax.lax.psum(density, FRAMES)
        if SCENES in self.axes:
            density = jax.lax.pmean(density, SCENES)
        return out, density

    def _exchanged(self, attend: Attend, q: Array, k: Array, v: Array) -> tuple[Array, Array | None]:
        """`over_heads`, but the density is that of this device's heads, of a copy 0."""
        T, N = q.shape[1:3]
        tokens, each = T // self.local * self.frames, -(-N // self.devices)
        heads = np.arange(each * self.devices) % N

        def to_heads(x: Array) -> Array:
            x = x if len(heads) == N else x[:, :, heads]
            return jax.lax.all_to_all(x, FRAMES, 2, 1, tiled=True)[:, :tokens]  # [B, F·P, each, H]

        out, density = attend(to_heads(q), to_heads(k), to_heads(v))
        out = jnp.pad(out, ((0, 0), (0, T * self.devices - tokens), (0, 0), (0, 0)))
        out = jax.lax.all_to_all(out, FRAMES, 1, 2, tiled=True)[:, :, :N]
        if density is not None:
            density = jnp.where(jax.lax.axis_index(FRAMES) * each + np.arange(each) < N, density, 0)
        return out, density


def mesh_of(images: Array) -> AbstractMesh | None:
    """The mesh that the images lie on, or else that `jax.set_mesh` has set, if it has an axis `frames` or
    `scenes` to spread them over; inside `jax.shard_map` an axis is none, since arrays are local.

    Raises InputError for a mesh of explicit axes, none of which is of these names: there JAX asks for the
    sharding of every step, which is written down inside `jax.shard_map` alone.
    """
    mesh = jax.typeof(images).sharding.mesh
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = AxisType.Explicit in kinds.values()
    ours = [axis for axis in (SCENES, FRAMES) if kinds.get(axis, AxisType.Manual) != AxisType.Manual]
    if explicit and not ours:
        text = f"images lie on a mesh of explicit axes {mesh.axis_names}, none of which is {FRAMES!r} or "
        text += repr(SCENES)
        remedy = "name an axis so, or make the mesh with axis_types=(jax.sharding.AxisType.Auto,) * its axes"
        raise InputError(f"{text}: {remedy}", argument="images")
    return mesh if ours and (explicit or max(mesh.shape[axis] for axis in ours) > 1) else None


def over_mesh(
    run: Callable[[Spread, Any, Array, Array | None], T],
    mesh: AbstractMesh,
    params: Any,
    images: Array,
    query_points: Array | None,
    specs_of: Callable[[str | None, str | None], T],
) -> T:
    """run(spread, params, images, query_points) on every device of the mesh, of the scenes and frames there.

    Args:
      params: whole on every device.
      images: [B, F, ...]. query_points: [B, ...].
      specs_of: of the names of the axes of scenes and of frames (None: there is none), how what `run` returns
        lies along them, a prefix of it as for `jax.shard_map`.

    Returns:
      What `run` does, of all scenes and frames. Frames lie along their axis, where they divide, and otherwise
      on every device.

    Raises InputError where scenes do not divide by their devices.
    """
    B, F = images.shape[:2]
    scenes, frames = (axis if axis in mesh.axis_names else None for axis in (SCENES, FRAMES))
    if scenes and B % mesh.shape[scenes]:
        text = f"images hold {B} scenes, which must be a multiple of the {mesh.shape[scenes]} devices"
        raise InputError(f"{text} of the mesh's axis {SCENES!r}", argument="images")
    spread = Spread(F, mesh.shape[frames] if frames else 1, tuple(a for a in (scenes, frames) if a))
    if spread.repeated:
        images = jnp.concatenate([images, jnp.repeat(images[:, -1:], spread.repeated, 1)], 1)
    place: Callable[[Any, PartitionSpec], Any] = lambda x, _: x
    if AxisType.Explicit in mesh.axis_types:
        place = lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec))
    specs = specs_of(scenes, frames)
    in_specs = (PartitionSpec(), PartitionSpec(scenes, frames), PartitionSpec(scenes))
    arguments = [place(x, spec) for x, spec in zip((params, images, query_points), in_specs, strict=True)]
    # Loops in a Hopper kernel start from constants, whose types are not those of its inputs where these are
    # checked, and jax 0.12 cannot check the derivative of erf ("Primitive polynomial requires ..."). The same
    # program but for the kernels is checked on CPUs by older ones.
    checked = jax.default_backend() != "gpu" and jax.__version_info__ < (0, 12)
    sharded = jax.shard_map(
        lambda *args: run(spread, *args), mesh=mesh, in_specs=in_specs, out_specs=specs, check_vma=checked
    )
    found = sharded(*arguments)
    if not spread.repeated:
        return found

    def cut(spec: PartitionSpec, arrays: Any) -> Any:
        if FRAMES not in tuple(spec):
            return arrays
        axis = tuple(spec).index(FRAMES)
        whole = PartitionSpec(*(None if name == FRAMES else name for name in spec))
        return jax.tree.map(lambda x: jax.lax.slice_in_dim(place(x, whole), 0, F, axis=axis), arrays)

    return jax.tree.map(cut, specs, found, is_leaf=lambda x: isinstance(x, PartitionSpec))


def check_mesh(mesh: Mesh) -> None:
    """Raises InputError unless it is a mesh with an axis `frames` or `scenes`."""
    if not isinstance(mesh, Mesh):
        raise InputError(f"mesh must be a jax.sharding.Mesh, not a {type(mesh).__name__}", argument="mesh")
    if not {FRAMES, SCENES} & set(mesh.axis_names):
        text = f"mesh has the axes {mesh.axis_names}, none of which is {FRAMES!r} or {SCENES!r}"
        raise InputError(f"{text}: jax.make_mesh((devices,), ({FRAMES!r},)) has one", argument="mesh")


def along_frames(mesh: Mesh, shape: tuple[int, ...], frames: int, memory: str | None = None) -> NamedSharding:
    """How an array lies on a mesh of one host: [B, F, ...] along the frames, if these divide, and all else
    whole on every device; on several hosts everything, so that each host has it.
    """
    spread = len(shape) > 1 and shape[1] == frames and frames % mesh.shape[FRAMES] == 0
    spread = spread and jax.process_count() == 1
    spec = PartitionSpec(None, FRAMES) if spread else PartitionSpec()
    return NamedSharding(mesh, spec, memory_kind=memory)


def frames_mesh(devices: int | str) -> Mesh:
    """A mesh of so many devices, or of "all" there are on all hosts, with the axis `frames`.

    Raises InputError where there are fewer.
    """
    there = jax.devices()
    count = len(there) if devices == "all" else devices
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"devices must be a number from 1 on, or all, not {devices!r}", argument="devices")
    if count > len(there):
        text = f"devices={count} is more than there are: {len(there)} × {there[0].device_kind}"
        raise InputError(text, argument="devices")
    return jax.make_mesh((count,), (FRAMES,), axis_types=(AxisType.Auto,), devices=there[:count])
