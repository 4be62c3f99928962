"""Files for other tools, one module a format. Every writer is atomic: it leaves the whole file or nothing."""

from fastvggt_jax.export.cameras import write_cameras
from fastvggt_jax.export.depth import write_depth
from fastvggt_jax.export.glb import write_glb
from fastvggt_jax.export.overview import write_overview
from fastvggt_jax.export.ply import write_ply

__all__ = ["write_cameras", "write_depth", "write_glb", "write_overview", "write_ply"]
