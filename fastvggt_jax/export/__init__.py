"""Files for other tools, one module per format. Every writer leaves the whole file or nothing."""

from fastvggt_jax.export.base import (
    Export,
    ExportOptions,
    Format,
    default_formats,
    missing_formats,
    register,
    registered,
    write,
)
from fastvggt_jax.export.depth import write_depth
from fastvggt_jax.export.glb import write_glb
from fastvggt_jax.export.overview import write_overview
from fastvggt_jax.export.ply import write_ply
from fastvggt_jax.io.scenes import write_cameras

__all__ = [
    "Export",
    "ExportOptions",
    "Format",
    "default_formats",
    "missing_formats",
    "register",
    "registered",
    "write",
    "write_cameras",
    "write_depth",
    "write_glb",
    "write_overview",
    "write_ply",
]
