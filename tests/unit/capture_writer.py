"""Tiny captures for tests: a ball and a smaller one beside it, rendered by ray casting from a ring of cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from instant_nk import config, layout

BALLS = ((np.array([0.0, 0.0, 0.0]), 0.5, (200, 60, 40)), (np.array([0.45, 0.35, 0.1]), 0.2, (40, 90, 220)))
"""Centre, radius and colour of the subject's parts, in units of the capture's scale; the second moves along y with the frame."""
BACKDROP = (10, 200, 30)


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Camera-to-world in OpenGL axes [4, 4]."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :4] = np.stack([right, np.cross(back, right), back, eye], 1)
    return pose


def distort(x: np.ndarray, y: np.ndarray, k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's documented formula."""
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2), y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y


def render(pose: np.ndarray, K: np.ndarray, size: tuple[int, int], frame: int, scale: float = 1.0, offset: np.ndarray | float = 0.0, lens: dict | None = None):
    """RGBA u8 [H, W, 4] and depth f64 [H, W] (0: background) of the subject from an OpenGL pose."""
    u, v = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    xd, yd = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    x, y = xd.copy(), yd.copy()
    for _ in range(60 if lens else 0):  # invert the distortion by fixed-point iteration
        dx, dy = distort(x, y, **lens)
        x, y = x - (dx - xd), y - (dy - yd)
    d = np.stack([x, -y, -np.ones_like(x)], -1) @ pose[:3, :3].T
    o = (pose[:3, 3] - offset) / scale
    rgba, depth = np.zeros((size[1], size[0], 4), np.uint8), np.full((size[1], size[0]), np.inf)
    for index, (centre, radius, colour) in enumerate(BALLS):
        m = o - (centre + [0, 0.04 * frame * index, 0])
        a, b, c = (d * d).sum(-1), (d @ m), m @ m - radius**2
        root = b * b - a * c
        t = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        hit = (t > 0) & (t < depth)
        rgba[hit] = (*colour, 255)
        depth[hit] = t[hit]
    return rgba, np.where(np.isfinite(depth), depth, 0.0) * scale


def write_capture(
    root: Path, frames: int = 2, cameras: int = 6, heldout: int = 1, size: tuple[int, int] = (40, 32), scale: float = 1.0, offset: Any = 0.0, lens: dict | None = None,
    mode: str = "RGBA", depth: bool = False, box: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write a capture in the published layout; returns its transforms.json.

    Args:
        scale, offset: the subject's size and place in world units.
        lens: distortion of all cameras.
        mode: `RGBA`; `RGB`: on a plain backdrop, without masks.
    """
    root.mkdir(parents=True, exist_ok=True)
    K = np.array([[1.4 * size[0], 0, size[0] / 2 + 0.3], [0, 1.4 * size[0], size[1] / 2 - 0.2], [0, 0, 1]])
    result = {}
    for name, folder, count, lift in (("transforms.json", "images", cameras, 0.9), ("transforms_test.json", "images_test", heldout, -0.8)):
        meta: dict[str, Any] = {"w": size[0], "h": size[1], "file_folder": folder, "frames": []}
        if box:
            meta["aabb"] = (np.array([[-0.6, -0.6, -0.6], [0.75, 0.75, 0.6]]) * scale + offset).tolist()
        if depth and folder == "images":
            meta["integer_depth_scale"] = 0.001 * scale
        meta |= lens or {}
        for i in range(count):
            angle = 2 * np.pi * i / max(count, 1) + 0.1
            pose = look_at(np.array([3.4 * np.sin(angle), lift * (-1) ** i, 3.4 * np.cos(angle)]) * scale + offset, np.zeros(3) + offset)
            entry = {"file_path": f"cam_{i:03d}.png", "transform_matrix": pose.tolist(), "K": K.tolist()}
            for frame in range(frames):
                rgba, z = render(pose, K, size, frame, scale, offset, lens)
                if mode == "RGB":
                    rgba = np.where(rgba[..., 3:] > 0, rgba, np.array([*BACKDROP, 255], np.uint8))[..., :3]
                path = root / folder / str(frame) / entry["file_path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(rgba)).save(path)
                if depth and folder == "images":
                    entry["depth_path"] = f"depth_{i:03d}.png"
                    Image.fromarray(np.rint(z / scale * 1000).astype(np.uint16)).save(path.with_name(entry["depth_path"]))
            meta["frames"].append(entry)
        if count:
            (root / name).write_text(json.dumps(meta))
        result[name] = meta
    return result["transforms.json"]


def rewrite(root: Path, meta: dict[str, Any], name: str = "transforms.json") -> None:
    """Write a changed json."""
    (root / name).write_text(json.dumps(meta))


def job(root: Path, results: Path, **sections: Any) -> layout.Job:
    """A dataset job on a capture."""
    parsed = config.parse({"capture": str(root), "sequence": "s", "preset": "tiny", "runtime": {"results": str(results), "threads": 2}, **sections})
    return layout.Job(parsed, layout.paths_of(parsed))
