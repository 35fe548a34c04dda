"""The dataset artifact: the validated, undistorted form of a capture, written by stage 1 and read by all others.

`1_dataset/dataset.json` is the manifest; images are read lazily, one at a time, so that memory does not grow with the
number of frames. Poses are camera-to-world in OpenCV axes, world units; `scene_from_world` brings the subject into [-1, 1]^3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image

from instant_nk.errors import ContractError, DataError
from instant_nk.geometry import spaces
from instant_nk.io import artifact

FORMAT = 1
HULL_FORMAT = 1


@dataclass(frozen=True)
class CameraSet:
    """C calibrated cameras.

    Attributes:
        names: file name of each camera's images, e.g. ``"cam_000.png"``, unique.
        c2w: camera-to-world, OpenCV axes, world units, f64 [C, 4, 4].
        K: intrinsics in pixels of the stored (undistorted) images, f64 [C, 3, 3]; pixel (row 0, column 0) has its centre at (0.5, 0.5).
        sizes: width and height in pixels, i32 [C, 2].
    """

    names: tuple[str, ...]
    c2w: np.ndarray
    K: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "c2w": self.c2w.tolist(), "K": self.K.tolist(), "sizes": self.sizes.tolist()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> CameraSet:
        n = len(value["names"])
        return CameraSet(
            tuple(value["names"]),
            np.array(value["c2w"], np.float64).reshape(n, 4, 4),
            np.array(value["K"], np.float64).reshape(n, 3, 3),
            np.array(value["sizes"], np.int32).reshape(n, 2),
        )


@dataclass(frozen=True)
class Dataset:
    """A validated sequence.

    Attributes:
        root: folder of the manifest (`results/{sequence}/1_dataset`).
        capture: folder of the capture it was made from.
        frames: absolute frame numbers, ascending.
        canonical_frame: the frame whose shape is the rest shape.
        cameras: training cameras.
        heldout: cameras for evaluation only (possibly none). Nothing but the report reads their images.
        scene_from_world: similarity f64 [4, 4] that brings `box` into [-1, 1]^3.
        box: [[min], [max]] in world units, f64 [2, 3].
        images: per frame (as text) the training cameras' image paths, relative to `root` or absolute.
        heldout_images: the same for held-out cameras; None where the file is absent.
        depth: the same for 16-bit depth maps, or None when the capture has none.
        depth_unit: world units per integer step of the depth maps.
    """

    root: Path
    capture: Path
    frames: tuple[int, ...]
    canonical_frame: int
    cameras: CameraSet
    heldout: CameraSet
    scene_from_world: np.ndarray
    box: np.ndarray
    images: dict[str, list[str]]
    heldout_images: dict[str, list[str | None]]
    depth: dict[str, list[str]] | None = None
    depth_unit: float = 0.001

    @property
    def world_from_scene(self) -> np.ndarray:
        """Similarity f64 [4, 4]."""
        return np.linalg.inv(self.scene_from_world)

    @property
    def scale(self) -> float:
        """Scene units per world unit."""
        return float(np.cbrt(np.linalg.det(self.scene_from_world[:3, :3])))

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Scene points [..., 3] in world units, f32; computed in double precision."""
        return spaces.transform_points(self.world_from_scene, points).astype(np.float32)

    def image_path(self, camera: int, frame: int) -> Path:
        return self.root / self.images[str(frame)][camera]

    def image(self, camera: int, frame: int) -> np.ndarray:
        """Training image, straight alpha = mask, u8 [H, W, 4]."""
        return _read_rgba(self.image_path(camera, frame), tuple(self.cameras.sizes[camera]))

    def heldout_image(self, camera: int, frame: int) -> np.ndarray | None:
        """Held-out image u8 [H, W, 4], or None where the capture has none. For evaluation only."""
        name = self.heldout_images[str(frame)][camera]
        return None if name is None else _read_rgba(self.root / name, tuple(self.heldout.sizes[camera]))

    def depth_map(self, camera: int, frame: int) -> np.ndarray:
        """Depth along the optical axis, world units, f32 [H, W]; 0 where unknown.

        Raises:
            DataError: the capture has no depth maps.
        """
        if self.depth is None:
            raise DataError(f"{self.capture}: the capture has no depth maps ('depth_path' in its json). Use observation.provider: neural.")
        return iio.imread(self.root / self.depth[str(frame)][camera]).astype(np.float32) * np.float32(self.depth_unit)

    def hull_path(self, frame: int) -> Path:
        return self.root / "hulls" / f"{frame:06d}.npz"

    def hull(self, frame: int) -> np.ndarray:
        """Visual hull of a frame: bool [R, R, R] over [-1, 1]^3 scene space, axes x, y, z, voxel i centred at -1 + (2 i + 1) / R."""
        path = self.hull_path(frame)
        _, arrays = artifact.load_npz(path, "hull", HULL_FORMAT)
        r = int(arrays["resolution"])
        return np.unpackbits(arrays["bits"], count=r**3).reshape(r, r, r).astype(bool)

    def save_hull(self, frame: int, occupied: np.ndarray, header: dict[str, Any]) -> None:
        """Write the visual hull bool [R, R, R] of a frame."""
        artifact.save_npz(self.hull_path(frame), header, bits=np.packbits(occupied), resolution=np.int64(occupied.shape[0]))


def _read_rgba(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as file:  # imageio looks for plugins that are not installed at every image, one thread at a time
            image = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the image cannot be read ({error}). It was readable when stage 'dataset' ran; restore it or re-run that stage.") from None
    if image.shape != (size[1], size[0], 4) or image.dtype != np.uint8:
        raise DataError(
            f"{path}: wanted 8-bit RGBA of {size[0]}x{size[1]} pixels, got {image.dtype} {image.shape}. The capture changed; re-run stage 'dataset'."
        )
    return image


def save(dataset: Dataset, header: dict[str, Any], extra: dict[str, Any] | None = None) -> None:
    """Write the manifest. `extra` holds what later runs compare against, such as the capture's listing."""
    artifact.save_json(
        dataset.root / "dataset.json",
        {
            "header": header,
            "capture": str(dataset.capture),
            "frames": list(dataset.frames),
            "canonical_frame": dataset.canonical_frame,
            "cameras": dataset.cameras.to_json(),
            "heldout": dataset.heldout.to_json(),
            "scene_from_world": dataset.scene_from_world.tolist(),
            "box": dataset.box.tolist(),
            "images": dataset.images,
            "heldout_images": dataset.heldout_images,
            "depth": dataset.depth,
            "depth_unit": dataset.depth_unit,
            "extra": extra or {},
        },
    )


def load(manifest: Path | str) -> Dataset:
    """Read a manifest written by `save`.

    Raises:
        ContractError: missing, broken, or of another format.
    """
    manifest = Path(manifest)
    value = artifact.load_json(manifest, "the dataset manifest")
    artifact.check_header(manifest, value.get("header", {}), "dataset", FORMAT)
    try:
        return Dataset(
            root=manifest.parent,
            capture=Path(value["capture"]),
            frames=tuple(value["frames"]),
            canonical_frame=value["canonical_frame"],
            cameras=CameraSet.from_json(value["cameras"]),
            heldout=CameraSet.from_json(value["heldout"]),
            scene_from_world=np.array(value["scene_from_world"], np.float64),
            box=np.array(value["box"], np.float64),
            images=value["images"],
            heldout_images=value["heldout_images"],
            depth=value["depth"],
            depth_unit=value["depth_unit"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ContractError(f"{manifest}: the manifest lacks or garbles {error}. Re-run stage 'dataset'.") from None
