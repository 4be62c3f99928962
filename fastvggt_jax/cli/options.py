"""Options that several commands have: one spelling and one meaning each."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastvggt_jax import __version__
from fastvggt_jax.errors import InputError, MissingError, printable
from fastvggt_jax.io.cache import cache_folder

if TYPE_CHECKING:
    from fastvggt_jax.export import ExportOptions

WEIGHTS_HELP = (
    "A weight file, official weights (converted once and kept), a name on the hub such as facebook/VGGT-1B, "
    "or mini, the small bundled model."
)
Weights = Annotated[str, typer.Option("-c", "--weights", help=WEIGHTS_HELP)]
SPARSITY_HELP = (
    "Block-sparse global attention: dense, or ρ and τ as 0.5,0.9, or one of them as 0.5 or ,0.9; or, for "
    "VGGT's 24 layers, quick or quickest: ρ = 0.75 or 0.9, the first 9 layers within frames."
)
SparsityText = Annotated[str, typer.Option("--sparsity", help=SPARSITY_HELP)]
Sparsities = Annotated[
    list[str] | None, typer.Option("--sparsity", help=f"{SPARSITY_HELP} May be given several times.")
]
Block = Annotated[
    str | None,
    typer.Option(
        help="Block-sparse: queries x keys of a block, such as 128x64. Default: what suits the weights."
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="Of the backbone's matrix products; auto: bfloat16, but float32 on a CPU."),
]
Float8Scores = Annotated[
    bool,
    typer.Option(
        "--float8-scores",
        help="Round global attention's queries and keys to 8 bits: faster on Hopper GPUs, another answer.",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Pixels of what the model sees: its width, a multiple of the model's patches; of mode area: of "
        "a square of as many pixels. Default: what the model was made for."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run has left in the output folder.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, to stdout.")]
Formats = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="What to write, such as colmap,ply,glb; a wrong name lists all. Default: most (docs/output.md).",
    ),
]
ConfPercentile = Annotated[
    float, typer.Option(help="Drop points less confident than this percentile, and sky; 0: none.")
]
EdgeFilter = Annotated[
    float | None,
    typer.Option(help="Drop points at depth jumps larger than this share of the depth, such as 0.03."),
]
Voxel = Annotated[
    float | None, typer.Option(help="Keep one point in every cube of this side (in the scene's unit).")
]
MAX_POINTS, TRACK_POINTS, MESH_POINTS = 5_000_000, 100_000, 500_000
MaxPoints = Annotated[
    int | None,
    typer.Option(
        help=f"Keep at most this many points, evenly spread. Default: {MAX_POINTS:,}, and {TRACK_POINTS:,} "
        f"where points have tracks, {MESH_POINTS:,} of --glb-mesh."
    ),
]
GlbMesh = Annotated[
    bool,
    typer.Option("--glb-mesh", help="glb: surfaces, cut where the depth jumps, instead of points."),
]
DepthOriginal = Annotated[
    bool,
    typer.Option("--depth-original", help="Depth in the photographs' own pixels instead of the model's."),
]
Float16 = Annotated[
    bool,
    typer.Option(
        "--float16",
        help="depth, scene.npz: numbers of 16 bits, half the bytes, rounded to a two-thousandth.",
    ),
]
SharedCamera = Annotated[
    bool,
    typer.Option(
        "--shared-camera", help="All photographs are of one camera: one focal length, in all files."
    ),
]
CameraModel = Annotated[
    Literal["PINHOLE", "SIMPLE_RADIAL"],
    typer.Option(help="colmap: the model of cameras; SIMPLE_RADIAL has fx = fy and no distortion here."),
]
CopyPhotographs = Annotated[
    bool,
    typer.Option("--copy", help="Copy photographs, where a format has them, instead of linking to them."),
]
BundleAdjust = Annotated[
    bool,
    typer.Option(
        "--bundle-adjust",
        help="Refine cameras, and depth and points with them, by what the photographs show (extra colmap).",
    ),
]


Intrinsics = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Known K: a cameras.json, a COLMAP folder, or fx,fy,cx,cy (or a file of that) in the "
        "photographs' pixels; depth follows. Pi3X takes it as input.",
    ),
]
AlignTo = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Put the scene where cameras are known to have stood: a cameras.json, or a CSV of "
        "name,x,y,z (metres) or name,latitude,longitude,altitude.",
    ),
]


def say_tracks(report: dict[str, Any]) -> None:
    """A line each about alignment, other cameras, bundle adjustment and tracks, where a report has them."""
    others = report["comparison"]
    if others:
        typer.echo(
            f"from the cameras in {printable(others['folder'])}: rotations {others['rotation_degrees']:.2f} "
            f"and directions {others['translation_degrees']:.2f} degrees, medians of all pairs of "
            f"{others['photographs']} photographs; AUC@30 {others['auc30']:.1f}"
        )
    aligned = report["alignment"]
    if aligned and "failed" not in aligned:
        residuals = f"median residual {aligned['residual']:.3g}, largest {aligned['largest']:.3g}"
        typer.echo(f"aligned to {aligned['photographs']} known positions: {residuals}, in their unit")
    adjusted, tracks = report["bundle_adjustment"], report["tracks"]
    if adjusted and "failed" not in adjusted:
        typer.echo(
            f"bundle adjustment: {adjusted['observations']:,} observations, median reprojection error "
            f"{adjusted['before']:.2f} -> {adjusted['after']:.2f} pixels"
        )
    if tracks:
        length = tracks["mean_length"]
        typer.echo(f"{tracks['points']:,} points with tracks, of {length} photographs on average")


def export_options(max_points: int | None, **fields: Any) -> ExportOptions:
    """ExportOptions of what a command was given; `max_points` holds for points with tracks and
    of surfaces too."""
    from fastvggt_jax.export import ExportOptions

    counts = (MAX_POINTS, TRACK_POINTS, MESH_POINTS) if max_points is None else (max_points,) * 3
    return ExportOptions(max_points=counts[0], track_points=counts[1], mesh_points=counts[2], **fields)


def check_sparse(sparsities: Sequence[str], **given: Any) -> None:
    """Raises InputError for an option of block-sparse attention where all attention is dense."""
    for name, value in given.items():
        if value is not None and all(text == "dense" for text in sparsities):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} needs a --sparsity that is not dense, such as 0.5,0.9")


def made_by() -> dict[str, str]:
    """The command that runs, as a shell takes it, our version, and the day."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"command": shlex.join(["fastvggt", *sys.argv[1:]]), "version": __version__, "day": day}


CacheDir = Annotated[
    str | None,
    typer.Option(
        help="Where compiled programs are kept for the next run, or 'none'. Default: the user's cache."
    ),
]


def take_gpu_memory() -> None:
    """Of a GPU's memory, unless the user has said how much; JAX by itself takes three quarters."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")


def use_compilation_cache(cache_dir: str | None) -> None:
    """Switch JAX's persistent cache on, unless the user has set one up through JAX's own variable."""
    import jax

    if cache_dir is None:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        try:
            cache_dir = str(cache_folder("xla"))
        except MissingError:  # then nothing is kept
            cache_dir = "none"
    jax.config.update("jax_compilation_cache_dir", None if cache_dir == "none" else cache_dir)
    # Small programs compile faster than they load.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # On several devices cuDNN's attention stands in a program as a Python object's address, which is another
    # one in every process.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
