"""Pictures of the animated mesh with its texture or vertex colours, by z-buffer: the same interface as the neural renderer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F

from instant_nk.errors import ContractError
from instant_nk.geometry import rasterize, surface
from instant_nk.geometry import texture as texture_map
from instant_nk.geometry.texture import Texture
from instant_nk.io.mesh import Animation


def read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The texture of one frame u8 [S, S, 3].

    Raises:
        ContractError: missing, unreadable, or of another size than the texture whose layout it shares.
    """
    try:
        image = iio.imread(path)
    except (OSError, ValueError) as error:
        raise ContractError(f"{path}: not a readable picture ({error}). Re-run stage 'mesh' (--forcerun mesh_join).") from None
    if image.shape != shape:
        raise ContractError(
            f"{path}: wanted a picture of {list(shape)} like the texture's, got {list(image.shape)}. Re-run stage 'mesh' (--forcerun mesh_join)."
        )
    return image


class MeshRenderer:
    """Draws an animation in world space.

    Args:
        animation: vertices, faces and colours.
        device: where to rasterise.
        supersample: samples along each axis of a pixel.
        texture: shown instead of the vertex colours.
        images: picture files that replace the texture's at a frame, by frame number.

    Raises:
        ContractError: the texture belongs to another mesh.
    """

    def __init__(
        self,
        animation: Animation,
        device: str = "cpu",
        supersample: int = 2,
        texture: Texture | None = None,
        images: Mapping[int, Path] | None = None,
    ):
        self.images, self.painted = images or {}, None
        self.animation, self.device, self.supersample = animation, device, supersample
        self.row = {int(frame): i for i, frame in enumerate(animation.frames)}
        self.faces = torch.from_numpy(animation.faces).long().to(device)
        self.colours = torch.from_numpy(animation.colours).to(device)
        self.kept: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self.textured = texture is not None
        if texture is not None:
            if not np.array_equal(texture.vertex_of[texture.faces], animation.faces):
                raise ContractError("texture: lies on another mesh than the animation's. Re-run stage 'mesh' (--forcerun mesh_join).")
            self.uv, self.uv_faces = torch.from_numpy(texture.uv).to(device), torch.from_numpy(texture.faces).long().to(device)
            self.image = torch.from_numpy(texture.image).float().to(device) / 255

    def _paint(self, frame: int) -> None:
        """Make the texture's image that of a frame, where frames have their own; the last one is kept."""
        if frame in self.images and self.painted != frame:
            image = read_image(self.images[frame], tuple(self.image.shape))
            self.image, self.painted = torch.from_numpy(image).to(self.device).float() / 255, frame

    def _frame(self, frame: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Vertices and vertex normals [V, 3] of a frame; the last one is kept, because many cameras look at it."""
        if self.kept is None or self.kept[0] != frame:
            vertices = self.animation.vertices[self.row[frame]]
            normals = torch.from_numpy(surface.vertex_normals(vertices, self.animation.faces)).float()
            self.kept = (frame, torch.from_numpy(vertices).to(self.device), normals.to(self.device))
        return self.kept[1], self.kept[2]

    def render(self, c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], frame: int) -> dict[str, np.ndarray]:
        """What a camera sees at a frame.

        Args:
            c2w: camera-to-world, OpenCV axes, f64 [4, 4].
            K: intrinsics in pixels [3, 3].
            size: (width, height) in pixels.
            frame: absolute frame number.

        Returns:
            rgb: straight colour f32 [H, W, 3]; vertex_rgb: the same from the vertex colours, also where a texture is shown;
            alpha: coverage f32 [H, W]; depth: along the optical axis, world units, 0 where nothing is seen, f32 [H, W];
            normal: unit, world space, f32 [H, W, 3].
        """
        n, (width, height) = self.supersample, size
        vertices, normals = self._frame(frame)
        self._paint(frame)
        w2c = torch.from_numpy(np.linalg.inv(np.asarray(c2w, np.float64)))
        scaled = torch.from_numpy(np.diag([n, n, 1.0]) @ np.asarray(K, np.float64))
        raster = rasterize.rasterize(vertices, self.faces, w2c, scaled, (width * n, height * n))
        seen = (raster.face_index >= 0).float()[..., None]
        layers = [rasterize.interpolate(raster, self.faces, torch.cat([self.colours, normals], 1)), raster.depth[..., None], seen]
        layers = torch.cat([*layers, self._texels(raster)] if self.textured else layers, -1)
        layers = layers.reshape(height, n, width, n, -1).mean((1, 3))
        alpha = layers[..., 7]
        straight = layers / alpha.clamp_min(1e-6)[..., None]
        values = {
            "rgb": straight[..., 8:] if self.textured else straight[..., :3],
            "vertex_rgb": straight[..., :3],
            "alpha": alpha,
            "depth": straight[..., 6],
            "normal": F.normalize(straight[..., 3:6], dim=-1),
        }
        return {name: value.cpu().numpy() for name, value in values.items()}

    def _texels(self, raster: rasterize.Raster) -> torch.Tensor:
        """The texture's colour at every sample, bilinear, [H, W, 3]; black where nothing is seen."""
        seen = raster.face_index >= 0
        uv = rasterize.interpolate(raster, self.uv_faces, self.uv)[seen]
        colour = torch.zeros(*seen.shape, 3, device=self.image.device)
        colour[seen] = texture_map.read(self.image, uv * torch.tensor([self.image.shape[1], self.image.shape[0]], device=uv.device))
        return colour

    def silhouette(self, c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], frame: int, stride: int = 1) -> np.ndarray:
        """Whether each `stride`-th pixel's centre, starting at `stride // 2`, sees the mesh: bool [rows, columns]."""
        first = stride // 2
        rows, columns = len(range(first, size[1], stride)), len(range(first, size[0], stride))
        K = np.array([[1 / stride, 0, 0.5 - (first + 0.5) / stride], [0, 1 / stride, 0.5 - (first + 0.5) / stride], [0, 0, 1]]) @ K
        raster = rasterize.rasterize(self._frame(frame)[0], self.faces, torch.from_numpy(np.linalg.inv(c2w)), torch.from_numpy(K), (columns, rows))
        return (raster.face_index >= 0).cpu().numpy()
