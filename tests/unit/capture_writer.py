"""Tiny captures for tests: a ball and a smaller one beside it, rendered by ray casting from a ring of cameras."""

from __future__ import annotations

import json
import shutil
import subprocess
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


def encode(path: Path, images: list[np.ndarray], *codec: str) -> None:
    """Write images u8 [H, W, 1 | 3 | 4] as a video with the given ffmpeg options; without any, nearly lossless H.264."""
    import imageio_ffmpeg

    height, width, channels = images[0].shape
    form = {1: "gray", 3: "rgb24", 4: "rgba"}[channels]
    codec = codec or ("-c:v", "libx264", "-crf", "4", "-pix_fmt", "yuv444p", "-movflags", "+faststart")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", form, "-s", f"{width}x{height}", "-r", "25", "-i", "-"]
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, *codec, str(path)], input=np.ascontiguousarray(images).tobytes(), check=True)


def as_videos(
    root: Path, meta: dict[str, Any], masks: str = "video", suffix: str = ".mp4", codec: tuple[str, ...] = (), heldout: bool = True
) -> dict[str, Any]:
    """Turn a capture that `write_capture` wrote into one video per camera in `videos/`; returns its transforms.json.

    Args:
        masks: `video`: a mask video per camera in `masks/`; `images`: mask images per frame there; `alpha`: the videos keep alpha; `none`.
    """
    for name, folder, to in (("transforms.json", "images", "videos"), ("transforms_test.json", "images_test", "videos_test")):
        if not (root / name).is_file() or (folder == "images_test" and not heldout):
            continue
        changed = json.loads((root / name).read_text())
        for entry in changed["frames"]:
            frames = sorted((root / folder).iterdir(), key=lambda p: int(p.name))
            images = [np.asarray(Image.open(frame / entry["file_path"])) for frame in frames]
            target = (root / to / entry["file_path"]).with_suffix(suffix)
            kept = (
                images if masks == "alpha" else [np.where(i[..., 3:] > 0, i[..., :3], np.array(BACKDROP, np.uint8)) if i.shape[2] == 4 else i for i in images]
            )
            encode(target, kept, *codec)
            beside = root / to.replace("videos", "masks")
            if masks == "video":
                encode((beside / entry["file_path"]).with_suffix(".mp4"), [i[..., 3:] for i in images], "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p")
            elif masks == "images":
                for number, image in enumerate(images):
                    path = beside / str(number) / entry["file_path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image[..., 3]).save(path)
            entry["file_path"] = target.name
        changed["file_folder"] = to
        rewrite(root, changed, name)
        shutil.rmtree(root / folder)
    return json.loads((root / "transforms.json").read_text())
