"""From rendered layers to pictures that people read: colour on white, coloured depth, coloured normals, mosaics, data URIs."""

from __future__ import annotations

import base64
from typing import Any

import imageio.v3 as iio
import numpy as np

from instant_nk.geometry.evaluation import on_white

# Dark blue (near) to pale yellow (far), of steadily growing lightness.
DEPTH_STOPS = np.array([[36, 24, 92], [42, 80, 150], [38, 138, 150], [92, 188, 120], [190, 216, 90], [252, 244, 170]]) / 255

CLAY = np.array([0.86, 0.83, 0.80])
CLAY_LIGHT = np.array([-0.5, -0.7, -0.51])  # camera axes, unit


def layers_of(rendered: dict[str, Any]) -> dict[str, np.ndarray]:
    """A renderer's layers, tensors on any device or arrays, as arrays."""
    return {name: value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value) for name, value in rendered.items()}


def to_rgba(layers: dict[str, np.ndarray]) -> np.ndarray:
    """Straight-alpha picture u8 [H, W, 4] of rendered layers; colour is 0 where nothing is seen."""
    alpha = np.round(np.clip(layers["alpha"], 0, 1) * 255).astype(np.uint8)
    rgb = np.round(np.clip(layers["rgb"], 0, 1) * 255).astype(np.uint8)
    return np.concatenate([np.where(alpha[..., None] > 0, rgb, 0), alpha[..., None]], -1).astype(np.uint8)


def flat(rgba: np.ndarray) -> np.ndarray:
    """RGBA u8 over white, u8 [H, W, 3]."""
    return np.round(on_white(rgba / 255.0) * 255).astype(np.uint8)


def depth_picture(layers: dict[str, np.ndarray], near: float, far: float) -> np.ndarray:
    """Depth as colour between `near` (dark) and `far` (bright), on white, u8 [H, W, 3]; where it is 0, unknown, nothing is drawn."""
    position = np.clip((layers["depth"] - near) / max(far - near, 1e-12), 0, 1) * (len(DEPTH_STOPS) - 1)
    colour = np.stack([np.interp(position, np.arange(len(DEPTH_STOPS)), DEPTH_STOPS[:, i]) for i in range(3)], -1)
    return _over_white(colour, np.where(layers["depth"] > 0, layers["alpha"], 0))


def normal_picture(layers: dict[str, np.ndarray], c2w: np.ndarray) -> np.ndarray:
    """Normals as colour in the camera's frame (red right, green up, blue towards the viewer), on white, u8 [H, W, 3]."""
    local = layers["normal"] @ np.asarray(c2w, np.float64)[:3, :3] * np.array([1, -1, -1])
    return _over_white(0.5 + 0.5 * local, layers["alpha"])


def clay_picture(layers: dict[str, np.ndarray], c2w: np.ndarray) -> np.ndarray:
    """The bare surface lit from the camera and from above left of it, on white, u8 [H, W, 3]: shape without colour."""
    local = layers["normal"] @ np.asarray(c2w, np.float64)[:3, :3]  # OpenCV axes: towards the viewer is -z, up is -y
    front, above = np.clip(-local[..., 2], 0, 1), np.clip(local @ CLAY_LIGHT, 0, 1)
    return _over_white(CLAY * np.clip(0.3 + 0.25 * front + 0.55 * above, 0, 1)[..., None], layers["alpha"])


def _over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = np.clip(alpha, 0, 1)[..., None]
    return np.round(np.clip(colour * alpha + 1 - alpha, 0, 1) * 255).astype(np.uint8)


def depth_range(layers: dict[str, np.ndarray]) -> tuple[float, float] | None:
    """Nearest and farthest depth of what is clearly seen, None when nothing is."""
    seen = layers["depth"][layers["alpha"] > 0.5]
    return (float(np.percentile(seen, 1)), float(np.percentile(seen, 99))) if seen.size else None


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """The u8 picture averaged over whole blocks of pixels until its longer side is at most `longest`."""
    n = -(-max(image.shape[:2]) // longest)
    if n <= 1:
        return image
    h, w = image.shape[0] // n, image.shape[1] // n
    return np.round(image[: h * n, : w * n].reshape(h, n, w, n, -1).mean((1, 3))).astype(np.uint8)


def crop_box(seen: np.ndarray, margin: float = 0.06) -> tuple[slice, slice]:
    """Rows and columns of the smallest square around what is seen bool [H, W], with a margin, within the picture; the whole picture when nothing is seen."""
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return slice(0, seen.shape[0]), slice(0, seen.shape[1])
    side = int(np.ceil(max(rows[-1] - rows[0], columns[-1] - columns[0]) * (1 + 2 * margin))) + 1
    return _centred(rows[0], rows[-1], side, seen.shape[0]), _centred(columns[0], columns[-1], side, seen.shape[1])


def _centred(first: int, last: int, side: int, limit: int) -> slice:
    side = min(side, limit)
    start = min(max((first + last + 1 - side) // 2, 0), limit - side)
    return slice(int(start), int(start + side))


def png_bytes(image: np.ndarray) -> bytes:
    return iio.imwrite("<bytes>", image, extension=".png")


def data_uri(data: bytes, kind: str) -> str:
    """The bytes as an address that needs no file and no network."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
