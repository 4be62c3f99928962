"""Published numbers, to stand beside ours, and what they can be compared with. None was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SEED, SUPPLEMENT, FIGURE = "sparse paper", "its supplement", "its figure, ±2 %"
PI3_PAPER, AVGGT = "π³'s paper", "AVGGT's paper"


class Published(NamedTuple):
    """A row of a table: who says it, of which model, and its numbers by the names of `measures.DEFINITIONS`.

    only: options of the data set that it is of; others have other numbers.
    """

    source: str
    model: str
    values: Mapping[str, float]
    only: Mapping[str, Any] = {}

    @property
    def label(self) -> str:
        return f"{self.model} ({self.source})"


def _rows(source: str, names: tuple[str, ...], rows: Mapping[str, tuple[float, ...]], **only: Any) -> list:
    return [
        Published(source, model, dict(zip(names, values, strict=True)), only)
        for model, values in rows.items()
    ]


_TANKS = ("RRA@5", "RTA@5", "normalised ATE", "seconds")
_VGGT = ("VGGT dense", "VGGT S25", "VGGT S50", "VGGT S75")
_PI3 = ("π³ dense", "π³ S25", "π³ S50", "π³ S75")


def _tanks(views: int | None, vggt: tuple, pi3: tuple) -> list[Published]:
    each = zip((*_VGGT, *_PI3), (*vggt, *pi3), strict=True)
    return _rows(SEED, _TANKS, dict(each), views=views)


_CLOUD = ("Acc mean", "Comp mean", "NC mean")
_POSE30 = ("RRA@30", "RTA@30", "AUC@30")
PUBLISHED: dict[str, list[Published]] = {
    "tanksandtemples": [
        *_tanks(
            25,
            (
                (84.4, 81.5, 0.033, 0.63),
                (83.8, 80.6, 0.032, 0.66),
                (81.4, 79.5, 0.032, 0.56),
                (56.9, 65.6, 0.037, 0.54),
            ),
            (
                (84.4, 83.8, 0.020, 0.62),
                (84.4, 83.5, 0.020, 0.66),
                (82.6, 82.1, 0.019, 0.64),
                (56.9, 65.6, 0.025, 0.65),
            ),
        ),
        *_tanks(
            50,
            (
                (84.8, 81.5, 0.023, 1.5),
                (83.8, 80.9, 0.023, 1.2),
                (81.6, 79.5, 0.023, 1.1),
                (57.3, 61.0, 0.025, 1.0),
            ),
            (
                (85.4, 84.6, 0.015, 2.1),
                (84.5, 83.9, 0.015, 1.2),
                (82.3, 82.9, 0.015, 1.1),
                (57.9, 67.0, 0.016, 1.0),
            ),
        ),
        *_tanks(
            100,
            (
                (84.8, 81.3, 0.015, 7.9),
                (83.9, 80.8, 0.016, 2.9),
                (81.7, 79.7, 0.016, 2.6),
                (58.1, 61.5, 0.017, 2.1),
            ),
            (
                (85.7, 84.6, 0.012, 4.3),
                (84.9, 84.2, 0.012, 2.5),
                (83.0, 83.0, 0.012, 2.2),
                (58.9, 67.2, 0.012, 1.8),
            ),
        ),
        *_tanks(
            200,
            (
                (83.9, 79.9, 0.012, 18),
                (83.1, 79.6, 0.011, 8.5),
                (80.7, 78.4, 0.011, 7.3),
                (57.1, 60.8, 0.013, 5.5),
            ),
            (
                (85.4, 83.9, 0.009, 13.9),
                (84.6, 83.5, 0.009, 6.8),
                (82.9, 82.3, 0.009, 5.8),
                (59.8, 67.7, 0.009, 4.4),
            ),
        ),
        *_tanks(
            None,
            (
                (73.4, 72.5, 0.008, 35),
                (72.7, 72.2, 0.009, 17.9),
                (70.3, 71.1, 0.008, 14.4),
                (46.0, 53.0, 0.009, 10.4),
            ),
            (
                (75.8, 75.8, 0.006, 27.9),
                (74.8, 75.3, 0.006, 13.6),
                (73.0, 74.2, 0.006, 11.3),
                (50.0, 59.1, 0.006, 7.8),
            ),
        ),
    ],
    "realestate10k": [
        *_rows(FIGURE, ("AUC@30",), {"VGGT dense": (77.5,), "π³ dense": (87.4,)}),
        *_rows(
            AVGGT,
            ("AUC@5", "AUC@15", "AUC@30"),
            {"VGGT dense": (63.18, 81.10, 88.13), "VGGT, AVGGT(2)": (61.96, 80.44, 87.76)},
        ),
    ],
    "co3dv2": [
        *_rows(
            SUPPLEMENT,
            _POSE30,
            {
                "VGGT 7.6 %": (97.5, 91.6, 90.8),
                "VGGT 22.3 %": (97.1, 91.2, 90.2),
                "VGGT 37.0 %": (95.0, 90.0, 88.2),
                "VGGT 45.0 %": (93.2, 88.8, 86.2),
                "VGGT 60.0 %": (89.6, 86.2, 82.0),
                "VGGT 74.8 %": (87.6, 84.4, 79.5),
                "π³ 8.65 %": (97.6, 91.7, 91.0),
                "π³ 25.5 %": (97.4, 91.3, 90.5),
            },
            protocol="pi3-2025-08",
        ),
        *_rows(FIGURE, ("AUC@30",), {"VGGT dense": (90.9,), "π³ dense": (91.2,)}, protocol="pi3-2025-08"),
        *_rows("VGGT's official script", ("AUC@30",), {"VGGT dense": (89.49,)}, protocol="vggt-co3d"),
    ],
    "eth3d": [
        *_rows(
            SUPPLEMENT,
            _CLOUD,
            {
                "VGGT 7.6 %": (0.232, 0.190, 0.886),
                "VGGT 25.5 %": (0.212, 0.172, 0.885),
                "VGGT 37 %": (0.201, 0.158, 0.880),
                "VGGT 60 %": (0.233, 0.185, 0.856),
                "VGGT 74.8 %": (0.250, 0.205, 0.837),
                "π³ 8.65 %": (0.107, 0.085, 0.898),
            },
        ),
        *_rows(FIGURE, ("point clouds",), {"VGGT dense": (0.265,), "π³ dense": (0.098,)}),
        *_rows(
            PI3_PAPER,
            ("Acc mean", "Acc median", "Comp mean", "Comp median", "NC mean", "NC median"),
            {"π³ dense": (0.194, 0.131, 0.210, 0.128, 0.883, 0.969)},
        ),
    ],
    "dtu": [
        *_rows(
            SUPPLEMENT,
            _CLOUD,
            {
                "VGGT 7.8 %": (1.075, 1.331, 0.613),
                "VGGT 74.8 %": (1.952, 1.342, 0.617),
                "π³ 8.8 %": (1.564, 1.356, 0.609),
                "π³ 76.9 %": (3.172, 1.771, 0.620),
            },
        ),
        *_rows(FIGURE, ("point clouds",), {"VGGT dense": (1.2,), "π³ dense": (1.5,)}),
    ],
    "nrgbd": [
        *_rows(
            SUPPLEMENT,
            _CLOUD,
            {
                "VGGT 7.6 %": (0.047, 0.049, 0.897),
                "VGGT 74.8 %": (0.078, 0.090, 0.849),
                "π³ 8.65 %": (0.028, 0.028, 0.907),
                "π³ 77.0 %": (0.083, 0.067, 0.815),
            },
        ),
        *_rows(FIGURE, ("point clouds",), {"VGGT dense": (0.049,), "π³ dense": (0.028,)}),
    ],
    "7scenes": _rows(FIGURE, ("point clouds",), {"VGGT dense": (0.060,), "π³ dense": (0.060,)}),
    "scannet": _rows(FIGURE, ("trajectory ATE",), {"VGGT dense": (0.038,), "π³ dense": (0.034,)}),
    "tum": _rows(FIGURE, ("trajectory ATE",), {"VGGT dense": (0.012,), "π³ dense": (0.014,)}),
}
# The protocols' own views or strides, of which the published numbers are; the first is the default.
# Tanks & Temples' rows say themselves of how many views they are.
SAMPLINGS: dict[str, dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("realestate10k", "co3dv2"), {"views": (10,)}),
    **dict.fromkeys(("scannet", "tum"), {"views": (90,)}),
    **dict.fromkeys(("eth3d", "dtu"), {"stride": (5,)}),
    "7scenes": {"stride": (200, 40)},
    "nrgbd": {"stride": (500, 100)},
}
# Of each data set: which published column ours can be compared with, and which not.
COMPARABLE = {
    "tanksandtemples": (
        "Which COLMAP models the sparse paper took as truth, how it chose views and what became of "
        "photographs without a camera is not published: compare differences between dense and sparse, not "
        "the numbers."
    ),
    "realestate10k": (
        "π³'s own table, if all 1,719 sequences are there; the sparse paper's split and VGGT's sizing in "
        "it are not published, and AVGGT's protocol is another one."
    ),
    "co3dv2": "pi3-2025-08: the sparse paper's and π³'s tables; vggt-co3d: VGGT's own, not these.",
    "eth3d": (
        "π³'s own table; the sparse paper's numbers do not agree with it, and are of another subset or mask."
    ),
    "dtu": (
        "π³'s and the sparse paper's tables, in millimetres; whether the latter's VGGT is of depth or "
        "points is not published."
    ),
    "nrgbd": "π³'s tables, every 500th and every 100th; of which the sparse paper's are is not published.",
    "7scenes": (
        "π³'s tables, every 200th and every 40th; of which the sparse paper's figure is is not published."
    ),
    "scannet": (
        "MonST3R's and CUT3R's tables of 90 frames; the sparse paper's long sequences are not published."
    ),
    "tum": "MonST3R's, CUT3R's and π³'s tables.",
    "sintel": "MonST3R's, CUT3R's and π³'s tables.",
    "bonn": "MonST3R's, CUT3R's and π³'s tables.",
    "kitti": "MonST3R's, CUT3R's and π³'s tables, as long as the drives are the same 13.",
}


def as_published(name: str, options: Mapping[str, Any]) -> bool:
    """Whether these options are a protocol's own, so that numbers can be compared; None is the default."""
    own = {key: (None, *values) for key, values in SAMPLINGS.get(name, {}).items()} | {"size": (None,)}
    return all(options.get(key) in values for key, values in own.items())


def published_for(name: str, **options: Any) -> list[Published]:
    """Those of a data set, but for what is of other options; one that is not given here does not matter."""
    return [
        row
        for row in PUBLISHED.get(name, [])
        if all(options.get(key, value) == value for key, value in row.only.items())
    ]
