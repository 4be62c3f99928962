"""The paper's tables, as evaluations to be made in one go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastvggt_jax.datasets.base import Options
from fastvggt_jax.errors import MissingError

ALL = "all"
EVERY = 10_000  # views: more than any scene has


class Table(NamedTuple):
    """One of them. label: its folder, and what it is called. dataset: the data set, and its folder in the
    root.
    """

    label: str
    dataset: str
    options: Options = Options()  # noqa: B008  immutable


TABLES = (
    Table("realestate10k", "realestate10k"),
    Table("co3dv2", "co3dv2"),
    *(
        Table(
            f"tanksandtemples-{'full' if views == EVERY else views}", "tanksandtemples", Options(views=views)
        )
        for views in (25, 50, 100, 200, EVERY)
    ),
    Table("eth3d", "eth3d"),
    Table("7scenes-sparse", "7scenes"),
    Table("7scenes-dense", "7scenes", Options(stride=40)),
    Table("nrgbd-sparse", "nrgbd"),
    Table("nrgbd-dense", "nrgbd", Options(stride=100)),
    Table("dtu", "dtu"),
    Table("scannet", "scannet"),
    Table("tum", "tum"),
    Table("sintel", "sintel"),
    Table("bonn", "bonn"),
    Table("kitti", "kitti"),
)


def tables_in(root: Path | None) -> tuple[list[Table], list[str]]:
    """Those whose data set has its folder in the root, and the names of the folders that are missing. Raises
    MissingError without any.
    """
    names: Sequence[str] = list(dict.fromkeys(table.dataset for table in TABLES))
    there = [name for name in names if root is not None and (root / name).is_dir()]
    if not there:
        text = f"root must be given, a folder that holds some of the folders {', '.join(names)}"
        raise MissingError(text + ("" if root is None else f"; {root} holds none of them"), argument="root")
    return [t for t in TABLES if t.dataset in there], [name for name in names if name not in there]
