"""A UV texture shared by all frames of a mesh.

Texture coordinates: u to the right, v down, (0, 0) the outer corner of the image's top-left texel (as in glTF), so that
texel (row 0, column 0) has its centre at (0.5, 0.5) / size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Texture:
    """An image and where it lies on the mesh. A mesh vertex on a seam has several UV vertices.

    Attributes:
        uv: in [0, 1], f32 [U, 2].
        vertex_of: the mesh vertex of each UV vertex, i32 [U].
        faces: triangles over UV vertices, in the order and orientation of the mesh's: `vertex_of[faces]` are the mesh's faces, i32 [T, 3].
        image: sRGB, u8 [S, S, 3].
    """

    uv: np.ndarray
    vertex_of: np.ndarray
    faces: np.ndarray
    image: np.ndarray
