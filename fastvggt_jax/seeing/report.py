"""report.html: what a reconstruction found and how it came to be, as one page without anything beside it."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastvggt_jax.errors import printable
from fastvggt_jax.export.depth import depth_colors, depth_on_photo, surface
from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.io.files import write_file
from fastvggt_jax.scene import Scene
from fastvggt_jax.seeing.result import (
    Cameras,
    Result,
    brought_to,
    camera_errors,
    cameras_of,
    confidence_colors,
    depth_errors,
    jpeg,
)

MOST = 60  # photographs that are shown, evenly chosen
THUMBNAIL = 240  # pixels wide
DOTS = 3000  # points of the cloud that the view from above has
PLAN_WIDTH, PLAN_HEIGHT = 860, 480
STYLE = """
:root{color-scheme:light dark;--line:#8884;--ink:#2c68aa;--other:#c2571a}
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid var(--line)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#8881;padding:.6rem;border-radius:4px}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.photos{display:grid;grid-template-columns:repeat(auto-fill,minmax(22rem,1fr));gap:1rem}
figure{margin:0}figure div{display:flex;gap:2px}figure img{width:33%}
figcaption{font-size:.85rem;overflow-wrap:anywhere}
.warnings li{color:#b3420e}svg{max-width:100%;height:auto}svg text{fill:currentColor;font-size:11px}
"""


def write_report(
    result: Result,
    path: str | os.PathLike,
    *,
    truth: Cameras | None = None,
    against: Result | None = None,
    most: int = MOST,
) -> None:
    """Write the page. truth: cameras to compare with. against: another result of the same photographs.

    most: photographs that are shown, evenly chosen of more. Raises FileError; InputError where `against` is
    of other photographs.
    """
    write_file(path, page(result, truth=truth, against=against, most=most).encode())


def page(
    result: Result, *, truth: Cameras | None = None, against: Result | None = None, most: int = MOST
) -> str:
    """The page's HTML, see `write_report`."""
    scene, run = result.scene, result.run
    others: list[tuple[str, Cameras]] = []
    if truth is not None:
        others.append(("truth", truth))
    if against is not None:
        others.append((f"{against.folder}", cameras_of(against.scene, scene)))
    sections = [
        ("Warnings", _warnings(run)),
        ("Comparison", _comparison(result, others, against) if others else ""),
        ("Cameras from above", _plan(scene, others)),
        ("Photographs, depth, confidence", _photographs(scene, most, against)),
        ("Share of blocks that global attention computed", _densities(run, against)),
        ("Seconds and memory", _costs(run, against)),
        ("How it was made", _made(run)),
    ]
    name = _text(result.folder.resolve().name)
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{name}: {len(scene.names)} photographs</h1>{body}</html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(printable(str(value)))


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Numbers to the right."""
    top = f"<tr>{''.join(f'<th>{_text(one)}</th>' for one in head)}</tr>" if head else ""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f'<td class="n">{value:.4g}</td>'
        return f'<td class="n">{value:,}</td>' if type(value) is int else f"<td>{_text(value)}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _made(run: Mapping[str, Any]) -> str:
    if not run:
        return "<p>Not known: it was written before reconstruct kept this, or by another program.</p>"
    model, size = _part(run, "model"), _part(run, "size")
    rows = [
        ("fastvggt_jax", f"{run.get('version', '?')}, {run.get('day', '?')}"),
        ("model", f"{model.get('class', '?')} of {_count(model.get('parameters'))} parameters, "
                  f"{model.get('dtype', '?')}, heads {', '.join(map(str, _list(model, 'heads')))}"),
        ("size", f"{size.get('width', '?')} x {size.get('height', '?')} pixels, {size.get('mode', '?')}"),
        ("device", run.get("device", "?")),
        ("points", _count(run.get("points"))),
    ]  # fmt: skip
    return f"<pre>{_text(run.get('command', '?'))}</pre>{_table(rows)}"


def _part(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = run.get(name)
    return part if isinstance(part, Mapping) else {}


def _list(run: Mapping[str, Any], name: str) -> list[Any]:
    part = run.get(name)
    return part if isinstance(part, list) else []


def _count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "?"


def _warnings(run: Mapping[str, Any]) -> str:
    texts = _list(run, "warnings")
    skipped = (one for one in _list(run, "skipped") if isinstance(one, dict))
    texts = texts + [f"skipped: {one.get('reason', '?')}" for one in skipped]
    if not texts:
        return "<p>None.</p>" if run else ""
    return f'<ul class="warnings">{"".join(f"<li>{_text(text)}</li>" for text in texts)}</ul>'


def _comparison(result: Result, others: list[tuple[str, Cameras]], against: Result | None) -> str:
    errors = [camera_errors(result.scene, cameras) for _, cameras in others]
    rows: list[Sequence[Any]] = [(key, *(one[key] for one in errors)) for key in errors[0]]
    if against is not None:
        depths = depth_errors(result.scene, against.scene)
        found: Any = float(np.mean(list(depths.values()))) if depths else "other pixels"
        rows.append(("depth, mean of |difference| / other", *[""] * (len(others) - 1), found))
    note = "<p>Angles between all pairs of cameras, medians; depth after one scale for all photographs.</p>"
    return _table(rows, ("cameras and depth", *(f"from {name}" for name, _ in others))) + note


# ---- pictures


def _plan(scene: Scene, others: list[tuple[str, Cameras]]) -> str:
    """The cameras as triangles, with some of the points, along the mean of the cameras' down axis."""
    cam_from_world = scene.cam_from_world.astype(np.float64)  # scene.world_from_cam would start the device
    down, ahead = cam_from_world[:, 1, :3].mean(0), cam_from_world[:, 2, :3].mean(0)
    down /= np.linalg.norm(down) or 1.0
    ahead -= (ahead @ down) * down
    if np.linalg.norm(ahead) < 1e-6:  # they look all around
        ahead = np.cross(np.eye(3)[np.argmin(np.abs(down))], down)
    ahead /= np.linalg.norm(ahead)
    flat = np.stack([np.cross(down, ahead), ahead])  # right, ahead
    sets = [("this", cam_from_world, range(len(cam_from_world)))]
    for name, cameras in others:
        similarity: Similarity = brought_to(scene, cameras)
        sets.append((name, similarity.of_cameras(np.stack(list(cameras.values()))), list(cameras)))  # type: ignore[arg-type]
    cloud = scene.point_cloud(conf_percentile=25.0, max_points=DOTS)
    dots = cloud.xyz.astype(np.float64) @ flat.T
    placed = [(name, _seen_from_above(poses, flat), which) for name, poses, which in sets]
    centres = np.concatenate([at for _, (at, _, _), _ in placed])
    near = dots[_central(dots)] if len(dots) else centres
    everything = np.concatenate([centres, near])
    low, high = everything.min(0), everything.max(0)
    side = float((high - low).max()) or 1.0
    scale = min(PLAN_WIDTH / ((high - low)[0] + 0.1 * side), PLAN_HEIGHT / ((high - low)[1] + 0.1 * side))
    middle = (low + high) / 2

    def at(points: np.ndarray) -> np.ndarray:  # ahead is up on the page
        return (points - middle) * (scale, -scale) + (PLAN_WIDTH / 2, PLAN_HEIGHT / 2)

    parts = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.4" fill="rgb({r},{g},{b})"/>'
        for (x, y), (r, g, b) in zip(at(dots), cloud.rgb, strict=True)
        if 0 <= x <= PLAN_WIDTH and 0 <= y <= PLAN_HEIGHT
    ]
    length = 18 / scale
    for k, (name, (centre, forward, right), which) in enumerate(placed):
        color = "var(--ink)" if k == 0 else "var(--other)"
        for i, c, f, r in zip(which, centre, forward, right, strict=True):
            corners = at(np.stack([c, c + length * (f + 0.5 * r), c + length * (f - 0.5 * r)]))
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
            parts.append(
                f'<polygon points="{points}" fill="none" stroke="{color}" stroke-width="1.5">'
                f"<title>{_text(scene.names[i])} ({_text(name)})</title></polygon>"
            )
    legend = (
        "" if not others else "<p>Blue: this result; orange: what it is compared with, brought to it.</p>"
    )
    return (
        f'<svg viewBox="0 0 {PLAN_WIDTH} {PLAN_HEIGHT}" width="{PLAN_WIDTH}" role="img" '
        f'aria-label="cameras from above">{"".join(parts)}</svg>{legend}'
    )


def _seen_from_above(poses: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, forward and right axes of cam_from_world [F, 3, 4] in the plane, each [F, 2]."""
    centres = -np.einsum("fji,fj->fi", poses[:, :, :3], poses[:, :, 3])
    return centres @ flat.T, poses[:, 2, :3] @ flat.T, poses[:, 0, :3] @ flat.T


def _central(points: np.ndarray) -> np.ndarray:
    """bool[M]: nine of ten, those nearest to the median."""
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=-1)
    return distance <= np.quantile(distance, 0.9)


def _densities(run: Mapping[str, Any], against: Result | None) -> str:
    shown = [_density(run)] + ([] if against is None else [_density(against.run)])
    if not any(shown):
        return "<p>Dense: all of them.</p>" if run else "<p>Not known.</p>"
    depth = max(map(len, shown))
    step, height = min(36, 840 // depth), 120
    parts = []
    for k, densities in enumerate(shown):
        color, bar = ("var(--ink)", "var(--other)")[k], step * 0.8 / len(shown)
        for layer, share in enumerate(densities):
            x, tall = layer * step + k * bar + 1, share * height
            parts.append(
                f'<rect x="{x:.1f}" y="{height - tall + 4:.1f}" width="{bar:.1f}" height="{tall:.1f}" '
                f'fill="{color}"><title>layer {layer}: {share:.1%}</title></rect>'
            )
    parts += [
        f'<text x="{layer * step + 0.4 * step:.1f}" y="{height + 18}" text-anchor="middle">{layer}</text>'
        for layer in range(0, depth, 1 if step >= 18 else 4)
    ]
    means = ", ".join(f"{np.mean(one):.1%}" for one in shown if one)
    wide = depth * step + 4
    picture = f'<svg viewBox="0 0 {wide} {height + 24}" width="{wide}">{"".join(parts)}</svg>'
    return f"{picture}<p>By global layer; mean {means}.</p>"


def _density(run: Mapping[str, Any]) -> list[float]:
    density = _part(run, "model").get("density")
    fine = isinstance(density, list) and all(type(x) in (int, float) and 0 <= x <= 1 for x in density)
    return list(density) if fine and isinstance(density, list) else []


def _costs(run: Mapping[str, Any], against: Result | None) -> str:
    runs = [run] + ([] if against is None else [against.run])
    steps = list(dict.fromkeys(step for one in runs for step in _part(one, "seconds")))
    rows: list[Sequence[Any]] = [
        (f"{step}, s", *(_number(_part(one, "seconds").get(step)) for one in runs)) for step in steps
    ]
    for where in ("device", "host"):
        peaks = [_number(_part(one, "peak_memory_bytes").get(where), 2**-30) for one in runs]
        if any(peaks):
            rows.append((f"peak memory of the {where}, GiB", *peaks))
    if not rows:
        return "<p>Not known.</p>"
    return _table(rows, ("", "this", "the other")[: 1 + len(runs)] if against is not None else ())


def _number(value: Any, unit: float = 1.0) -> float | str:
    return unit * value if type(value) in (int, float) else ""


def _photographs(scene: Scene, most: int, against: Result | None) -> str:
    count = len(scene.names)
    chosen = range(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()
    colors, sure = depth_colors(scene), confidence_colors(scene)
    differ = {} if against is None else depth_errors(scene, against.scene)
    figures = []
    for i in chosen:
        pictures = (
            ("photograph", scene.colors[i]),
            ("depth", colors(surface(depth_on_photo(scene, i), scene.depth_conf[i], scene))),
            ("confidence", sure(i)),
        )
        images = "".join(f'<img alt="{kind}" src="{data_url(pixels)}">' for kind, pixels in pictures)
        K, t = scene.K_original(i), scene.transforms[i]
        fov = 2 * np.rad2deg(np.arctan2(t.original_width / 2, K[0, 0]))
        depth = scene.depth[i][scene.valid[i]]
        say = f"{t.original_width} x {t.original_height}, "
        say += f"f {K[0, 0]:.0f} px ({fov:.0f}°, {scene.intrinsics[i]})"
        say += f"; depth {np.median(depth):.3g}" if depth.size else "; nothing is valid"
        say += f"; depth differs by {differ[i]:.1%}" if i in differ else ""
        caption = f"<b>{_text(scene.names[i])}</b><br>{_text(say)}"
        figures.append(f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>")
    said = f"<p>{len(chosen)} of {count}, evenly chosen.</p>" if len(chosen) < count else ""
    key = (
        f"<p>Depth: light is near ({colors.near:.3g}), dark is far ({colors.far:.3g}), in the scene's unit. "
        "Confidence: light is sure, by rank within the scene.</p>"
    )
    return f'{said}{key}<div class="photos">{"".join(figures)}</div>'


def data_url(pixels: np.ndarray, width: int = THUMBNAIL) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels, width)).decode()}"
