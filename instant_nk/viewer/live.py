"""The live viewer: a web server that shows a sequence's results in 3-D, also over ssh, and follows a run that is writing them. Needs viser."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np

from instant_nk.errors import BackendError
from instant_nk.geometry import camera_path, spaces
from instant_nk.layout import Paths
from instant_nk.viewer.live_results import QUALITIES, LiveResults, shade

logger = logging.getLogger(__name__)

SCAN_S = 2.0  # how often a followed run is looked at
SHADINGS = ("colour", "clay", "normals", *QUALITIES)
LAYERS = {"live mesh": True, "wireframe": False, "canonical mesh": False, "graph": False, "observation": False, "cameras": True, "images": False}


def _viser() -> Any:
    try:
        import viser
    except ImportError:
        raise BackendError("the live viewer needs the package viser, which is not installed. pip install viser, or open 8_report/index.html instead.") from None
    return viser


class LiveViewer:
    """One sequence on one server.

    Args:
        paths: the sequence's results.
        host: address to listen on; 127.0.0.1 keeps others out.
        port: the next free one is taken when it is busy.
        watch: look for new results every few seconds.

    Raises:
        BackendError: viser is not installed.
        ContractError: there are no results yet.
    """

    def __init__(self, paths: Paths, host: str = "127.0.0.1", port: int = 8080, watch: bool = False):
        viser = _viser()
        self.results = LiveResults(paths)
        self.results.scan()
        self.watch, self.last_scan, self.last_step, self.dirty = watch, time.monotonic(), time.monotonic(), True
        self.shown: dict[str, Any] = {}  # scene nodes by layer
        self.server = viser.ViserServer(host=host, port=port, label=f"instant-nk {paths.root.name}", verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._place_camera()
        self._controls()

    @property
    def address(self) -> str:
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def _place_camera(self) -> None:
        """Up as the cameras hold it, and the view from the first one's side."""
        data = self.results.dataset
        turn = data.scene_from_world[:3, :3] / data.scale
        self.up = turn @ camera_path.up_direction(data.cameras.c2w)
        eye = spaces.transform_poses(data.scene_from_world, data.cameras.c2w)[0, :3, 3]
        self.server.scene.set_up_direction(self.up)
        self.server.initial_camera.position = tuple(2.6 * eye / np.linalg.norm(eye))
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self.server.initial_camera.up = tuple(self.up)

    def _controls(self) -> None:
        gui, frames = self.server.gui, self.results.frames
        self.slider = gui.add_slider("frame", 0, max(len(frames) - 1, 1), 1, 0, hint="position in the sequence")
        self.playing = gui.add_checkbox("play", False)
        self.rate = gui.add_slider("frames per second", 1, 30, 1, 10)
        self.shading = gui.add_dropdown("shading", SHADINGS, initial_value="colour")
        self.background = gui.add_rgb("background", (240, 241, 243))
        with gui.add_folder("layers"):
            self.layers = {name: gui.add_checkbox(name, on) for name, on in LAYERS.items()}
        self.status = gui.add_markdown("")
        for control in (self.slider, self.shading, self.background, *self.layers.values()):
            control.on_update(self._changed)

    def _changed(self, _: Any) -> None:
        self.dirty = True

    @property
    def frame(self) -> int:
        return self.results.frames[min(int(self.slider.value), len(self.results.frames) - 1)]

    def step(self) -> None:
        """Advance the clock: play, look for new results, redraw what changed."""
        now = time.monotonic()
        if self.watch and now - self.last_scan >= SCAN_S:
            self.last_scan = now
            self.dirty |= self.results.scan()
            self._say()
        if self.playing.value and now - self.last_step >= 1 / self.rate.value:
            self.last_step = now
            self.slider.value = (int(self.slider.value) + 1) % len(self.results.frames)
            self.dirty = True
        if self.dirty:
            self.dirty = False
            self.draw()

    def _say(self) -> None:
        self.status.content = f"frame {self.frame}\n\n```\n{self.results.status()}\n```"

    def draw(self) -> None:
        """Bring the scene to the chosen frame, shading and layers."""
        with self.server.atomic():
            self.server.scene.set_background_image(np.full((4, 4, 3), self.background.value, np.uint8), format="png")
            for name, make in (
                ("live mesh", self._live_mesh), ("wireframe", self._wireframe), ("canonical mesh", self._canonical_mesh),
                ("graph", self._graph), ("observation", self._observation),
            ):  # fmt: skip
                self._clear(name)
                if self.layers[name].value:
                    self.shown[name] = make()
            self._cameras()
        self._say()

    def _clear(self, name: str) -> None:
        for handle in self.shown.pop(name, []):
            handle.remove()

    def _mesh(self, name: str, vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, shift: float = 0.0) -> list[Any]:
        import trimesh

        rgba = np.concatenate([np.round(colours * 255), np.full((len(colours), 1), 255)], 1).astype(np.uint8)
        mesh = trimesh.Trimesh(vertices, faces, vertex_colors=rgba, process=False)
        across = np.cross(self.up, [0.0, 0.0, 1.0] if abs(self.up[2]) < 0.9 else [0.0, 1.0, 0.0])
        return [self.server.scene.add_mesh_trimesh(name, mesh, position=tuple(shift * across))]

    def _live_mesh(self) -> list[Any]:
        live = self.results.live(self.frame)
        if live is None:
            return []
        vertices, faces, colours, _ = live
        return self._mesh("/live", vertices, faces, shade(self.results, self.frame, vertices, faces, colours, self.shading.value))

    def _wireframe(self) -> list[Any]:
        live = self.results.live(self.frame)
        return [] if live is None else [self.server.scene.add_mesh_simple("/wireframe", live[0], live[1], color=(20, 30, 50), wireframe=True)]

    def _canonical_mesh(self) -> list[Any]:
        """Beside the live mesh, where both are shown."""
        mesh = self.results.canonical
        if mesh is None:
            return []
        colours = shade(self.results, -1, mesh.vertices, mesh.faces, mesh.colours, self.shading.value)
        return self._mesh("/canonical", mesh.vertices, mesh.faces, colours, shift=2.0 if self.layers["live mesh"].value else 0.0)

    def _graph(self) -> list[Any]:
        nodes = self.results.nodes(self.frame)
        if nodes is None:
            return []
        scene, edges = self.server.scene, nodes[self.results.graph.edges]
        return [
            scene.add_point_cloud("/graph/nodes", nodes.astype(np.float32), (200, 30, 30), point_size=0.012, point_shape="circle"),
            scene.add_line_segments("/graph/edges", edges.astype(np.float32), (230, 130, 40), thickness=1.5, thickness_units="screen"),
        ]

    def _observation(self) -> list[Any]:
        seen = self.results.observation(self.frame)
        return [] if seen is None else [self.server.scene.add_point_cloud("/observation", seen.points, seen.colours, point_size=0.006)]

    def _cameras(self) -> None:
        """Frustums stay; with images they are made anew, because their pictures change with the frame. A click looks through a camera."""
        on, images, data = self.layers["cameras"].value, self.layers["images"].value, self.results.dataset
        wanted = f"cameras {images and self.frame}" if on else ""
        if wanted in self.shown:
            return
        for name in [name for name in self.shown if name.startswith("cameras")]:
            self._clear(name)
        if not on:
            return
        poses = spaces.transform_poses(data.scene_from_world, data.cameras.c2w)
        handles = []
        for i, (name, pose, K, (width, height)) in enumerate(zip(data.cameras.names, poses, data.cameras.K, data.cameras.sizes)):
            turn = self.server.scene.add_camera_frustum(
                f"/cameras/{name}", fov=float(2 * np.arctan(height / 2 / K[1, 1])), aspect=float(width / height), scale=0.15, wxyz=_quaternion(pose[:3, :3]),
                position=tuple(pose[:3, 3]), image=_thumbnail(data.image(i, self.frame)) if images else None,
            )  # fmt: skip
            turn.on_click(_look_through)
            handles.append(turn)
        self.shown[wanted] = handles


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_quat(scalar_first=True)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """RGBA u8 on white, at most about 200 pixels wide."""
    small = image[:: max(1, image.shape[0] // 200), :: max(1, image.shape[1] // 200)].astype(np.float32)
    alpha = small[..., 3:] / 255
    return np.round(small[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _look_through(event: Any) -> None:
    with event.client.atomic():
        event.client.camera.wxyz, event.client.camera.position = event.target.wxyz, event.target.position


def serve(paths: Paths, host: str = "127.0.0.1", port: int = 8080, watch: bool = False) -> None:
    """Show a sequence until interrupted."""
    viewer = LiveViewer(paths, host, port, watch)
    port = viewer.server.get_port()
    print(f"viewer: {viewer.address}   (from another machine: ssh -L {port}:localhost:{port} THIS_HOST, then http://localhost:{port}; ctrl-C ends it)")
    try:
        while True:
            viewer.step()
            time.sleep(0.02)
    except KeyboardInterrupt:
        logger.info("viewer closed")
    finally:
        viewer.server.stop()
