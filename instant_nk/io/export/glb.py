"""Animated GLB: one mesh, one morph target per frame, and a weights animation that walks through them.

Frame 0 is the base shape; target i holds frame i minus frame 0, and key i gives target i the weight 1, so that the
shape is exact at every key and, with linear interpolation, moves on straight lines between them. The capture's world
coordinates are kept; when the subject lies far from the origin the large part sits in the node's translation, so that
float32 positions keep their precision. glTF calls +y up; where the capture's up is another, a node above turns the mesh.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import imageio.v3 as iio
import numpy as np

from instant_nk.geometry.texture import Texture
from instant_nk.io.export.common import check_animation, frame_times, linear_from_srgb, stand, unit_normals
from instant_nk.io.export.gltf import INDEX_DATA, VERTEX_DATA, Document
from instant_nk.io.mesh import Animation


def node_offset(vertices: np.ndarray) -> np.ndarray:
    """The part of the positions to carry as a node's translation, f64 [3]: zero unless the subject is farther from the origin than it is large."""
    low, high = vertices.min((0, 1)).astype(np.float64), vertices.max((0, 1)).astype(np.float64)
    centre = (low + high) / 2
    if np.abs(centre).max() <= np.linalg.norm(high - low):
        return np.zeros(3)
    return centre.astype(np.float32).astype(np.float64)  # viewers hold it in float32


def add_material(document: Document, texture: Texture | None) -> None:
    """A matt double-sided material: white times vertex colour, or the texture."""
    surface: dict = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    if texture is not None:
        document.add_png(iio.imwrite("<bytes>", texture.image, extension=".png"))
        surface["baseColorTexture"] = {"index": 0}
    document.json["materials"] = [{"name": "surface", "doubleSided": True, "pbrMetallicRoughness": surface}]


def add_surface(document: Document, colours: np.ndarray, faces: np.ndarray, texture: Texture | None) -> tuple[dict, np.ndarray]:
    """Everything of a primitive but positions, normals and motion.

    glTF multiplies vertex colours into the texture, so a textured mesh carries none.

    Returns:
        the primitive, and the mesh vertex of each of its vertices (a textured mesh doubles vertices along seams).
    """
    add_material(document, texture)
    if texture is None:
        rgba = np.ones((len(colours), 4))
        rgba[:, :3] = linear_from_srgb(colours)
        attributes = {"COLOR_0": document.add(np.round(rgba * 65535).astype(np.uint16), VERTEX_DATA, normalized=True)}
        source = np.arange(len(colours))
    else:
        attributes = {"TEXCOORD_0": document.add(texture.uv.astype(np.float32), VERTEX_DATA)}
        faces, source = texture.faces, texture.vertex_of
    return {"attributes": attributes, "indices": document.add(faces.astype(np.uint32).ravel(), INDEX_DATA), "material": 0}, source


def export_glb(
    animation: Animation,
    path: Path | str,
    fps: float,
    texture: Texture | None = None,
    interpolation: Literal["LINEAR", "STEP"] = "LINEAR",
    morph_normals: bool = True,
    up: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> None:
    """Write the animation as one .glb with morph targets, whole or not at all.

    Args:
        fps: frames per second; gaps in the frame numbers keep their length.
        texture: baked atlas; None: vertex colours (COLOR_0, converted to linear light as glTF asks).
        interpolation: between frames: straight lines, or none.
        morph_normals: also store each frame's normals (twice the size); without them viewers shade all frames with the first frame's.
        up: the world's up.

    Raises:
        ContractError: the animation cannot be exported, would pass the format's 4 GiB, or the disk is full.
    """
    check_animation(animation, path)
    times = frame_times(animation.frames, fps)
    document = Document()
    primitive, source = add_surface(document, animation.colours, animation.faces, texture)
    offset = node_offset(animation.vertices)
    base = (animation.vertices[0] - offset).astype(np.float32)
    base_normals = unit_normals(animation.vertices[0], animation.faces)
    primitive["attributes"] |= {"POSITION": document.add(base[source], VERTEX_DATA, bounds=True), "NORMAL": document.add(base_normals[source], VERTEX_DATA)}
    targets = []
    for vertices in animation.vertices[1:]:
        local = (vertices - offset).astype(np.float32)
        target = {"POSITION": document.add((local - base)[source], VERTEX_DATA, bounds=True)}
        if morph_normals:
            target["NORMAL"] = document.add((unit_normals(vertices, animation.faces) - base_normals)[source], VERTEX_DATA)
        targets.append(target)
    mesh: dict = {"name": "surface", "primitives": [primitive], "extras": {"frames": animation.frames.tolist(), "fps": fps}}
    if targets:
        primitive["targets"] = targets
        mesh |= {"weights": [0.0] * len(targets)}
        mesh["extras"]["targetNames"] = [f"frame_{frame:06d}" for frame in animation.frames[1:]]
        _add_weights_animation(document, times, interpolation)
    node = {"name": "animated_mesh", "mesh": 0} | ({"translation": offset.tolist()} if offset.any() else {})
    document.json |= {"meshes": [mesh], "nodes": [node]}
    document.add_scene([0], 0, stand(up))
    document.write(path)


def _add_weights_animation(document: Document, times: np.ndarray, interpolation: str) -> None:
    """Key i gives morph target i the weight 1 and all others 0; key 0 is the base shape."""
    weights = np.eye(len(times), dtype=np.float32)[:, 1:].ravel()
    sampler = {"input": document.add(times, bounds=True), "output": document.add(weights), "interpolation": interpolation}
    document.json["animations"] = [{"name": "frames", "samplers": [sampler], "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}]}]
