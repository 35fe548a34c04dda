"""The built-in capture: a textured bending body seen by a ring of cameras, with true motion, in the published capture layout.

A body of smoothly joined limbs is meshed once in its rest pose and moved by a skeleton, so that every mesh of the ground
truth has the same topology and vertex i is one point of the surface. Its colour is a function of the rest position,
evaluated at every sub-pixel, times a mild light fixed in the world. Everything is a function of the configuration: the
same section gives the same bytes. Imports no torch until pictures are drawn.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instant_nk.config import Config
from instant_nk.errors import DataError
from instant_nk.io import artifact

if TYPE_CHECKING:
    import torch

VERSION = 2  # raise when the pictures or the motion change: the folder's name changes with it
PERIOD = 20.0  # frames after which the motion repeats
SUPERSAMPLE = 3
DISTANCE = 3.2  # from the cameras to the middle of the clip's box, for a body about 2 units tall
LIGHT = np.array([0.42, 0.78, 0.46])
DEPTH_STEPS_PER_UNIT = 10000.0  # 16-bit depth reaches 6.5 units


@dataclass(frozen=True)
class Bone:
    """A tapered capsule of the body, in rest coordinates, turning about `start` together with its parent."""

    name: str
    parent: str | None
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radii: tuple[float, float]
    colour: tuple[float, float, float]


SHIRT, TROUSERS, SKIN = (0.08, 0.5, 0.58), (0.22, 0.24, 0.55), (0.85, 0.56, 0.42)
SLEEVE, GLOVE, BOOT = (0.84, 0.32, 0.18), (0.6, 0.68, 0.16), (0.55, 0.18, 0.46)


def _skeleton() -> list[Bone]:
    """The body's bones, parents before children. y is up, z is forward, +x is the body's left."""
    bones = [
        Bone("pelvis", None, (0, -0.06, 0), (0, 0.14, 0), (0.19, 0.18), TROUSERS),
        Bone("spine", "pelvis", (0, 0.14, 0), (0, 0.42, 0), (0.18, 0.19), SHIRT),
        Bone("chest", "spine", (0, 0.42, 0), (0, 0.66, 0), (0.2, 0.17), SHIRT),
        Bone("head", "chest", (0, 0.84, 0), (0, 1.0, 0.02), (0.15, 0.18), SKIN),
        Bone("nose", "head", (0, 0.98, 0.14), (0, 0.95, 0.22), (0.06, 0.04), SLEEVE),
    ]
    for side, x in (("left", 1.0), ("right", -1.0)):
        bones += [
            Bone(f"{side} arm", "chest", (x * 0.22, 0.62, 0), (x * 0.5, 0.42, 0), (0.105, 0.09), SLEEVE),
            Bone(f"{side} forearm", f"{side} arm", (x * 0.5, 0.42, 0), (x * 0.76, 0.23, 0), (0.09, 0.075), SKIN),
            Bone(f"{side} hand", f"{side} forearm", (x * 0.78, 0.215, 0), (x * 0.86, 0.155, 0), (0.09, 0.08), GLOVE),
            Bone(f"{side} thigh", "pelvis", (x * 0.12, -0.1, 0), (x * 0.17, -0.5, 0.01), (0.14, 0.105), TROUSERS),
            Bone(f"{side} shin", f"{side} thigh", (x * 0.17, -0.5, 0.01), (x * 0.19, -0.88, 0), (0.105, 0.085), SKIN),
            Bone(f"{side} foot", f"{side} shin", (x * 0.19, -0.9, 0), (x * 0.21, -0.93, 0.13), (0.085, 0.07), BOOT),
        ]
    return bones


def _bone_distances(points: np.ndarray, bones: list[Bone]) -> np.ndarray:
    """Signed distance of points [..., 3] to each bone's capsule, [..., B]."""
    result = []
    for bone in bones:
        a, b = np.array(bone.start, float), np.array(bone.end, float)
        t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        result.append(np.linalg.norm(points - a - t[..., None] * (b - a), axis=-1) - (bone.radii[0] + t * (bone.radii[1] - bone.radii[0])))
    return np.stack(result, -1)


def _rest_mesh(bones: list[Bone], voxel: float) -> tuple[np.ndarray, np.ndarray]:
    """The smooth union of the bones' capsules as a closed triangle mesh: vertices [V, 3], outward faces [T, 3]."""
    from skimage.measure import marching_cubes

    ends = np.array([[bone.start, bone.end] for bone in bones]).reshape(-1, 3)
    low, high = ends.min(0) - 0.3, ends.max(0) + 0.3
    axes = [np.arange(a, b, voxel) for a, b in zip(low, high)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    blend = 0.035  # width of the fillets between limbs
    distances = _bone_distances(grid, bones)
    sdf = -blend * np.log(np.exp(-distances / blend).sum(-1))
    vertices, faces, _, _ = marching_cubes(sdf, 0.0, spacing=(voxel,) * 3, gradient_direction="descent")
    return vertices.astype(np.float64) + low, faces.astype(np.int32)


def _rotation(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    r = np.eye(3)
    r[i, i], r[j, j], r[i, j], r[j, i] = c, c, -s, s
    return r


def _joint_rotations(frame: float) -> dict[str, np.ndarray]:
    """How each joint turns at a frame: the body sways and twists, one arm lifts, the other swings, the legs tread."""
    phase = 2 * np.pi * frame / PERIOD
    swing, lift = np.sin(phase + 0.5), (1 - np.cos(phase + 0.3)) / 2
    return {
        "pelvis": _rotation("y", 0.16 * swing) @ _rotation("z", 0.05 * swing),
        "spine": _rotation("z", -0.15 * swing) @ _rotation("y", 0.2 * swing),
        "chest": _rotation("z", -0.14 * swing) @ _rotation("y", 0.2 * swing) @ _rotation("x", 0.1 * lift),
        "head": _rotation("y", -0.45 * swing) @ _rotation("x", 0.12 * lift),
        "left arm": _rotation("z", 1.15 * lift) @ _rotation("y", -0.25 * swing),
        "left forearm": _rotation("z", 0.6 * lift),
        "right arm": _rotation("y", 0.6 * swing) @ _rotation("z", -0.12 * lift),
        "right forearm": _rotation("y", 0.25 + 0.55 * lift),
        "left thigh": _rotation("x", 0.28 * swing),
        "left shin": _rotation("x", 0.4 * (1 - lift)),
        "right thigh": _rotation("x", -0.32 * swing),
        "right shin": _rotation("x", 0.45 * lift),
    }


def _bone_transforms(bones: list[Bone], frame: float) -> tuple[np.ndarray, np.ndarray]:
    """Rest-to-posed rotation [B, 3, 3] and translation [B, 3] of each bone."""
    turns = _joint_rotations(frame)
    phase = 2 * np.pi * frame / PERIOD
    sway = np.array([0.07 * np.sin(phase), 0.03 * np.cos(2 * phase), 0.05 * np.sin(phase + 1.0)])
    placed: dict[str | None, tuple[np.ndarray, np.ndarray]] = {None: (np.eye(3), sway)}
    for bone in bones:
        r, t = placed[bone.parent]
        turned = r @ turns.get(bone.name, np.eye(3))
        start = np.array(bone.start, float)
        placed[bone.name] = (turned, r @ start + t - turned @ start)
    return np.stack([placed[b.name][0] for b in bones]), np.stack([placed[b.name][1] for b in bones])


@dataclass(frozen=True)
class Body:
    """The meshed body.

    Attributes:
        rest: vertices in the rest pose, f64 [V, 3].
        faces: outward, i32 [T, 3].
        weights: skinning weights of the bones, rows sum to 1, f64 [V, B].
        colours: base colours, f64 [V, 3].
        bones: the skeleton.
    """

    rest: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    colours: np.ndarray
    bones: list[Bone]

    def posed(self, frame: float) -> np.ndarray:
        """True vertex positions at a frame, body units, f64 [V, 3]."""
        rotations, translations = _bone_transforms(self.bones, frame)
        moved = np.einsum("bij,vj->bvi", rotations, self.rest) + translations[:, None]
        return np.einsum("vb,bvi->vi", self.weights, moved)


def make_body(voxel: float = 0.03) -> Body:
    """Mesh the body and bind it to its skeleton; `voxel` is the marching cubes' cell in body units."""
    bones = _skeleton()
    rest, faces = _rest_mesh(bones, voxel)
    closeness = -_bone_distances(rest, bones) / 0.05
    weights = np.exp(closeness - closeness.max(1, keepdims=True))
    weights[weights < 1e-3] = 0.0  # a hand does not move a knee
    weights /= weights.sum(1, keepdims=True)
    return Body(rest, faces, weights, weights @ np.array([bone.colour for bone in bones]), bones)


def _smooth_noise(rest: torch.Tensor, wavelength: float, seed: int) -> torch.Tensor:
    """Smooth isotropic noise of zero mean and unit variance at positions [N, 3] -> [N]: a sum of random plane waves."""
    import torch

    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(10, 3))
    directions *= 2 * np.pi / wavelength / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = torch.from_numpy(rng.uniform(0, 2 * np.pi, 10)).float()
    return torch.sin(rest @ torch.from_numpy(directions).float().T + phases).sum(1) / 5**0.5


def albedo(rest: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Colour of the body: spots and a fine grain over a base colour that changes from limb to limb.

    Args:
        rest: rest positions f32 [N, 3].
        base: base colours f32 [N, 3].

    Returns:
        sRGB in [0, 1], f32 [N, 3].
    """
    import torch

    spots = torch.sigmoid(4 * (_smooth_noise(rest, 0.34, 1) - 0.35))[:, None]
    warmth = _smooth_noise(rest, 0.5, 2)[:, None] * torch.tensor([0.09, 0.0, -0.09])
    grain = _smooth_noise(rest, 0.17, 3)[:, None] * 0.055
    return ((base + warmth) * (1 - 0.55 * spots) + 0.55 * spots * torch.tensor([0.93, 0.86, 0.68]) + grain).clamp(0.03, 0.97)


@dataclass(frozen=True)
class Camera:
    """A camera of the rig: image file name, camera-to-world in OpenCV axes f64 [4, 4], intrinsics f64 [3, 3]."""

    name: str
    c2w: np.ndarray
    K: np.ndarray


def _rig(clip: np.ndarray, count: int, heldout: int, size: int) -> tuple[list[Camera], list[Camera]]:
    """Training and held-out cameras on a ring at three heights, looking at the middle of the clip [N, V, 3].

    Training and held-out cameras stand at different azimuths; one focal length, the longest that keeps the whole clip
    in every picture, varies by a few per cent from camera to camera.
    """
    middle = (clip.reshape(-1, 3).min(0) + clip.reshape(-1, 3).max(0)) / 2
    poses = [_look_at(middle, 360.0 * i / count, (6.0, 32.0, -14.0)[i % 3]) for i in range(count)]
    poses += [_look_at(middle, 360.0 * j / max(heldout, 1) + 180.0 / count, (18.0, 2.0, 26.0)[j % 3]) for j in range(heldout)]
    corners = np.stack(np.meshgrid(*np.stack([clip.reshape(-1, 3).min(0), clip.reshape(-1, 3).max(0)], 1), indexing="ij"), -1).reshape(-1, 3)
    points = np.concatenate([clip.reshape(-1, 3)[::7], corners * 0.25 + middle * 0.75])
    extent = 0.0
    for pose in poses:
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        extent = max(extent, float(np.abs(local[:, :2] / local[:, 2:]).max()))
    cameras = []
    for i, pose in enumerate(poses):
        focal = 0.455 * size / extent * (1 - 0.02 * (i % 3))
        shift = 0.01 * size * np.array([np.cos(2.4 * i), np.sin(2.4 * i)])
        K = np.array([[focal, 0, size / 2 + shift[0]], [0, focal * 1.01, size / 2 + shift[1]], [0, 0, 1]])
        cameras.append(Camera(f"cam_{i if i < count else i - count:03d}.png", pose, K))
    return cameras[:count], cameras[count:]


def _look_at(target: np.ndarray, azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Camera-to-world f64 [4, 4], OpenCV axes, at DISTANCE from `target`, y up."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.cross(-back, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(-back, right), -back], 1)
    c2w[:3, 3] = target + DISTANCE * back
    return c2w


def capture_path(config: Config) -> Path:
    """Folder of the built-in capture of this configuration: below the results, named by what determines its content."""
    digest = artifact.config_hash({"version": VERSION, **dataclasses.asdict(config.synthetic)})
    return Path(config.runtime.results) / f"synthetic-{digest}"


def write(config: Config, path: Path | str, *, box_scale: float = 1.0, box_offset: tuple[float, float, float] = (0.0, 0.0, 0.0), depth: bool = False) -> Path:
    """Write the capture with its ground truth, whole or not at all; replaces what lies at `path`.

    Args:
        config: `config.synthetic` says how many frames and cameras, and the picture size.
        path: the capture's folder.
        box_scale: world units per unit of the body (which is about 2 units tall).
        box_offset: where the body's origin lies in the world, world units.
        depth: also write 16-bit depth maps of the training cameras (`depth_path`, `integer_depth_scale`).

    Raises:
        DataError: the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise DataError(f"{path}: the synthetic capture could not be written: {error.strerror}. Choose another runtime.results.") from error
    try:
        _write_into(config, aside, box_scale, np.array(box_offset, np.float64), depth)
        aside.chmod(0o755)
        if path.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.rename(path, replaced / "capture")
            os.rename(aside, path)
            shutil.rmtree(replaced)
        else:
            os.rename(aside, path)
    except OSError as error:
        raise DataError(
            f"{path}: the synthetic capture could not be written: {error.strerror}. Nothing was left half-written; free space, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _write_into(config: Config, root: Path, scale: float, offset: np.ndarray, depth: bool) -> None:
    """Render and write everything below `root`."""
    s = config.synthetic
    body = make_body()
    clip = np.stack([body.posed(frame) for frame in range(s.frames)])
    cameras, heldout = _rig(clip, s.cameras, s.heldout_cameras, s.image_size)
    views = np.zeros((s.frames, len(body.rest)), np.uint8)
    painter = _Painter(body, s.image_size)
    for frame in range(s.frames):
        painter.pose(clip[frame])
        for folder, rig, training in (("images", cameras, True), ("images_test", heldout, False)):
            (root / folder / str(frame)).mkdir(parents=True, exist_ok=True)
            for camera in rig:
                rgba, depth_map, seen = painter.paint(camera)
                _write_png(root / folder / str(frame) / camera.name, rgba)
                if training:
                    views[frame] += seen
                if training and depth:
                    _write_png(root / folder / str(frame) / _depth_name(camera), np.round(depth_map * DEPTH_STEPS_PER_UNIT).astype(np.uint16))
    world = clip * scale + offset
    box = np.stack([world.reshape(-1, 3).min(0), world.reshape(-1, 3).max(0)])
    box += np.array([[-0.1], [0.1]]) * (box[1] - box[0])
    for name, folder, rig in (("transforms.json", "images", cameras), ("transforms_test.json", "images_test", heldout)):
        if rig:
            _write_transforms(root / name, folder, rig, s.image_size, box, scale, offset, depth and folder == "images")
    _write_truth(root / "gt", world, body.faces, painter.vertex_colours, views)


class _Painter:
    """Draws the body with antialiasing, texture and light."""

    def __init__(self, body: Body, size: int):
        import torch

        self.size = size
        self.faces = torch.from_numpy(body.faces).long()
        self.rest = torch.from_numpy(body.rest).float()
        self.light = torch.from_numpy(LIGHT / np.linalg.norm(LIGHT)).float()
        self.base = torch.from_numpy(body.colours).float()
        self.vertex_colours = (albedo(self.rest, self.base) * 255).round().byte().numpy()

    def pose(self, vertices: np.ndarray) -> None:
        """Take the body's vertices of a frame, f64 [V, 3]."""
        import torch

        self.vertices = torch.from_numpy(vertices)
        a, b, c = self.vertices[self.faces].float().unbind(1)
        flat = torch.linalg.cross(b - a, c - a)
        normals = torch.zeros(len(vertices), 3).index_add(0, self.faces.reshape(-1), flat.repeat_interleave(3, 0))
        self.normals = torch.nn.functional.normalize(normals, dim=1)

    def paint(self, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picture u8 [H, W, 4] with straight alpha, depth at the pixels' centres f32 [H, W] (0: nothing), seen vertices bool [V]."""
        import torch

        from instant_nk.geometry import rasterize

        n, side = SUPERSAMPLE, self.size * SUPERSAMPLE
        w2c = torch.from_numpy(np.linalg.inv(camera.c2w))
        K = torch.from_numpy(np.diag([n, n, 1.0]) @ camera.K)
        raster = rasterize.rasterize(self.vertices, self.faces, w2c, K, (side, side))
        seen = rasterize.visible_vertices(self.vertices, self.faces, w2c, K, (side, side), raster=raster)
        hit = raster.face_index >= 0
        corners = self.faces[raster.face_index[hit].long()]
        weights = raster.barycentric[hit][..., None]
        colour = albedo((self.rest[corners] * weights).sum(1), (self.base[corners] * weights).sum(1))
        normal = torch.nn.functional.normalize((self.normals[corners] * weights).sum(1), dim=1)
        shade = 0.85 + 0.15 * (normal @ self.light)
        picture = torch.zeros(side, side, 4)
        picture[hit] = torch.cat([colour * shade[:, None], torch.ones(len(colour), 1)], 1)
        picture = picture.reshape(self.size, n, self.size, n, 4).mean((1, 3))
        picture[..., :3] /= picture[..., 3:].clamp_min(1e-6)
        return (picture * 255).round().byte().numpy(), raster.depth[n // 2 :: n, n // 2 :: n].numpy(), seen.numpy()


def _depth_name(camera: Camera) -> str:
    return f"depth_{camera.name.removeprefix('cam_')}"


def _write_png(path: Path, image: np.ndarray) -> None:
    import imageio.v3 as iio

    iio.imwrite(path, image, compress_level=4)


def _write_transforms(path: Path, folder: str, rig: list[Camera], size: int, box: np.ndarray, scale: float, offset: np.ndarray, depth: bool) -> None:
    """Write the cameras in the published layout: one entry per camera, OpenGL axes."""
    entries = []
    for camera in rig:
        pose = camera.c2w.copy()
        pose[:3, 3] = pose[:3, 3] * scale + offset
        pose[:3, 1:3] *= -1  # OpenGL: +y up, looking along -z
        entries.append({"file_path": camera.name, "transform_matrix": pose.tolist(), "K": camera.K.tolist()})
        if depth:
            entries[-1]["depth_path"] = _depth_name(camera)
    value = {"w": size, "h": size, "aabb": box.tolist(), "file_folder": folder, "frames": entries}
    if depth:
        value["integer_depth_scale"] = scale / DEPTH_STEPS_PER_UNIT
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_truth(folder: Path, clip: np.ndarray, faces: np.ndarray, colours: np.ndarray, views: np.ndarray) -> None:
    """Write `mesh_%04d.ply` per frame and `visibility.npz`: world units, one topology."""
    folder.mkdir()
    vertex = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
    face = np.dtype([("count", "u1"), ("index", "<i4", 3)])
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {clip.shape[1]}\n"
    header += "".join(f"property float {a}\n" for a in "xyz") + "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    header += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    triangles = np.empty(len(faces), face)
    triangles["count"], triangles["index"] = 3, faces
    for frame, positions in enumerate(clip):
        points = np.empty(len(positions), vertex)
        points["position"], points["colour"] = positions, colours
        (folder / f"mesh_{frame:04d}.ply").write_bytes(header.encode() + points.tobytes() + triangles.tobytes())
    np.savez_compressed(folder / "visibility.npz", n_views=views)
