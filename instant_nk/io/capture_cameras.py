"""Cameras of a raw capture: the json vocabulary of the published layout and of instant-ngp / NeRF, read strictly.

Every camera comes out in one form: camera-to-world in OpenCV axes (the json's are OpenGL: y up, looking along -z),
3x3 intrinsics in pixels whose pixel (row 0, column 0) has its centre at (0.5, 0.5), and Brown-Conrady distortion.
A key that changes what poses or pixels mean and is not supported is an error; a key that does not is left out, with one log line.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from instant_nk.errors import DataError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
RIGID_TOLERANCE = 1e-3

# Keys this reader uses; those of the second group may stand once for all cameras or in each camera's own entry.
TOP_KEYS = {"file_folder", "frames", "aabb", "aabb_scale", "scale", "offset", "integer_depth_scale", "depth_unit_scale_factor", "enable_depth_loading"}
INTRINSIC_KEYS = {"K", "w", "h", "fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov", "cx", "cy", "k1", "k2", "k3", "p1", "p2"}
FOCAL_KEYS = {"fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov"}
ENTRY_KEYS = {"file_path", "transform_matrix", "time", "depth_path", "mask_path"}

# Keys that change the meaning of poses or pixels, and what can be done instead. Their neutral values (absent, false, zero) pass.
LENS = "Only the pinhole model with k1, k2, k3, p1, p2 is supported: undistort the images first."
AXES = "Convert transform_matrix to plain NeRF (OpenGL) axes and remove the key."
SHUTTER = "Only a global shutter is supported: remove the key if the effect is negligible."
KEYED = "Give masks instead (alpha, a masks folder, or dataset.background)."
UNSUPPORTED = {
    **dict.fromkeys(("k4", "k5", "k6", "s1", "s2", "s3", "s4", "is_fisheye", "fisheye", "lens", "lens_mode", "ftheta_p0", "latlong", "equirectangular"), LENS),
    **dict.fromkeys(("ftheta_p1", "ftheta_p2", "ftheta_p3", "ftheta_p4", "distortion_model", "fisheye_crop_radius", "rays_path"), LENS),
    **dict.fromkeys(("from_na", "from_mitsuba"), AXES),
    **dict.fromkeys(("rolling_shutter", "transform_matrix_start", "transform_matrix_end"), SHUTTER),
    **dict.fromkeys(("white_transparent", "black_transparent", "mask_color"), KEYED),
    "fix_premult": "Store the images with straight (not premultiplied) alpha.",
}
CAMERA_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


@dataclass(frozen=True)
class RawCamera:
    """One camera of a raw capture.

    Attributes:
        name: unique name of the camera: its file name with extension.
        c2w: camera-to-world, OpenCV axes, world units, f64 [4, 4].
        intrinsics: the json's intrinsic keys that hold for this camera; `K` makes the matrix.
        distortion: Brown-Conrady coefficients k1, k2, p1, p2, k3, f64 [5].
        size: width and height in pixels the json states; None: what the images have.
        files: `file_path`, and `mask_path`, `depth_path` where given, by frame; under None when they are the same for all frames.
        where: file and entry of the json, for messages.
    """

    name: str
    c2w: np.ndarray
    intrinsics: dict[str, Any]
    distortion: np.ndarray
    size: tuple[int, int] | None
    files: dict[int | None, dict[str, str]]
    where: str

    def K(self, size: tuple[int, int]) -> np.ndarray:
        """Intrinsics of the raw images of `size` (width, height) pixels, f64 [3, 3]."""
        return _intrinsic_matrix(self.intrinsics, size, self.where)


def load_json(path: Path) -> dict[str, Any]:
    """The capture's json, with the place of a syntax error named."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Wanted a json with cameras as in transforms.json; see docs/captures.md.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}. Repair or re-export the file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: wanted a table with 'frames', got {type(value).__name__}.")
    if not isinstance(value.get("frames"), list):
        raise DataError(
            f"{path}: key 'frames' (a list with one entry per camera) is {'missing' if 'frames' not in value else 'not a list'}.{_meant('frames', value)}"
        )
    if not value["frames"]:
        raise DataError(f"{path}: 'frames' is empty: zero cameras.")
    return value


def check_vocabulary(meta: dict[str, Any], path: Path) -> None:
    """Refuse keys that change the meaning and are not supported; name the ignored ones in one log line."""
    ignored = set()
    tables = [("", meta, TOP_KEYS | INTRINSIC_KEYS)]
    tables += [(f"frames[{i}].", entry, ENTRY_KEYS | INTRINSIC_KEYS) for i, entry in enumerate(meta["frames"]) if isinstance(entry, dict)]
    for prefix, table, known in tables:
        for name, value in table.items():
            if name == "camera_model":
                if str(value).upper() not in CAMERA_MODELS:
                    raise DataError(f"{path}: '{prefix}camera_model' is '{value}'; wanted {' | '.join(CAMERA_MODELS)}. {LENS}")
            elif name in UNSUPPORTED:
                if not _neutral(value):
                    raise DataError(f"{path}: key '{prefix}{name}' = {value!r} changes the meaning of the capture and is not supported. {UNSUPPORTED[name]}")
            elif name not in known:
                ignored.add(name)
    if ignored:
        log.info("%s: ignored keys: %s", path, ", ".join(sorted(ignored)))


def _neutral(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_neutral(v) for v in value)
    return value is None or value is False or value == 0


def _meant(wanted: str, table: dict[str, Any]) -> str:
    match = difflib.get_close_matches(wanted, [str(k) for k in table], n=1, cutoff=0.75)
    return f" Did you mean it by '{match[0]}'?" if match else ""


def entry_where(path: Path, index: int, entry: dict[str, Any]) -> str:
    name = entry.get("file_path") if isinstance(entry, dict) else None
    return f"{path}: frames[{index}]" + (f" ('{name}')" if name else "")


def number(value: Any, where: str, key: str) -> float:
    """A finite number, or a `DataError` that names the key."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{where}: '{key}' must be a finite number, got {value!r}.")
    return float(value)


def file_name(value: Any, where: str, key: str) -> str:
    """A path of the json with forward slashes and an extension (NeRF files leave out `.png`)."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: '{key}' must be a file name, got {value!r}.")
    path = PurePosixPath(value.replace("\\", "/"))
    return str(path if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES else path.with_name(path.name + ".png"))


def matrix(value: Any, shape: tuple[int, int], where: str, key: str) -> np.ndarray:
    """A finite f64 matrix of `shape`."""
    try:
        result = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: '{key}' must be {shape[0]}x{shape[1]} numbers.") from None
    if result.shape != shape:
        raise DataError(f"{where}: '{key}' must be {shape[0]}x{shape[1]} numbers, got shape {list(result.shape)}.")
    if not np.isfinite(result).all():
        raise DataError(f"{where}: '{key}' holds values that are not finite.")
    return result


def read_pose(entry: dict[str, Any], where: str) -> np.ndarray:
    """`transform_matrix` (OpenGL axes) as a rigid camera-to-world in OpenCV axes, f64 [4, 4].

    The rotation is replaced by the nearest exact one, which takes out the rounding of the printed digits.
    """
    if "transform_matrix" not in entry:
        raise DataError(f"{where}: key 'transform_matrix' (4x4 camera-to-world) is missing.{_meant('transform_matrix', entry)}")
    pose = matrix(entry["transform_matrix"], (4, 4), where, "transform_matrix")
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise DataError(f"{where}: the last row of 'transform_matrix' must be 0 0 0 1, got {pose[3].tolist()}. Is it transposed?")
    rotation = pose[:3, :3]
    u, sizes, vt = np.linalg.svd(rotation)
    if np.linalg.det(rotation) <= 0:
        raise DataError(f"{where}: 'transform_matrix' is not rigid: its 3x3 part mirrors (determinant {np.linalg.det(rotation):.4g}, wanted 1).")
    if np.abs(sizes - 1).max() > RIGID_TOLERANCE:
        raise DataError(
            f"{where}: 'transform_matrix' is not rigid: its 3x3 part scales by {sizes.min():.4g} to {sizes.max():.4g}, wanted 1. Divide the scale out of the rotation."
        )
    pose[:3, :3] = u @ vt
    return pose @ OPENCV_FROM_OPENGL


def read_camera(meta: dict[str, Any], entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Pose, intrinsics, distortion and size of one entry; what the entry lacks is taken from the top level."""
    lens = _lens_keys(meta, entry, where)
    if not lens.keys() & (FOCAL_KEYS | {"K"}):
        raise DataError(f"{where}: no intrinsics: wanted 'K', 'fl_x' or 'camera_angle_x'.{_meant('fl_x', entry)}")
    size = None
    if "w" in lens or "h" in lens:
        if not ("w" in lens and "h" in lens):
            raise DataError(f"{where}: 'w' and 'h' must be given together.")
        size = (int(number(lens["w"], where, "w")), int(number(lens["h"], where, "h")))
        if min(size) <= 0:
            raise DataError(f"{where}: 'w' and 'h' must be above zero, got {size[0]}x{size[1]}.")
    distortion = np.array([number(lens.get(k, 0.0), where, k) for k in ("k1", "k2", "p1", "p2", "k3")])
    _intrinsic_matrix(lens, size or (2, 2), where)  # complain now, before any image is opened
    return {"c2w": read_pose(entry, where), "intrinsics": lens, "distortion": distortion, "size": size}


def _lens_keys(meta: dict[str, Any], entry: dict[str, Any], where: str) -> dict[str, Any]:
    """The intrinsic keys that hold for an entry: its own, and the shared ones that say what it does not, whatever the spelling of either."""
    own = {k: entry[k] for k in INTRINSIC_KEYS if k in entry}
    shared = {k: meta[k] for k in INTRINSIC_KEYS if k in meta}
    focal = own.keys() & FOCAL_KEYS
    if "K" in shared and "K" not in own and (focal or own.keys() & {"cx", "cy"}):
        K = _full_matrix(shared["K"], where)
        centre = {"cx": float(K[0, 2]), "cy": float(K[1, 2])}
        if focal:  # of the shared K only the principal point is left
            del shared["K"]
            shared |= centre
        else:
            K[:2, 2] = [number(own.get(key, value), where, key) for key, value in centre.items()]
            shared["K"] = K.tolist()
    return {k: value for k, value in shared.items() if not (focal and k in FOCAL_KEYS)} | own


def _full_matrix(value: Any, where: str) -> np.ndarray:
    """The intrinsics that a json gives as `K`, f64 [3, 3]."""
    K = matrix(value, (3, 3), where, "K")
    if not np.allclose(K[2], [0, 0, 1], atol=1e-9) or abs(K[1, 0]) > 1e-9:
        raise DataError(f"{where}: 'K' must have the rows fx s cx / 0 fy cy / 0 0 1, got {K.tolist()}. Is it transposed?")
    return K


def _intrinsic_matrix(lens: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    if "K" in lens:
        K = _full_matrix(lens["K"], where)
    else:
        x = _focal(lens, "x", size[0], where)
        y = _focal(lens, "y", size[1], where)
        K = np.array([[x or y, 0, size[0] / 2], [0, y or x, size[1] / 2], [0, 0, 1.0]])
        for row, key in ((0, "cx"), (1, "cy")):
            if key in lens:
                K[row, 2] = number(lens[key], where, key)
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        raise DataError(f"{where}: the focal length must be above zero, got fx={K[0, 0]:g}, fy={K[1, 1]:g}.")
    return K


def _focal(lens: dict[str, Any], axis: str, side: int, where: str) -> float | None:
    """Focal length in pixels along one axis from `fl_*` (pixels), `camera_angle_*` (radians) or `*_fov` (degrees)."""
    if f"fl_{axis}" in lens:
        focal = number(lens[f"fl_{axis}"], where, f"fl_{axis}")
        if focal <= 0:
            raise DataError(f"{where}: the focal length 'fl_{axis}' must be above zero, got {focal:g}.")
        return focal
    for key, radians in ((f"camera_angle_{axis}", 1.0), (f"{axis}_fov", math.pi / 180)):
        if key in lens:
            angle = number(lens[key], where, key) * radians
            if not 0 < angle < math.pi:
                raise DataError(f"{where}: the view angle '{key}' must lie between 0 and 180 degrees, got {math.degrees(angle):g} degrees.")
            return 0.5 * side / math.tan(0.5 * angle)
    return None


def read_box(meta: dict[str, Any], path: Path) -> np.ndarray | None:
    """The capture's box [[min], [max]] in world units, f64 [2, 3]; None when the json gives none.

    `aabb` is the box itself. Otherwise `scale`, `offset` and `aabb_scale` have instant-ngp's meaning: a world point p lies at
    p * scale + offset in its unit cube (scale 0.33, offset 0.5 when left out), and its box has the side `aabb_scale` (1 when
    left out) around (0.5, 0.5, 0.5). In world units that is the cube of side aabb_scale / scale around (0.5 - offset) / scale.
    """
    if "aabb" in meta:
        box = matrix(meta["aabb"], (2, 3), str(path), "aabb")
    elif any(k in meta for k in ("aabb_scale", "scale", "offset")):
        scale = number(meta.get("scale", 0.33), str(path), "scale")
        if scale <= 0:
            raise DataError(f"{path}: 'scale' must be above zero, got {scale:g}.")
        offset = meta.get("offset", 0.5)
        offset = matrix([offset], (1, 3), str(path), "offset")[0] if isinstance(offset, list) else np.full(3, number(offset, str(path), "offset"))
        side = number(meta.get("aabb_scale", 1.0), str(path), "aabb_scale")
        box = (0.5 + np.array([[-0.5], [0.5]]) * side - offset) / scale
    else:
        return None
    check_box(box, f"{path}: the box ('{'aabb' if 'aabb' in meta else 'aabb_scale'}')")
    return box


def check_box(box: np.ndarray, where: str) -> None:
    """Refuse a box of zero or inverted size."""
    if not (box[1] > box[0]).all():
        axis = int(np.argmin(box[1] - box[0]))
        size = box[1, axis] - box[0, axis]
        raise DataError(
            f"{where} has {'zero' if size == 0 else 'inverted'} size along {'xyz'[axis]}: min {box[0].tolist()}, max {box[1].tolist()}. Wanted min below max on every axis."
        )


def read_depth_unit(meta: dict[str, Any], path: Path) -> float:
    """World units per integer step of the depth maps; millimetres of a capture in metres when not stated."""
    key = "integer_depth_scale" if "integer_depth_scale" in meta else "depth_unit_scale_factor"
    unit = number(meta.get(key, 0.001), str(path), key)
    if unit <= 0:
        raise DataError(f"{path}: '{key}' must be above zero, got {unit:g}.")
    return unit
