"""Results in the browser, by viser (extra `view`): points, cameras with photographs, and what to show."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import socket
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fastvggt_jax.errors import ExtraError, InputError, TargetError, printable
from fastvggt_jax.seeing.clouds import Cloud

PORT, TRIED = 8080, 100
DRAWN = 500_000  # points of each result that are drawn at first
BACKGROUND = 24, 24, 28  # as of share.html
RISE = 0.5  # how far above the cameras a view from behind them is, in shares of how far behind
PICTURES = ("photograph", "depth", "both")


def require() -> None:
    """Raises ExtraError without viser."""
    if importlib.util.find_spec("viser") is None:
        raise ExtraError("the viewer needs viser: pip install 'fastvggt_jax[view]'")


def free_port(host: str, port: int | None = None) -> int:
    """The port asked for, or the first free one from PORT on. Raises TargetError where it is in use, or none
    is free; InputError for a number that is none, or a host that is none of this machine.
    """
    if not host:
        text = "host has no name: give 127.0.0.1, or 0.0.0.0 to let the whole network look"
        raise InputError(text, argument="host")
    if port is not None and not 0 < port < 65536:
        raise InputError(f"port must be from 1 to 65535, not {port}", argument="port")
    for candidate in range(PORT, PORT + TRIED) if port is None else (port,):
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((host, candidate))
                return candidate
        except PermissionError as error:
            text = f"port {candidate} may not be used by you; take one from 1024 on"
            raise TargetError(text, argument="port") from error
        except socket.gaierror as error:
            raise InputError(f"host {host} is no address of this machine", argument="host") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(f"host {host} is no address of this machine", argument="host") from error
    if port is None:
        raise TargetError(f"no port from {PORT} to {PORT + TRIED - 1} is free", argument="port")
    text = f"port {port} is in use: give another one, or none for the next free one"
    raise TargetError(text, argument="port")


class Viewer:
    """A server that shows one or two results. `stop` ends it; its widgets are attributes.

    Raises ExtraError, and as `free_port`.
    """

    def __init__(self, clouds: Sequence[Cloud], *, host: str = "127.0.0.1", port: int | None = None) -> None:
        require()
        import viser

        chosen = free_port(host, port)
        self.clouds = list(clouds)
        with contextlib.redirect_stdout(io.StringIO()):  # its banner; what is said is the caller's
            self.server = viser.ViserServer(host=host, port=chosen, label="fastvggt", verbose=False)
        if port is not None and self.server.get_port() != port:  # taken meanwhile
            self.stop()
            raise TargetError(f"port {port} is in use: give another one", argument="port")
        self.host, self.port = host, self.server.get_port()
        self._lock = threading.Lock()
        first = self.clouds[0]
        away = (len(self.clouds) - 0.7) * first.size
        # Its share button would open a way in from outside, by a server of others.
        self.server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        self.server.scene.set_background_image(np.full((1, 1, 3), BACKGROUND, np.uint8), format="png")
        self.server.scene.set_up_direction(tuple(-first.world_from_cam[:, :3, 1].mean(0)))
        self._add_widgets(self.server.gui, max(len(cloud.scene.names) for cloud in self.clouds))
        self.points: list[Any] = [None] * len(self.clouds)
        self.frusta = [self._add_frusta(k, cloud) for k, cloud in enumerate(self.clouds)]
        self.draw()
        self.server.on_client_connect(
            lambda client: self.look_through(0, len(first.fov) // 2, [client], back=away)
        )

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def stop(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _add_widgets(self, gui: Any, frames: int) -> None:
        size = self.clouds[0].size
        total = max(map(len, self.clouds))
        self.drawn = gui.add_text("points drawn", "", disabled=True)
        self.size = gui.add_slider("size of points", 0.1, 5.0, 0.1, 1.0)
        self._unit = size / 600
        self.confidence = gui.add_slider("least confidence, %", 0, 99, 1, 25)
        levels = max(0, int(np.ceil(np.log2(max(total, 1) / 10_000))))
        start = max(0, int(np.ceil(np.log2(max(total, 1) / DRAWN))))
        self.level = gui.add_slider("thinned, halvings", 0, max(levels, 1), 1, min(start, max(levels, 1)))
        self.masks = gui.add_checkbox("masks", True)
        self.alone = gui.add_checkbox("this frame alone", False)
        self.frame = gui.add_slider("frame", 0, max(frames - 1, 1), 1, 0)
        self.picture = gui.add_dropdown("pictures", PICTURES, initial_value=PICTURES[0])
        self.cameras = gui.add_checkbox("cameras", True)
        self.jump = gui.add_button("look through this frame")
        self.name = gui.add_text("photograph", self._name(0), disabled=True)
        self.image = gui.add_image(self._picture(self.clouds[0], 0), label="")
        for one in (self.confidence, self.level, self.masks, self.alone):
            one.on_update(lambda _: self.draw())
        self.size.on_update(lambda _: self._resize())
        self.frame.on_update(lambda _: self._show_frame())
        self.picture.on_update(lambda _: self._show_pictures())
        self.cameras.on_update(lambda _: self._show_cameras())
        self.jump.on_click(lambda _: self.look_through(0, self._frame_of(self.clouds[0])))

    def _frame_of(self, cloud: Cloud) -> int:
        return min(int(self.frame.value), len(cloud.scene.names) - 1)

    def _add_frusta(self, k: int, cloud: Cloud) -> list[Any]:
        from viser.transforms import SO3

        height, width = cloud.scene.valid.shape[1:]
        found = []
        for i, (pose, fov) in enumerate(zip(cloud.world_from_cam, cloud.fov, strict=True)):
            handle = self.server.scene.add_camera_frustum(
                f"/result {k}/cameras/{i}",
                fov=float(fov),
                aspect=width / height,
                scale=0.025 * self.clouds[0].size,
                thickness=0.0006 * self.clouds[0].size,
                color=((44, 104, 170), (194, 87, 26))[k],
                image=self._picture(cloud, i),
                wxyz=SO3.from_matrix(pose[:3, :3]).wxyz,
                position=pose[:3, 3],
            )
            handle.on_click(partial(self._clicked, k, i))
            found.append(handle)
        return found

    def _clicked(self, k: int, i: int, event: Any) -> None:
        self.look_through(k, i, [event.client])

    def draw(self) -> None:
        """The points anew, as the widgets have it."""
        with self._lock:
            counts = []
            for k, cloud in enumerate(self.clouds):
                frame = self._frame_of(cloud) if self.alone.value else None
                most = -(-len(cloud) >> int(self.level.value)) if len(cloud) else 0
                chosen = cloud.chosen(
                    float(self.confidence.value), most=most, frame=frame, masks=bool(self.masks.value)
                )
                counts.append(len(chosen))
                self.points[k] = self.server.scene.add_point_cloud(
                    f"/result {k}/points",
                    cloud.xyz[chosen],
                    cloud.rgb[chosen],
                    point_size=self._unit * float(self.size.value),
                    point_shape="circle",
                    precision="float32",
                    point_shading="flat",
                )
            self.drawn.value = " and ".join(f"{count:,}" for count in counts)

    def look_through(
        self, k: int, i: int, clients: Sequence[Any] | None = None, *, back: float = 0.0
    ) -> None:
        """Move the clients' cameras, by default all, to where a photograph was taken, or behind and above."""
        from viser.transforms import SO3

        cloud = self.clouds[k]
        pose = cloud.world_from_cam[i]
        for client in clients if clients is not None else self.server.get_clients().values():
            with client.atomic():
                client.camera.wxyz = SO3.from_matrix(pose[:3, :3]).wxyz
                client.camera.position = pose[:3, 3] - back * (pose[:3, 2] + RISE * pose[:3, 1])
                client.camera.look_at = pose[:3, 3] + 0.3 * cloud.size * pose[:3, 2]
                client.camera.fov = float(cloud.fov[i])
        if not back:
            self.frame.value = i

    def _resize(self) -> None:
        for one in self.points:
            one.point_size = self._unit * float(self.size.value)

    def _show_frame(self) -> None:
        frame = self._frame_of(self.clouds[0])
        self.name.value, self.image.image = self._name(frame), self._picture(self.clouds[0], frame)
        if self.alone.value:
            self.draw()

    def _show_pictures(self) -> None:
        for cloud, frusta in zip(self.clouds, self.frusta, strict=True):
            for i, handle in enumerate(frusta):
                handle.image = self._picture(cloud, i)
        self._show_frame()

    def _show_cameras(self) -> None:
        for handle in (one for frusta in self.frusta for one in frusta):
            handle.visible = bool(self.cameras.value)

    def _name(self, i: int) -> str:
        return printable(self.clouds[0].scene.names[i])

    def _picture(self, cloud: Cloud, i: int) -> np.ndarray:
        kind = self.picture.value if hasattr(self, "picture") else PICTURES[0]
        return cloud.picture(i, kind)
