"""A toy format: points as text."""

from fastvggt_jax.export import Format
from fastvggt_jax.io.files import write_file


def write_xyz(export, folder):
    lines = (" ".join(f"{x:.6f}" for x in point) for point in export.cloud.xyz)
    write_file(folder / "points.xyz", "".join(f"{line}\n" for line in lines).encode())


XYZ = Format("xyz", ("points.xyz",), write_xyz)
