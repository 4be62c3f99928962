"""From photographs to files, the whole way in timed steps: what `fastvggt reconstruct` runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastvggt_jax.chunks import run_all
from fastvggt_jax.errors import (
    Error,
    InputError,
    whole_number,
)
from fastvggt_jax.evaluate.metrics import auc, pair_errors
from fastvggt_jax.export.base import (
    Begin,
    Export,
    ExportOptions,
    Format,
    all_formats,
    always_written,
    check_formats,
    write_formats,
)
from fastvggt_jax.export.cameras import written_in
from fastvggt_jax.export.lenses import original_sizes
from fastvggt_jax.export.tracks import Followed
from fastvggt_jax.io.files import (
    check_not_in,
    check_output_folder,
    check_space,
    output_folder,
)
from fastvggt_jax.io.scenes import piece_folder
from fastvggt_jax.models.base import CONDITIONS, Model
from fastvggt_jax.models.conditions import Conditions
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.pretrained import from_pretrained, read_model
from fastvggt_jax.programs import Programs, Step, memory_errors, peak_memory, predict
from fastvggt_jax.refine.bundle import require
from fastvggt_jax.refine.camera_files import known_cameras, poses_in
from fastvggt_jax.refine.given import conditions_of
from fastvggt_jax.refine.positions import known_positions
from fastvggt_jax.refine.queries import Queries, choose_queries
from fastvggt_jax.refine.steps import Known, read_known, refine
from fastvggt_jax.scene import Scene, to_scene
from fastvggt_jax.sequence import (
    Joined,
    Piece,
    overlap_of,
)
from fastvggt_jax.sharding import frames_mesh
from fastvggt_jax.sources import Images, load_images
from fastvggt_jax.sources.lists import COLMAP_FOLDER, is_list, listed
from fastvggt_jax.sources.video import Video, is_video
from fastvggt_jax.sparsity import Sparsity


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
    bucket: bool = False  # compile for the next of a few numbers of photographs, see `programs.bucket_of`
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


Keep = Callable[[Path, dict[str, Any]], None]


class Loaded(NamedTuple):
    """Photographs that are to be reconstructed, what is known of them, and the files that may be replaced."""

    settings: Settings
    plan: Plan
    images: Images
    known: Known
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


class Made(NamedTuple):
    """A piece that is to be written, and the accounts of how it was refined."""

    export: Export
    adjustment: dict[str, Any] | None
    alignment: dict[str, Any] | None


def reconstruct(settings: Settings, step: Step, keep: Keep = lambda folder, report: None) -> dict[str, Any]:
    """Run the steps, each inside `with step(name)`, and return a JSON-able account of what was done.

    keep: see `write`. All that can be known to be wrong beforehand is checked before anything is computed.
    Raises what load_images, from_pretrained, to_scene and the writers raise, and OutOfMemoryError.
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

        def with_warnings(report: dict[str, Any]) -> dict[str, Any]:
            texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
            return report | {"warnings": list(dict.fromkeys(texts))}

        report = write(loaded, computed, step, lambda folder, report: keep(folder, with_warnings(report)))
        return with_warnings(report)


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
    if s.sparsity is not None:
        s.sparsity.check_depth(model.depth)
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
    if s.bucket:
        _check_bucket(s, model, as_inputs)
    return Plan(model, heads, formats, as_inputs)


def _check_bucket(s: Settings, model: Model, as_inputs: bool) -> None:
    """Raises InputError where no program can serve several numbers of photographs."""
    if not model.takes_frames:
        text = (
            f"bucket is for models that are told how many frames count, and a {type(model).__name__} is not"
        )
        raise InputError(f"{text}: leave it out", argument="bucket")
    others = {"tracks": s.tracks, "devices": s.devices is not None}
    others |= {name: as_inputs and one is not None for name, one in _asked(s).items()}
    for name, given in others.items():
        if given:
            text = f"bucket and {name} were both given, which are about all photographs of a program"
            raise InputError(f"{text}: leave one of the two out", argument="bucket")


def _asked(settings: Settings) -> dict[str, str | None]:
    s = settings
    return {"cameras": s.cameras, "intrinsics": s.intrinsics, "depth": s.depth}


def load(settings: Settings, plan: Plan, step: Step) -> Loaded:
    """The photographs, and what is wrong with them and the output folder, before the model runs.

    plan: of these settings, or of several scenes of which any may know something beforehand.
    """
    s = settings
    plan = plan._replace(as_inputs=plan.as_inputs and any(one is not None for one in _asked(s).values()))
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
    check_not_in(s.output, images.paths)
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
    gives = "cameras" if s.align_to is None else "align_to"
    known = read_known(images.names, images.transforms, images.paths, s.export, intrinsics, align_to, gives)
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
    joined, density, chunks = run_all(
        partial(run, points_from=s.points_from, bucket=s.bucket),
        model,
        params,
        images,
        step,
        output=s.output,
        chunk=s.chunk,
        overlap=s.overlap,
        loops=s.loops,
        queries=queries,
        conditions=loaded.conditions,
    )
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return Computed(joined, chunks, density, queries, model, parameters, 1 if mesh is None else mesh.size)


def write(
    loaded: Loaded,
    computed: Computed,
    step: Step,
    keep: Keep = lambda folder, report: None,
    begin: Begin | None = None,
) -> dict[str, Any]:
    """The files, and a JSON-able account of what was done.

    computed: loses what the model has found, of which the exports' scenes are made; `Apart.begin` says when
      these leave the memory.
    keep: called with the folder before it appears under its name, and the account, to be kept in it: a run
      that is killed leaves both or neither.
    begin: see `write_formats`.
    """
    s = loaded.settings
    made = _made(loaded, computed, step)
    with output_folder(s.output, overwrite=s.overwrite, ours=loaded.ours) as folder:
        with step("write"):
            files = _write_pieces(folder, [one.export for one in made], loaded.plan.formats, begin)
            if not sum(one.export.points for one in made):
                warnings.warn("no point is left: lower conf_percentile or raise edge_filter", stacklevel=2)
        report = _account_of(loaded, computed, made, files)
        keep(folder, report)
    return report


def _made(loaded: Loaded, computed: Computed, step: Step) -> list[Made]:
    s, images, known = loaded.settings, loaded.images, loaded.known
    wanted = s.bundle or s.mask_sky or known.K is not None or known.positions is not None
    made, pieces = [], computed.joined.pieces
    with step("refine") if wanted else contextlib.nullcontext():
        for number, (frames, found) in enumerate(pieces):
            whole = len(frames) == len(images.names)
            shown = images if whole else images.some(frames)
            scene, tracks, *accounts = refine(
                to_scene(found, shown),
                s.export,
                s.bundle,
                known if whole else _known_of(frames, shown, known),
                sky=s.mask_sky,
            )
            followed = _followed(computed.queries, found)
            made.append(Made(Export.of(scene, s.export, shown.frames, followed, tracks), *accounts))
            pieces[number] = Piece(frames, None)  # type: ignore[arg-type]  # it is the scene now
    return made


def _account_of(
    loaded: Loaded, computed: Computed, made: Sequence[Made], files: Sequence[str]
) -> dict[str, Any]:
    s, images, model = loaded.settings, loaded.images, computed.model
    reports = [_report(one, s.photos) for one in made]
    sequence = None if computed.chunks is None else computed.joined.account(computed.chunks)
    if sequence is not None and len(made) > 1:
        sequence["pieces"] = [
            {"folder": piece_folder(i), "photographs": list(one.export.scene.names)} | reports[i]
            for i, one in enumerate(made)
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


def _write_pieces(
    folder: Path, exports: Sequence[Export], formats: list[Format], begin: Begin | None
) -> list[str]:
    """The names of the files, in the folder: one scene's, or in folders in it those of several."""
    if len(exports) == 1:
        return write_formats(exports[0], folder, formats, begin)
    files = []
    for number, export in enumerate(exports):
        name = piece_folder(number)
        (folder / name).mkdir()
        files += [f"{name}/{file}" for file in write_formats(export, folder / name, formats, begin)]
    return files


def _report(made: Made, photos: Sequence[str]) -> dict[str, Any]:
    export = made.export
    return {
        "points": export.points,
        "tracks": export.tracks_report(),
        "bundle_adjustment": made.adjustment,
        "alignment": made.alignment,
        "comparison": _comparison(export.scene, photos),
        "intrinsics": list(export.scene.intrinsics),
    }


def _of_all(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of pieces, which have their own of what is None here."""
    nothing: dict[str, Any] = dict.fromkeys(reports[0])
    intrinsics = [one for report in reports for one in report["intrinsics"]]
    return nothing | {"points": sum(report["points"] for report in reports), "intrinsics": intrinsics}


def _known_of(frames: np.ndarray, images: Images, known: Known) -> Known:
    """What is known of a piece, whose own positions may be too few."""
    positions = None
    if known.positions is not None:
        try:
            positions = known_positions(known.positions.path, images.names)
        except Error as error:
            warnings.warn(f"the piece from {images.names[0]} on is not aligned: {error}", stacklevel=2)
    return Known(None if known.K is None else known.K[frames], positions)


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
