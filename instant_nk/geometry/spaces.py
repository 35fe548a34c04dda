"""World and scene: the one similarity between a capture's units and the cube that all stages compute in.

*World* is the capture's own axes and units; *scene* is world moved and scaled (never turned) so that the box's centre lies at
the origin and its longest edge spans [-1, 1]. Everything here is float64 numpy: a box far from the origin, or tiny, or huge,
must not cost digits before the shift is taken out.
"""

from __future__ import annotations

import numpy as np


def similarity_from_box(box: np.ndarray) -> np.ndarray:
    """`scene_from_world` f64 [4, 4] for a box [[min], [max]] in world units."""
    low, high = np.asarray(box, np.float64)
    scale = 2.0 / (high - low).max()
    result = np.eye(4)
    result[:3, :3] *= scale
    result[:3, 3] = -scale * (low + (high - low) / 2)
    return result


def scale_of(similarity: np.ndarray) -> float:
    """Target units per source unit of a similarity [4, 4]."""
    return float(np.linalg.norm(np.asarray(similarity, np.float64)[:3, :3], axis=0).mean())


def invert_similarity(similarity: np.ndarray) -> np.ndarray:
    """Inverse of a similarity, in closed form, f64 [4, 4]."""
    similarity = np.asarray(similarity, np.float64)
    result = np.eye(4)
    result[:3, :3] = similarity[:3, :3].T / scale_of(similarity) ** 2
    result[:3, 3] = -result[:3, :3] @ similarity[:3, 3]
    return result


def transform_points(target_from_source: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] in the target space, f64."""
    matrix = np.asarray(target_from_source, np.float64)
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def transform_poses(target_from_source: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Camera-to-source poses [..., 4, 4] as rigid camera-to-target poses: centres are moved and scaled, rotations only turned."""
    matrix = np.asarray(target_from_source, np.float64)
    result = np.array(c2w, np.float64)
    result[..., :3, :3] = (matrix[:3, :3] / scale_of(matrix)) @ result[..., :3, :3]
    result[..., :3, 3] = transform_points(matrix, c2w[..., :3, 3])
    return result


def invert_poses(c2w: np.ndarray) -> np.ndarray:
    """World-to-camera [..., 4, 4] of rigid camera-to-world poses, f64."""
    c2w = np.asarray(c2w, np.float64)
    result = np.zeros_like(c2w)
    result[..., :3, :3] = np.swapaxes(c2w[..., :3, :3], -1, -2)
    result[..., :3, 3] = -(result[..., :3, :3] @ c2w[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


def box_corners(box: np.ndarray) -> np.ndarray:
    """The eight corners [8, 3] of a box [[min], [max]]; corner i has axis a at its maximum where bit a of i is set."""
    box = np.asarray(box, np.float64)
    return np.array([[box[(i >> axis) & 1, axis] for axis in range(3)] for i in range(8)])
