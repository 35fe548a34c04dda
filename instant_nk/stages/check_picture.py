"""The picture of `instant-nk check`: cameras, box and hull in space, and every camera's image with mask outline and box."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from instant_nk.geometry import spaces
from instant_nk.io import artifact, capture_images

if TYPE_CHECKING:
    from instant_nk.stages.check import CameraReport
    from instant_nk.stages.dataset import Plan

PAPER, INK, SOFT = (255, 255, 255), (40, 44, 52), (150, 155, 165)
BOX, TRAIN, HELDOUT, MASK, DOUBT = (26, 140, 90), (40, 90, 200), (230, 140, 20), (220, 30, 60), (200, 0, 0)
SPACE_SIDE, THUMB, GAP, MOST_THUMBS = 720, 180, 10, 40
BOX_EDGES = [(i, i | 1 << axis) for i in range(8) for axis in range(3) if not i >> axis & 1]


def draw(path: Path, plan: Plan, frame: int, hull: np.ndarray, cameras: list[CameraReport], doubtful: set[str]) -> None:
    """Write the picture of a capture at a frame.

    Args:
        path: PNG file.
        hull: visual hull bool [R, R, R] of the frame, over [-1, 1]^3 scene space.
        cameras: findings per training camera, printed under the thumbnails.
        doubtful: names of those to frame in red.
    """
    shown = sorted(set(np.linspace(0, len(cameras) - 1, min(MOST_THUMBS, len(cameras))).round().astype(int)))
    columns = max(4, int(np.ceil(np.sqrt(len(shown) * 1.2))))
    rows = -(-len(shown) // columns)
    width = SPACE_SIDE + columns * (THUMB + GAP) + GAP
    height = max(SPACE_SIDE, rows * (THUMB + 30 + GAP)) + 40
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text(
        (GAP, GAP),
        f"{plan.root}   frame {frame}   {len(plan.train)} training (blue), {len(plan.heldout)} held-out cameras (orange)   box (green): {plan.box_source}",
        fill=INK,
    )
    page.paste(draw_space(plan, hull), (0, 40))
    for place, index in enumerate(shown):
        x = SPACE_SIDE + GAP + place % columns * (THUMB + GAP)
        y = 40 + place // columns * (THUMB + 30 + GAP)
        page.paste(draw_view(plan, int(index), frame), (x, y))
        found = cameras[index]
        if found.name in doubtful:
            pen.rectangle((x - 3, y - 3, x + THUMB + 2, y + THUMB + 2), outline=DOUBT, width=3)
        pen.text((x, y + THUMB + 2), found.name[:28], fill=INK)
        pen.text(
            (x, y + THUMB + 15), f"outside {100 * found.outside:.1f} %  hull {100 * found.explained:.0f} %", fill=DOUBT if found.name in doubtful else SOFT
        )
    with artifact.atomic(path) as aside:
        page.save(aside, format="PNG")


def draw_space(plan: Plan, hull: np.ndarray) -> Image.Image:
    """Cameras, box and hull of a capture, seen from above one corner; parallel projection."""
    image = Image.new("RGB", (SPACE_SIDE, SPACE_SIDE), PAPER)
    pen = ImageDraw.Draw(image)
    poses = np.stack([c.c2w for c in (*plan.train.cameras, *plan.heldout.cameras)])
    up = -poses[:, :3, 1].mean(0)  # the rig's own up
    axis = np.zeros(3)
    axis[np.abs(up).argmax()] = np.sign(up[np.abs(up).argmax()]) or 1.0
    side, ahead = np.roll(axis, 1) * axis.sum(), np.roll(axis, 2)
    sight = -(0.8 * side + 0.55 * ahead + 0.5 * axis)
    right = np.cross(sight, axis)
    right /= np.linalg.norm(right)
    above = np.cross(right, sight / np.linalg.norm(sight))
    turn = np.stack([right, above])

    corners = spaces.box_corners(plan.box)
    flat = np.concatenate([poses[:, :3, 3], corners]) @ turn.T
    low, high = flat.min(0), flat.max(0)
    zoom = (SPACE_SIDE - 120) / max((high - low).max(), 1e-12)

    def place(points: np.ndarray) -> np.ndarray:
        return np.array([SPACE_SIDE / 2, SPACE_SIDE / 2]) + ((np.asarray(points) @ turn.T) - (low + high) / 2) * zoom * [1, -1]

    cells = np.argwhere(hull)
    if len(cells) > 20000:
        cells = cells[:: len(cells) // 20000 + 1]
    subject = spaces.transform_points(spaces.invert_similarity(spaces.similarity_from_box(plan.box)), -1 + (2 * cells + 1) / hull.shape[0])
    for x, y in place(subject):
        pen.point((x, y), fill=SOFT)
    for a, b in BOX_EDGES:
        pen.line([tuple(p) for p in place(corners[[a, b]])], fill=BOX, width=2)
    size = 28 / zoom
    for images, colour in ((plan.train, TRAIN), (plan.heldout, HELDOUT)):
        for camera, lens in zip(images.cameras, images.lenses):
            frustum = _frustum(camera.c2w, lens.K, lens.size, size)
            seen = [tuple(p) for p in place(frustum)]
            for corner in seen[1:]:
                pen.line([seen[0], corner], fill=colour)
            pen.line([*seen[1:], seen[1]], fill=colour)
    for index, (name, colour) in enumerate(zip("xyz", ((200, 40, 40), (40, 150, 40), (40, 40, 200)))):
        arrow = np.zeros((2, 3))
        arrow[1, index] = 40 / zoom
        tip = place(arrow)[1] - place(arrow)[0] + [60, SPACE_SIDE - 70]
        pen.line([(60, SPACE_SIDE - 70), tuple(tip)], fill=colour, width=2)
        pen.text(tuple(tip), name, fill=colour)
    return image


def _frustum(c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], depth: float) -> np.ndarray:
    """Apex and image corners [5, 3] of a camera's view pyramid of some depth, world units."""
    corners = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], np.float64)
    rays = np.concatenate([(corners - K[:2, 2]) / np.diag(K)[:2], np.ones((4, 1))], 1) * depth
    return np.concatenate([c2w[None, :3, 3], spaces.transform_points(c2w, rays)])


def draw_view(plan: Plan, index: int, frame: int) -> Image.Image:
    """A camera's image on grey with the outline of its mask (red) and the box (green)."""
    rgba = plan.train.read(index, frame)
    lens, camera = plan.train.lenses[index], plan.train.cameras[index]
    zoom = THUMB / max(lens.size)
    small = Image.fromarray(rgba).resize([max(1, round(s * zoom)) for s in lens.size], Image.Resampling.BOX)
    image = Image.new("RGB", small.size, (225, 227, 230))
    image.paste(small, mask=small.getchannel("A"))
    mask = np.asarray(small.getchannel("A")) >= capture_images.MASK_LEVEL
    inner = np.pad(mask, 1, mode="edge")
    outline = mask & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])
    pixels = np.array(image)
    pixels[outline] = MASK
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    w2c = spaces.invert_poses(camera.c2w)
    corners = spaces.box_corners(plan.box)
    for a, b in BOX_EDGES:
        steps = np.linspace(0, 1, 33)[:, None]
        local = spaces.transform_points(w2c, corners[a] * (1 - steps) + corners[b] * steps)
        ahead = local[:, 2] > 1e-9
        uv = (local @ lens.K.T)[:, :2] / np.where(ahead, local[:, 2], 1.0)[:, None] * zoom
        for i in np.flatnonzero(ahead[:-1] & ahead[1:]):
            if np.abs(uv[i : i + 2]).max() < 4 * THUMB:
                pen.line([tuple(uv[i]), tuple(uv[i + 1])], fill=BOX)
    card = Image.new("RGB", (THUMB, THUMB), PAPER)
    card.paste(image, (0, 0))
    return card
