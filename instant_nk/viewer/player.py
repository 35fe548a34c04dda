"""The offline 3-D player: a self-contained HTML fragment that plays an animated mesh, from disk, without any network request.

Positions travel as 16-bit steps of the animation's box. Each frame is stored as differences to the frame before, and those
as differences along a vertex order in which neighbours follow each other, split into byte planes and compressed: neighbours
move alike, so little is left. `assets/player.js` undoes this in the browser and draws with WebGL 2.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from instant_nk.errors import ContractError
from instant_nk.geometry.texture import Texture
from instant_nk.io.export.common import bytes_from_colours, check_animation, check_fps
from instant_nk.io.mesh import Animation
from instant_nk.viewer.mesh_renderer import read_image

STEPS = 65535  # the longest side of the box in quantisation steps
IMAGE_PIXELS = 24_000_000  # of all frames' own textures together: about 5 MB of JPEG, 100 MB on the graphics card
SHADINGS = ("lit", "colour", "clay", "normals", "depth")  # the numbers assets/player.js knows them by


class _Pack:
    """Pieces of one byte string; `pieces` says where each lies and in how many byte planes."""

    def __init__(self) -> None:
        self.pieces: dict[str, dict[str, int]] = {}
        self.chunks: list[bytes] = []
        self.length = 0

    def raw(self, name: str, values: np.ndarray, planes: int = 1) -> None:
        data = values.tobytes()
        self.pieces[name] = {"offset": self.length, "count": len(data) // planes, "planes": planes}
        self.chunks.append(data)
        self.length += len(data)

    def signed(self, name: str, values: np.ndarray, planes: int) -> None:
        """Small signed numbers as zigzag (0, -1, 1, -2, ...), lowest byte of all first."""
        values = values.ravel().astype(np.int64)
        zigzag = ((values << 1) ^ (values >> 63)).astype("<u4")
        self.raw(name, np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, 4)[:, :planes].T), planes)

    def indices(self, name: str, values: np.ndarray) -> None:
        self.signed(name, np.diff(values.ravel().astype(np.int64), prepend=0), 4)

    def track(self, name: str, steps: np.ndarray) -> None:
        """Positions u16 [N, P, 3] as differences over time of differences along the points, modulo 2^16."""
        change = np.diff(steps.astype(np.int64), axis=0, prepend=0)
        change = np.diff(change, axis=1, prepend=0)
        self.signed(name, change.astype(np.int16), 2)


def _coherent_order(faces: np.ndarray, count: int) -> np.ndarray:
    """A vertex order in which neighbours on the mesh are near each other."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    adjacency = sparse.coo_matrix((np.ones(len(pairs), np.int8), pairs.T), (count, count)).tocsr()
    return csgraph.reverse_cuthill_mckee(adjacency + adjacency.T, symmetric_mode=True)


def _sorted_faces(faces: np.ndarray) -> np.ndarray:
    """Triangles turned so that the smallest index comes first, and sorted; orientation is kept."""
    turn = faces.argmin(1)
    faces = np.stack([np.take_along_axis(faces, ((turn + k) % 3)[:, None], 1)[:, 0] for k in range(3)], 1)
    return faces[np.lexsort(faces.T[::-1])]


def _pack(animation: Animation, texture: Texture | None, nodes: np.ndarray | None, edges: np.ndarray | None) -> tuple[bytes, dict[str, Any]]:
    """The compressed pieces and what the decoder must know about them."""
    everything = [animation.vertices] if nodes is None else [animation.vertices, nodes]
    low = np.min([a.min((0, 1)) for a in everything], 0).astype(np.float64)
    extent = np.max([a.max((0, 1)) for a in everything], 0) - low
    step = float(extent.max()) / STEPS or 1.0

    def steps(positions: np.ndarray) -> np.ndarray:
        return np.round((positions - low) / step).astype(np.uint16)

    order = _coherent_order(animation.faces, animation.vertices.shape[1])
    rank = np.argsort(order)
    pack = _Pack()
    pack.track("positions", steps(animation.vertices[:, order]))
    pack.indices("faces", _sorted_faces(rank[animation.faces]))
    if texture is None:
        pack.raw("colours", bytes_from_colours(animation.colours[order]))
    else:
        uv_order = np.argsort(rank[texture.vertex_of], kind="stable")
        pack.indices("vertex_of", rank[texture.vertex_of][uv_order])
        pack.indices("uv_faces", _sorted_faces(np.argsort(uv_order)[texture.faces]))
        pack.signed("uv", np.round(texture.uv[uv_order] * STEPS).astype(np.uint16).view(np.int16), 2)
    if nodes is not None:
        pack.track("nodes", steps(nodes))
        pack.indices("edges", edges)
    meta = {"pieces": pack.pieces, "low": low.tolist(), "extent": extent.tolist(), "step": step}
    return gzip.compress(b"".join(pack.chunks), 9, mtime=0), meta


def _image_urls(texture: Texture | None, paths: Sequence[Path]) -> list[str]:
    """The texture's picture; or one per frame, so small that all together have at most IMAGE_PIXELS."""
    if texture is None or not paths:
        return [] if texture is None else [_image_url(texture.image)]
    side = min(len(texture.image), int((IMAGE_PIXELS / len(paths)) ** 0.5))
    pictures = (Image.fromarray(read_image(path, texture.image.shape)) for path in paths)
    return [_image_url(np.asarray(picture.resize((side, side), Image.Resampling.BOX))) for picture in pictures]


def _image_url(image: np.ndarray) -> str:
    data = iio.imwrite("<bytes>", image, extension=".jpg", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def player_html(
    animation: Animation,
    *,
    fps: float,
    texture: Texture | None = None,
    images: Sequence[Path] | None = None,
    nodes: np.ndarray | None = None,
    edges: np.ndarray | None = None,
    title: str = "",
    up: tuple[float, float, float] = (0.0, 1.0, 0.0),
    eye: tuple[float, float, float] | None = None,
    background: str = "#e8eaed",
    video_id: str | None = None,
) -> str:
    """An HTML fragment (one `<div>` with its style and script inside) that plays the animation in 3-D.

    Orbit by mouse or touch, time slider, play and pause, shading (lit, colour, clay, normals, depth), wireframe, graph,
    background. The page's address may say how it opens: `#frame=12&shading=normals&wireframe=1&graph=1`. The element carries `data-state` ("ready" or
    "failed"), `data-frame` and a `player` object with `seek(frame)`.

    Args:
        animation: world coordinates.
        fps: frames per second.
        texture: shown instead of vertex colours; embedded as JPEG.
        images: with a texture: picture files, one per frame, shown instead of its own; made smaller where they are many.
        nodes: graph node positions at every frame, f32 [N, M, 3], world units; with `edges` i32 [E, 2].
        title: shown over the picture.
        up: the world's up direction.
        eye: a world position from whose direction to look first, such as a camera's; None: along the third axis.
        background: "#rrggbb".
        video_id: id of a `<video>` element on the page that is kept at the same frame.

    Raises:
        ContractError: the animation cannot be shown, nodes or images do not match its frames, or an image cannot be read.
    """
    check_animation(animation, "player")
    check_fps(fps)
    if nodes is not None and (edges is None or nodes.ndim != 3 or len(nodes) != len(animation.frames)):
        raise ContractError(f"player: graph nodes must be [N={len(animation.frames)}, M, 3] and come with edges [E, 2]; got {list(nodes.shape)}.")
    if images and (texture is None or len(images) != len(animation.frames)):
        raise ContractError(f"player: images must be one per frame, N={len(animation.frames)}, and come with a texture; got {len(images)}.")
    data, meta = _pack(animation, texture, nodes, edges)
    direction = np.asarray(up, np.float64) / np.linalg.norm(up)
    meta |= {
        "frames": animation.frames.tolist(),
        "fps": fps,
        "up": direction.tolist(),
        "eye": None if eye is None else [float(x) for x in eye],
        "floor": float((animation.vertices @ direction).min()),
        "images": _image_urls(texture, images or []),
        "video": video_id,
    }
    assets = resources.files("instant_nk.viewer") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("player.css", "player.js"))
    options = "".join(f'<option value="{i}">{name}</option>' for i, name in enumerate(SHADINGS))
    graph = '<label><input type="checkbox" class="nk-graph"> graph</label>' if nodes is not None else ""
    return f"""<div class="nk-player" data-state="loading"><style>{style}</style>
<canvas tabindex="0" aria-label="3-D view: drag to turn, wheel to zoom, space to play"></canvas>
<div class="nk-title">{html.escape(title)}</div><div class="nk-message">unpacking …</div>
<div class="nk-bar"><button type="button" class="nk-play" aria-label="play">▶</button>
<input type="range" class="nk-time" min="0" value="0" step="1" aria-label="time"><span class="nk-frame"></span></div>
<div class="nk-bar nk-options"><label>shading <select class="nk-shading">{options}</select></label>
<label><input type="checkbox" class="nk-wireframe"> wireframe</label>{graph}
<label>background <input type="color" class="nk-background" value="{html.escape(background)}"></label></div>
<script type="application/json" class="nk-meta">{json.dumps(meta, allow_nan=False).replace("<", chr(92) + "u003c")}</script>
<script type="text/plain" class="nk-data">{base64.b64encode(data).decode()}</script>
<script>{script}</script></div>"""
