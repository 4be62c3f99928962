"""From photographs to files, the whole way in timed steps: what `fastvggt reconstruct` runs; and from a saved
scene to more files: what `fastvggt export` runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastvggt_jax.errors import (
    Error,
    FileError,
    InputError,
    OutOfMemoryError,
    TargetError,
    out_of_memory,
    whole_number,
)
from fastvggt_jax.evaluate.metrics import auc, pair_errors
from fastvggt_jax.export.base import (
    Export,
    ExportOptions,
    Format,
    all_formats,
    always_written,
    check_formats,
    write_formats,
)
from fastvggt_jax.export.cameras import written_in
from fastvggt_jax.export.lenses import as_asked, check_given, original_sizes
from fastvggt_jax.export.photographs import find_photographs
from fastvggt_jax.export.tracks import Followed, Tracks
from fastvggt_jax.io.files import (
    being_written,
    check_output_folder,
    check_space,
    output_folder,
    reason,
    temporary_sibling,
    warn_of_leftovers,
)
from fastvggt_jax.io.scenes import piece_folder
from fastvggt_jax.models.base import CONDITIONS, Model
from fastvggt_jax.models.conditions import Conditions
from fastvggt_jax.models.memory import fits, needed_bytes
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.pretrained import from_pretrained, read_model
from fastvggt_jax.refine.bundle import adjusted_or_as_it_is, require
from fastvggt_jax.refine.given import conditions_of
from fastvggt_jax.refine.known import (
    Positions,
    aligned_or_as_it_is,
    known_cameras,
    known_K,
    known_positions,
    poses_in,
    with_known_K,
)
from fastvggt_jax.refine.queries import Queries, choose_queries
from fastvggt_jax.refine.sky import without_sky
from fastvggt_jax.scene import Scene, to_scene
from fastvggt_jax.sequence import (
    LEAST,
    Joined,
    Piece,
    describe,
    join,
    overlap_of,
    plan,
)
from fastvggt_jax.sharding import along_frames, frames_mesh
from fastvggt_jax.sources import Images, ImageTransform, load_images
from fastvggt_jax.sources.lists import COLMAP_FOLDER, is_list, listed
from fastvggt_jax.sources.video import Video, is_video
from fastvggt_jax.sparsity import Sparsity

Step = Callable[[str], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to reconstruct and how; the options of the command line, which documents them.

    cameras.json is always among the formats, since by it a later run knows the folder for one of ours, and so
    is scene.json, which says what is in the folder.
    """

    photos: tuple[str, ...]
    weights: str
    output: Path
    mode: str | None = None  # None: the model's own
    size: int | None = None  # None: the model's own
    sparsity: Sparsity | None = None
    float8_scores: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    points_from: str | None = None
    formats: tuple[str, ...] = ()
    export: ExportOptions = ExportOptions()  # noqa: RUF009  immutable
    white: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    masks: str | None = None
    paint_masks: bool = False
    mask_sky: bool = False
    intrinsics: str | None = None
    align_to: str | None = None
    cameras: str | None = None
    depth: str | None = None
    bundle: bool = False
    tracks: bool = False
    chunk: int | None = None  # photographs at a time; None: all, or what fits
    overlap: int | None = None  # of these, in two chunks; None: a quarter
    loops: bool = False
    devices: int | str | None = None  # how many share the frames, or all; None: the first computes
    skip_bad: bool = False
    overwrite: bool = False


class Plan(NamedTuple):
    """What settings come to, before anything is read: the model without its parameters, those of its heads
    that are needed, and the formats; and whether it takes what is known beforehand as inputs.
    """

    model: Model
    heads: tuple[str, ...]
    formats: list[Format]
    as_inputs: bool


class Loaded(NamedTuple):
    """Photographs that are to be reconstructed, what is known of them, and the files that may be replaced."""

    settings: Settings
    plan: Plan
    images: Images
    known: _Known
    conditions: Conditions | None
    counts: dict[str, int]  # of how many photographs what was asked for is known
    ours: list[str]


class Computed(NamedTuple):
    """What the model has found, one piece if all hangs together; chunks: by which, if not all at once;
    density: the share of blocks that each sparse layer has attended to.
    """

    joined: Joined
    chunks: list[np.ndarray] | None
    density: list[float] | None
    queries: Queries | None
    model: Model
    parameters: int
    devices: int


def reconstruct(settings: Settings, step: Step) -> dict[str, Any]:
    """Run the steps, each inside `with step(name)`, and return a JSON-able account of what was done.

    All that can be known to be wrong beforehand is checked before anything is computed. Raises what
    load_images, from_pretrained, to_scene and the writers raise, and OutOfMemoryError.
    """
    s = settings
    mesh = None if s.devices is None else frames_mesh(s.devices)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _check_output(s)  # before weights are converted
        loaded = load(s, planned(s), step)
        with step("load weights"):
            model, params = load_model(s, loaded.plan, mesh)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            computed = compute(loaded, model, params, step, mesh)
        if jax.process_index():  # the first of several hosts writes
            return {}
        del params
        report = write(loaded, computed, step)
    texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return report | {"warnings": list(dict.fromkeys(texts))}


def planned(settings: Settings) -> Plan:
    """Raises what is wrong with the settings, whatever the photographs."""
    s = settings
    formats = check_formats(always_written(s.formats), s.export)
    if s.bundle:
        require()
    if s.bundle and s.tracks:
        text = "tracks follows points by the model, and bundle adjustment by what photographs show"
        text += ": leave one of the two out"
        raise InputError(text, argument="tracks")
    _check_chunk(s)
    model = read_model(s.weights)
    heads = model.heads_for(s.points_from)
    as_inputs = CONDITIONS in model.heads and any(one is not None for one in _asked(s).values())
    if as_inputs and s.devices is not None:
        text = "what is known beforehand goes into this model on one device only: leave devices out"
        raise InputError(text, argument="devices")
    if as_inputs:
        heads = (*heads, CONDITIONS)
    elif s.depth is not None:
        text = f"depth is for a model that takes it as input, such as Pi3X, and {s.weights} is none"
        raise InputError(text, argument="depth")
    if s.tracks:
        heads = (*heads, _track_head(model, s.weights, formats))
    return Plan(model, heads, formats, as_inputs)


def _asked(settings: Settings) -> dict[str, str | None]:
    s = settings
    return {"cameras": s.cameras, "intrinsics": s.intrinsics, "depth": s.depth}


def load(settings: Settings, plan: Plan, step: Step) -> Loaded:
    """The photographs, and what is wrong with them and the output folder, before the model runs."""
    s = settings
    ours = _check_output(s)
    with step("load photographs"):
        images = load_images(
            _with_video_options(s),
            plan.model.image_policy,
            mode=s.mode,
            size=s.size,
            white=s.white,
            masks=s.masks,
            paint_masks=s.paint_masks,
            skip_bad=s.skip_bad,
        )
    _check_not_in(s.output, images.paths)
    conditions, counts = conditions_of(images, **_asked(s)) if plan.as_inputs else (None, {})
    _warn_of_few(s, counts, len(images.names))
    intrinsics, align_to = None if plan.as_inputs else s.intrinsics, s.align_to
    if intrinsics is not None:
        counts["intrinsics"] = len(images.names)
    if not plan.as_inputs and s.cameras is not None:  # they act after the model
        counts["cameras"] = _usable_after(images, s.cameras)
        align_to = align_to or s.cameras
        if counts["cameras"] == len(images.names):
            intrinsics = intrinsics or s.cameras
    known = _known(images.names, images.transforms, images.paths, s.export, intrinsics, align_to)
    check_space(s.output, images.pixels[..., 0].size * sum(format.pixel_bytes for format in plan.formats))
    return Loaded(s, plan, images, known, conditions, counts, ours)


def _check_output(settings: Settings) -> list[str]:
    """Raises as check_output_folder; returns what overwrite may replace."""
    ours = written_in(settings.output)
    check_output_folder(settings.output, overwrite=settings.overwrite, ours=ours)
    return ours


def load_model(settings: Settings, plan: Plan, mesh: Mesh | None = None) -> tuple[Model, Any]:
    """(the model as it is to be run here, its parameters)."""
    with memory_errors():
        model, params = from_pretrained(
            settings.weights,
            heads=plan.heads,
            sparsity=settings.sparsity,
            dtype=compute_dtype(settings.dtype),
            param_dtype="compute",
            mesh=mesh,
        )
    return _with_fast_attention(model).clone(float8_scores=settings.float8_scores), params


def compute(
    loaded: Loaded,
    model: Model,
    params: Any,
    step: Step,
    mesh: Mesh | None = None,
    programs: Programs | None = None,
) -> Computed:
    """Run the model. programs: those that were compiled for other scenes of this model, see `predict`."""
    s, images = loaded.settings, loaded.images
    if why := model.why_unused_float8(*images.pixels.shape[:3]):
        text = f"float8_scores rounds here and makes nothing faster, so leave it out: {why}"
        warnings.warn(text, stacklevel=2)
    queries = None
    if s.tracks:
        queries = choose_queries(images.pixels, images.shown(), s.export.track_points)
    programs = Programs() if programs is None else programs  # of chunks, which are all of one shape
    run = partial(predict, model, params, step=step, mesh=mesh, programs=programs)
    joined, density, chunks = _joined(
        partial(run, points_from=s.points_from), loaded, model, params, step, queries
    )
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return Computed(joined, chunks, density, queries, model, parameters, 1 if mesh is None else mesh.size)


def write(loaded: Loaded, computed: Computed, step: Step) -> dict[str, Any]:
    """The files, and a JSON-able account of what was done."""
    s, images, known, model = loaded.settings, loaded.images, loaded.known, computed.model
    wanted = s.bundle or s.mask_sky or known.K is not None or known.positions is not None
    made: list[tuple[Export, _Refined]] = []
    with step("refine") if wanted else contextlib.nullcontext():
        for frames, found in computed.joined.pieces:
            whole = len(frames) == len(images.names)
            shown = images if whole else images.some(frames)
            refined = _refined(
                to_scene(found, shown),
                s.export,
                s.bundle,
                known if whole else _known_of(frames, shown, known),
                sky=s.mask_sky,
            )
            followed = _followed(computed.queries, found)
            made.append((Export.of(refined.scene, s.export, shown.frames, followed, refined.tracks), refined))
    with step("write"):
        if not sum(len(export.cloud) for export, _ in made):
            warnings.warn("no point is left: lower conf_percentile or raise edge_filter", stacklevel=2)
        with output_folder(s.output, overwrite=s.overwrite, ours=loaded.ours) as folder:
            files = _write_pieces(folder, [export for export, _ in made], loaded.plan.formats)
    reports = [_report(export, refined, s.photos) for export, refined in made]
    sequence = None if computed.chunks is None else computed.joined.account(computed.chunks)
    if sequence is not None and len(made) > 1:
        sequence["pieces"] = [
            {"folder": piece_folder(i), "photographs": list(export.scene.names)} | reports[i]
            for i, (export, _) in enumerate(made)
        ]
    return {
        "output": str(s.output),
        "files": sorted(files),
        "photographs": list(images.names),
        "skipped": [{"file": file, "reason": reason} for file, reason in images.skipped],
        "size": {
            "width": images.pixels.shape[2],
            "height": images.pixels.shape[1],
            "mode": s.mode or model.image_policy.mode,
        },
        **(reports[0] if len(reports) == 1 else _of_all(reports)),
        "known": _account(_asked(s), loaded.counts, loaded.plan.as_inputs),
        "sequence": sequence,
        "model": {
            "class": type(model).__name__,
            "heads": list(model.heads),
            "parameters": computed.parameters,
            "dtype": jnp.dtype(model.dtype).name,
            "float8_scores": model.float8_scores,
            "density": computed.density,
        },
        "device": f"{computed.devices} × " * (computed.devices > 1) + jax.devices()[0].device_kind,
        "peak_memory_bytes": peak_memory(),
    }


def _check_chunk(s: Settings) -> None:
    """Raises InputError where chunks cannot be as they are asked for."""
    if s.overlap is not None:
        whole_number("overlap", s.overlap, least=1)
    if s.chunk is None:
        return
    overlap_of(s.chunk, s.overlap)
    if s.tracks:
        text = "tracks follows points through all photographs at once, not in chunks: leave it out, or chunk"
        raise InputError(text, argument="tracks")
    if s.devices is not None and jax.process_count() > 1:
        raise InputError("chunk is for the devices of one host: leave it out", argument="chunk")


def _write_pieces(folder: Path, exports: Sequence[Export], formats: list[Format]) -> list[str]:
    """The names of the files, in the folder: one scene's, or in folders in it those of several."""
    if len(exports) == 1:
        return write_formats(exports[0], folder, formats)
    files = []
    for number, export in enumerate(exports):
        name = piece_folder(number)
        (folder / name).mkdir()
        files += [f"{name}/{file}" for file in write_formats(export, folder / name, formats)]
    return files


def _report(export: Export, refined: _Refined, photos: Sequence[str]) -> dict[str, Any]:
    return {
        "points": len(export.cloud),
        "tracks": export.tracks_report(),
        "bundle_adjustment": refined.adjustment,
        "alignment": refined.alignment,
        "comparison": _comparison(export.scene, photos),
        "intrinsics": list(export.scene.intrinsics),
    }


def _of_all(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of pieces, which have their own of what is None here."""
    nothing: dict[str, Any] = dict.fromkeys(reports[0])
    intrinsics = [one for report in reports for one in report["intrinsics"]]
    return nothing | {"points": sum(report["points"] for report in reports), "intrinsics": intrinsics}


def _known_of(frames: np.ndarray, images: Images, known: _Known) -> _Known:
    """What is known of a piece, whose own positions may be too few."""
    positions = None
    if known.positions is not None:
        try:
            positions = known_positions(known.positions.path, images.names)
        except Error as error:
            warnings.warn(f"the piece from {images.names[0]} on is not aligned: {error}", stacklevel=2)
    return _Known(None if known.K is None else known.K[frames], positions)


def _with_video_options(settings: Settings) -> list[str | Path | Video]:
    """What to load, videos with how many frames of them. Raises InputError where there is no video."""
    chosen: dict[str, Any] = {"fps": settings.fps, "max_frames": settings.max_frames}
    given = {name: value for name, value in chosen.items() if value is not None}
    if not given:
        return list(settings.photos)
    photos = [path for one in settings.photos for path in (listed(one) if is_list(one) else (one,))]
    if not any(map(is_video, photos)):
        name = next(iter(given))
        raise InputError(f"{name} is for a video, and none was given", argument=name)
    return [Video(one, **given) if is_video(one) else one for one in photos]


def _comparison(scene: Scene, photos: Sequence[str]) -> dict[str, Any] | None:
    """How far the scene's cameras are from those of the COLMAP folder that its photographs were named by, of
    all pairs of photographs; None for other photographs.
    """
    if len(photos) != 1 or not COLMAP_FOLDER.recognises(photos[0]):
        return None
    known = poses_in(os.path.expanduser(photos[0]), scene.names)
    if len(known) < 2:
        return None
    errors = pair_errors(scene.cam_from_world[list(known)], np.stack(list(known.values())))
    rotation, translation = (round(float(np.median(one)), 3) for one in errors)
    return {
        "folder": photos[0],
        "photographs": len(known),
        "rotation_degrees": rotation,
        "translation_degrees": translation,
        "auc30": round(auc(*errors, 30), 2),
    }


def _warn_of_few(s: Settings, counts: dict[str, int], every: int) -> None:
    """Where the model is told something of some of the photographs only."""
    for name, count in counts.items():
        if count < every:
            text = f"{name} {_asked(s)[name]} is of {count} of {every} photographs"
            warnings.warn(f"{text}: the model is told of these alone", stacklevel=3)


def _usable_after(images: Images, cameras: str) -> int:
    """Of how many photographs the cameras are known; InputError for one, to which no scene can be aligned. A
    warning where some are missing.
    """
    every = len(images.names)
    count = len(known_cameras(images.names, original_sizes(images.transforms), cameras, images.paths))
    if count < 2 <= every:
        text = f"cameras {cameras} names one of the photographs, at least two are needed to align the scene"
        raise InputError(text, argument="cameras")
    if count < every:
        text = f"cameras {cameras} names {count} of {every} photographs"
        warnings.warn(f"{text}: the scene is aligned to these, and its K stays the model's", stacklevel=3)
    return count


def _account(
    asked: dict[str, str | None], counts: dict[str, int], as_inputs: bool
) -> dict[str, dict[str, Any]] | None:
    """Of what was known beforehand, whether the model was told, and of how many photographs."""
    found: dict[str, dict[str, Any]] = {}
    for name, file in asked.items():
        if file is not None:
            found[name] = {"file": file, "use": "input of the model" if as_inputs else "after the model"}
            found[name] |= {"photographs": counts[name]} if name in counts else {}
    return found or None


class _Known(NamedTuple):
    """K f64[F, 3, 3] in pixels of the photographs, and where cameras stood, if any is known."""

    K: np.ndarray | None
    positions: Positions | None


def _known(
    names: Sequence[str],
    transforms: Sequence[ImageTransform],
    files: Sequence[str | os.PathLike | None],
    options: ExportOptions,
    intrinsics: str | None,
    align_to: str | None,
) -> _Known:
    """What is known of these photographs. Raises what `known_K` and `known_positions` raise."""
    K = None
    if intrinsics is not None:
        sizes = original_sizes(transforms)
        K = known_K(names, sizes, intrinsics, files)
        check_given(K, sizes, shared_camera=options.shared_camera, camera_model=options.camera_model)
    return _Known(K, None if align_to is None else known_positions(align_to, names))


class _Refined(NamedTuple):
    """A scene after what was to be done to it, tracks that were measured for it, and accounts of bundle
    adjustment and of alignment.
    """

    scene: Scene
    tracks: Tracks | None
    adjustment: dict[str, Any] | None
    alignment: dict[str, Any] | None


def _refined(
    scene: Scene, options: ExportOptions, bundle: bool, known: _Known, *, sky: bool = False
) -> _Refined:
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
    return _Refined(scene, tracks, adjustment, alignment)


def _track_head(model: Model, weights: str, formats: list[Format]) -> str:
    """The name of the head that follows points. Raises InputError if none is there, or no use for it."""
    if "track" not in model.heads:
        text = f"tracks needs a model with a track head, and {weights} has {', '.join(model.heads)}"
        raise InputError(f"{text}: take weights of VGGT with its track head", argument="tracks")
    if not any(format.tracked for format in formats):
        wanted = ", ".join(format.name for format in all_formats() if format.tracked)
        text = f"tracks is about {wanted}, of which none is written: add one to the formats"
        raise InputError(text, argument="tracks")
    return "track"


def _followed(queries: Queries | None, found: Reconstruction) -> Followed | None:
    if queries is None or found.track is None or found.track_conf is None:
        return None
    return Followed(queries.pixel, np.asarray(found.track)[0], np.asarray(found.track_conf)[0])


def _with_fast_attention(model: Model) -> Model:
    """Dense where block-sparse attention would only be slower, which is said."""
    why = model.why_slower_sparse()
    if why is None:
        return model
    warnings.warn(f"dense attention was computed, which is faster here than sparse: {why}", stacklevel=3)
    return model.clone(sparsity=None)


def compute_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 where there is hardware for it; a CPU, which is slower in it, gets float32."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


class _DoesNotFit(OutOfMemoryError):
    """A program is too large for the device, which is known before it runs; `needs` bytes, None where nobody
    knows.
    """

    needs: int | None = None


def _joined(
    run: Callable[..., tuple[Reconstruction, list[float] | None]],
    loaded: Loaded,
    model: Model,
    params: Any,
    step: Step,
    queries: Queries | None,
) -> tuple[Joined, list[float] | None, list[np.ndarray] | None]:
    """All photographs at once, or in chunks if that is asked for or they do not fit; the density; the chunks.

    run: `predict` of images.
    """
    s, images = loaded.settings, loaded.images
    frames = len(images.names)

    def in_chunks(
        chunk: int, overlap: int | None
    ) -> tuple[Joined, list[float] | None, list[np.ndarray] | None]:
        """No more than one chunk's results are on the device at a time."""
        chunks, densities = plan(frames, chunk, overlap), []

        def found(numbers: np.ndarray) -> Reconstruction:
            some = jax.tree.map(lambda x: x[:, numbers], loaded.conditions)
            result, density = run(images.some(numbers), conditions=some)
            densities.append(density)
            return result

        seen = None
        if s.loops and len(chunks) > 2:  # two are neighbours
            with step("look for loops"), memory_errors(images.some(chunks[0]), params):
                seen = describe(model, params, images.pixels)
        joined = join(found, chunks, images.shown(), seen)
        known = [density for density in densities if density is not None]
        _warn_of_joints(joined, chunks, images.names, s)
        return joined, [round(float(x), 4) for x in np.mean(known, 0)] if known else None, chunks

    if s.chunk is not None and frames > s.chunk:
        return in_chunks(s.chunk, s.overlap)
    if s.chunk is not None:
        text = f"{frames} photographs are no more than a chunk of {s.chunk}: they are reconstructed at once"
        warnings.warn(text, stacklevel=2)
    try:
        result, density = run(images, queries=queries, conditions=loaded.conditions)
        about = " and ".join(["overlap"] * (s.overlap is not None) + ["loops"] * s.loops)
        if about:
            text = f"{about} did nothing: it is about chunks, and all photographs were reconstructed at once"
            warnings.warn(text, stacklevel=2)
        return Joined([Piece(np.arange(frames), result)], [], [], []), density, None
    except _DoesNotFit as error:
        if queries is not None or s.chunk is not None or jax.process_count() > 1:
            raise
        too_many = error
    chunk = _largest_chunk(frames, too_many.needs, params)
    while chunk >= LEAST:
        overlap = min(overlap_of(chunk, None) if s.overlap is None else s.overlap, chunk // 2)
        text = f"{frames} photographs do not fit into memory at once: they are reconstructed in chunks of "
        text += f"{chunk} that overlap by {overlap} or more, which is less exact"
        try:
            found = in_chunks(chunk, overlap)
        except _DoesNotFit:
            chunk = chunk * 4 // 5
            continue
        warnings.warn(text, stacklevel=2)
        return found
    raise too_many


def _largest_chunk(frames: int, needs: int | None, params: Any) -> int:
    """About how many of `frames` fit, which together need so many bytes, with a twentieth to spare."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    if needs is None or limit is None or needs <= weights:
        return frames // 2
    return min(int(0.95 * frames * (limit - weights) / (needs - weights)), frames - 1)


def _warn_of_joints(joined: Joined, chunks: list[np.ndarray], names: Sequence[str], s: Settings) -> None:
    """Of chunks that do not hang together, or hardly."""
    for text in joined.warnings(chunks, names):
        warnings.warn(text, stacklevel=3)
    if len(joined.pieces) > 1:
        folders = f"{s.output / piece_folder(0)} to {piece_folder(len(joined.pieces) - 1)}"
        text = f"the photographs come out as {len(joined.pieces)} scenes that do not hang together: they are "
        text += f"written apart, {folders}; a larger overlap or more photographs between them may help"
        warnings.warn(text, stacklevel=3)
    if s.loops and not joined.loops:
        few = ": two chunks are neighbours, and have none" if len(chunks) < 3 else ""
        warnings.warn(f"no loop was found that could be closed{few}", stacklevel=3)


class Program(NamedTuple):
    """A compiled one. model: as it was compiled; one_confidence: that of points is that of depth, which would
    leave the device twice.
    """

    compiled: jax.stages.Compiled
    model: Model
    one_confidence: bool


class Programs(dict[Any, Program]):
    """The last few that were compiled, by the shapes of what they take; all of one model and its options."""

    MOST = 8  # scenes come sorted by size, so that equal ones follow one another

    def of(self, key: Any, make: Callable[[], Program]) -> Program:
        program = self.pop(key, None) or make()
        self[key] = program
        while len(self) > self.MOST:
            del self[next(iter(self))]
        return program


def predict(
    model: Model,
    params: Any,
    images: Images,
    step: Step,
    points_from: str | None = None,
    queries: Queries | None = None,
    mesh: Mesh | None = None,
    programs: Programs | None = None,
    conditions: Conditions | None = None,
) -> tuple[Reconstruction, list[float] | None]:
    """(the reconstruction of these images, computed; the share of blocks that each sparse layer has attended
    to).

    mesh: that is set and shares the frames, if any.
    programs: where to find those of other scenes, of this model, points_from and mesh.
    conditions: what is known of the views, for a model that takes them.
    """
    pixels = images.pixels[None]
    asked: tuple[Any, ...] = () if conditions is None else (conditions,)
    asked = asked if queries is None else (*asked, np.asarray(queries.xy)[None])
    given = (params, asked)
    frames = None if queries is None else queries.frames
    key = (pixels.shape, frames, repr(jax.tree.map(np.shape, asked)))
    with step("compile"), memory_errors(images, params):
        make = partial(_fitting, model, given, pixels, points_from, frames, mesh)
        program = make() if programs is None else programs.of(key, make)
    compiled = program.compiled
    if not fits(compiled):
        error = _DoesNotFit(_memory_sentence(images, params, compiled, ""))
        error.needs = needed_bytes(compiled)
        raise error
    if program.model.low_memory and not model.low_memory:
        text = "memory is scarce: what is computed waits in the host's memory, which takes a little longer"
        warnings.warn(text, stacklevel=2)
    with step("run"), memory_errors(images, params, compiled):
        place = None if mesh is None else along_frames(mesh, pixels.shape, pixels.shape[1])
        found, density = jax.block_until_ready(compiled(given, jax.device_put(pixels, place)))
    if program.one_confidence:
        found = dataclasses.replace(found, conf=found.depth_conf)
    return found, None if density is None else [round(float(d), 4) for d in density]


def _fitting(
    model: Model,
    given: Any,
    pixels: np.ndarray,
    points_from: str | None,
    frames: tuple[int, ...] | None,
    mesh: Mesh | None,
) -> Program:
    """The program, or where that does not fit the one that takes less of the device's memory."""
    one_confidence = False

    def run(model: Model, given: Any, pixels: jax.Array) -> tuple[Reconstruction, jax.Array | None]:
        nonlocal one_confidence
        params, asked = given
        asked = asked if frames is None else (*asked, frames)
        prediction = model.apply(params, pixels, *asked)
        found = model.reconstruction(prediction, points_from)
        one_confidence = found.conf is found.depth_conf
        if one_confidence:
            found = dataclasses.replace(found, conf=None)  # type: ignore[arg-type]
        return found, prediction.density

    compiled = _compiled(run, given, pixels, mesh, model)
    if not fits(compiled):
        model = model.clone(low_memory=True)
        compiled = _compiled(run, given, pixels, mesh, model)
    return Program(compiled, model, one_confidence)


def _compiled(
    run: Callable, params: Any, pixels: np.ndarray, mesh: Mesh | None, model: Model
) -> jax.stages.Compiled:
    """run(model, params, pixels), whose results come to be in the host's memory."""
    function, kind = partial(run, model), _host_memory()
    images = jax.ShapeDtypeStruct(pixels.shape, pixels.dtype)
    host: Any = None
    if mesh is not None:
        lies = partial(along_frames, mesh, frames=pixels.shape[1])
        results = jax.eval_shape(function, params, images)
        host = jax.tree.map(lambda x: lies(x.shape, memory=kind), results)
        images = jax.ShapeDtypeStruct(pixels.shape, pixels.dtype, sharding=lies(pixels.shape))
    elif kind is not None:
        host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
    lowered = jax.jit(function, out_shardings=host).lower(params, images)
    with ThreadPoolExecutor(1) as pool:
        reserved = pool.submit(_reserve, lowered, host) if kind is not None else None
        # It runs once: XLA's own Triton products are no faster by what compiling them takes longer.
        gpu = jax.default_backend() == "gpu"
        options: dict[str, str | bool] | None = {"xla_gpu_enable_triton_gemm": False} if gpu else None
        compiled = lowered.compile(compiler_options=options)
        if reserved is not None:
            reserved.result()
    return compiled


def _host_memory() -> str | None:
    """Of a GPU's host what the GPU itself writes to, forty times as fast as JAX copies to other memory, and
    numpy reads as it lies there; None for a CPU.
    """
    kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    return None if jax.default_backend() == "cpu" or "pinned_host" not in kinds else "pinned_host"


def _reserve(lowered: jax.stages.Lowered, host: Any) -> None:
    """Makes JAX own as much of the host's memory as the results take, which is slow the first time."""
    held = []
    results = jax.tree.leaves(lowered.out_info)
    shardings = jax.tree.leaves(jax.tree.broadcast(host, lowered.out_info))
    for one, sharding in zip(results, shardings, strict=True):
        zeros = jax.jit(partial(jnp.zeros, one.shape, one.dtype), out_shardings=sharding)
        held.append(jax.block_until_ready(zeros()))


@contextlib.contextmanager
def memory_errors(
    images: Images | None = None, params: Any = None, compiled: jax.stages.Compiled | None = None
) -> Iterator[None]:
    """Turns XLA's out-of-memory errors into an OutOfMemoryError with an estimate of what is needed."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        raise OutOfMemoryError(_memory_sentence(images, params, compiled, str(error))) from error


def _memory_sentence(
    images: Images | None, params: Any, compiled: jax.stages.Compiled | None, error: str
) -> str:
    device = jax.local_devices()[0]
    text = f"out of memory on {device.device_kind}: "
    if images is None or params is None:
        text += "the weights alone do not fit"
        advice = "free the device, or convert the weights to bfloat16"
    else:
        frames, height, width, _ = images.pixels.shape
        text += f"{frames} photographs of {width}x{height} pixels need "
        advice = "take fewer photographs, a smaller size, or weights in bfloat16 (sparsity saves no memory)"
        weights = sum(x.nbytes for x in jax.tree.leaves(params))
        needed = needed_bytes(compiled) if compiled is not None else None
        failed = re.search(r"allocat\w+ (\d+) bytes", error)
        if needed is not None:
            text += f"about {_gib(needed)}, of which {_gib(weights)} are weights"
        elif failed:
            text += f"more than {_gib(weights + int(failed[1]))}, of which {_gib(weights)} are weights"
        else:
            text += f"more than the {_gib(weights)} of the weights and what else is free"
    limit = (device.memory_stats() or {}).get("bytes_limit")
    text += f", and JAX may use {_gib(limit)}" if limit else ""
    return f"{text}; {advice}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def peak_memory() -> dict[str, int | None]:
    """Bytes at the highest: `device` as JAX's allocator counts them (None on a CPU), `host` of this whole
    process.
    """
    host = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"device": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"), "host": host}


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
      `fastvggt_jax.refine.known`.
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
            _check_not_in(output, [folder])
            ours = written_in(output)
            check_output_folder(output, overwrite=overwrite, ours=ours)
        scene = Scene.load(folder)
        if output is None:
            _check_same_cameras(folder, scene, options)
        frames = () if photos is None else find_photographs(scene, photos)
        files: Sequence[Any] = [frame and frame.path for frame in frames] if frames else scene.paths
        if output is not None:
            _check_not_in(output, files)
        known = _known(scene.names, scene.transforms, files, options, intrinsics, align_to)
        scene, measured, adjustment, alignment = _refined(scene, options, bundle, known)
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


def _check_not_in(output: str | os.PathLike, paths: Iterable[str | os.PathLike | None]) -> None:
    """Raises TargetError if one of these, which are read, would be replaced with the output folder."""
    if not os.path.isdir(output):
        return
    for path in (path for path in paths if path):
        # A link in it counts as well as what lies there.
        given = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(output))
        if given or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output)):
            text = f"{path} lies in the output folder {output}, which is replaced; give another output"
            raise TargetError(text, argument="output")


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
