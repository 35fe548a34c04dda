"""Node motion of other trackers, read into the ED folder's form: DynamicFusion `.warpfield` files and SVR-L0 rows.

Both are canonical -> live and accumulated. A `.warpfield` (little endian) holds one frame: 16 float32 row-major rigid world -> live; int32[4]
nodes per level; int32 n; n float4, three per node: dual quaternion's real part (w, x, y, z), its dual part, and x, y, z, 1/radius, level L
starting at node 4096 L; int32 m; m times 16 bytes of links between levels. Level 0 moves by rigid * SE3(dual quaternion), in the OpenGL camera
space of frame 0. SVR-L0 rows hold 12 numbers per node, column-major [a11 a21 a31 a12 ... b], node-centred: v' = A (v - u) + u + b.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from instant_nk.errors import DataError
from instant_nk.geometry.spaces import transform_points
from instant_nk.io import ed_folder
from instant_nk.io.ed_folder import NodeMotion

LEVEL_SLOTS = 4096
SAME_NODE = 1e-4  # of the nodes' extent: how far a node's rest position may differ between files


def load(path: Path | str, form: str | None = None) -> tuple[NodeMotion, str]:
    """Read a file or folder of another tracker.

    Args:
        form: "warpfield" or "svr-l0"; None: warpfield where there are `.warpfield` files, otherwise svr-l0.

    Returns:
        its motion, in its own space and unit, and a remark on what was not as plain as it might be ("" if nothing).

    Raises:
        DataError: missing, of neither form, or unsound; names the file and the place in it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Wanted .warpfield files, or a folder with node.txt and a file of SVR-L0 rows per frame.")
    files = [path] if path.is_file() else sorted(path.glob("*.warpfield"))
    if form == "warpfield" or (form is None and files and files[0].suffix == ".warpfield"):
        return load_warpfields(files, path)
    if path.is_file():
        raise DataError(f"{path}: not a .warpfield. Give the folder with node.txt and a file of SVR-L0 rows per frame, or --format warpfield.")
    return load_svr_l0(path), ""


def _by_frame(files: list[Path]) -> dict[int, Path]:
    """Files by the last number in their names; one file without a number is frame 0.

    Raises:
        DataError: a name without a number among several, or two of the same frame.
    """
    found: dict[int, Path] = {}
    for file in files:
        digits = re.findall(r"\d+", file.stem)
        if not digits and len(files) > 1:
            raise DataError(f"{file}: its name holds no frame number. Name files by frame, e.g. {file.stem}_0000{file.suffix}.")
        frame = int(digits[-1]) if digits else 0
        if frame in found:
            raise DataError(f"{file}: frame {frame} is also {found[frame].name}. Keep one file per frame.")
        found[frame] = file
    return dict(sorted(found.items()))


# DynamicFusion


def read_warpfield(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Level 0 of one file: canonical node positions f64 [M, 3] and `[A|t]` f64 [M, 3, 4], not node-centred.

    Raises:
        DataError: shorter or longer than its counts say, or a count, a quaternion or the rigid motion is impossible.
    """
    data = path.read_bytes()

    def need(size: int, what: str) -> None:
        if len(data) < size:
            raise DataError(f"{path}: ends at byte {len(data)}, wanted {size} up to the end of {what}. The file is truncated or no .warpfield.")

    need(84, "its header (rigid motion, nodes per level, count)")
    rigid = np.frombuffer(data, "<f4", 16).reshape(4, 4).astype(np.float64)
    levels, count = np.frombuffer(data, "<i4", 4, 64), int(np.frombuffer(data, "<i4", 1, 80)[0])
    if not (np.isfinite(rigid).all() and np.allclose(rigid[3], [0, 0, 0, 1], atol=1e-4) and np.allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-2)):
        raise DataError(f"{path}: bytes 0..63 are no rigid motion: {rigid.round(3).tolist()}. Wanted 16 float32, row-major, little endian.")
    nodes = int(levels[0])
    if count < 0 or count % 3 or not 0 < nodes <= min(LEVEL_SLOTS, count // 3):
        raise DataError(f"{path}: bytes 64..83 say {levels.tolist()} nodes per level and {count} float4; wanted 1..{LEVEL_SLOTS} nodes, three float4 each.")
    need(88 + 16 * count, f"its {count} float4 of nodes")
    links = int(np.frombuffer(data, "<i4", 1, 84 + 16 * count)[0])
    wanted = 88 + 16 * (count + max(links, 0))
    if links < 0 or len(data) != wanted:
        raise DataError(f"{path}: wanted {wanted} bytes ({count} float4 of nodes, {links} entries of links), got {len(data)}.")
    table = np.frombuffer(data, "<f4", 12 * nodes, 84).reshape(nodes, 3, 4).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(table).all((1, 2)) | ~(np.linalg.norm(table[:, 0], axis=1) > 1e-6))
    if len(bad):
        raise DataError(f"{path}: node {bad[0]} (byte {84 + 48 * bad[0]}): {table[bad[0], :2].tolist()} is no unit dual quaternion.")
    return table[:, 2, :3].copy(), rigid[:3] @ _se3(table[:, 0], table[:, 1])


def _se3(real: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """Rigid motions [M, 4, 4] of dual quaternions (w, x, y, z): rotation of the real part, translation 2 dual real*."""
    length = np.linalg.norm(real, axis=1, keepdims=True)
    (w, x, y, z), d = (real / length).T, dual / length
    result = np.zeros((len(real), 4, 4))
    result[:, 0, 0], result[:, 0, 1], result[:, 0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    result[:, 1, 0], result[:, 1, 1], result[:, 1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    result[:, 2, 0], result[:, 2, 1], result[:, 2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    vector = np.stack([x, y, z], 1)
    result[:, :3, 3] = 2 * (w[:, None] * d[:, 1:] - d[:, :1] * vector - np.cross(d[:, 1:], vector))
    result[:, 3, 3] = 1
    return result


def load_warpfields(files: list[Path], path: Path) -> tuple[NodeMotion, str]:
    """All frames. The graph grows while such a tracker runs: a node that is not there yet moves with its nearest one that is, and the remark says so."""
    if not files:
        raise DataError(f"{path}: holds no .warpfield files.")
    found = _by_frame(files)
    frames = {frame: read_warpfield(file) for frame, file in found.items()}
    nodes, _ = max(frames.values(), key=lambda f: len(f[0]))
    extent = float(np.linalg.norm(np.ptp(nodes, axis=0)))
    affine, late = [], 0
    for frame, (own, matrices) in frames.items():
        shift = np.linalg.norm(own - nodes[: len(own)], axis=1)
        if shift.max() > SAME_NODE * extent:
            raise DataError(f"{found[frame]}: node {shift.argmax()} rests {shift.max():.4g} from where it rests in the other files. Give files of one run.")
        nearest = np.linalg.norm(nodes[len(own) :, None] - own, axis=2).argmin(1) if len(own) < len(nodes) else np.zeros(0, int)
        late = max(late, len(nearest))
        affine.append(np.concatenate([matrices, matrices[nearest]]))
    remark = f"{late} of {len(nodes)} nodes appear after the first frames; until then each moves with the nearest node that exists" if late else ""
    return NodeMotion(nodes, tuple(frames), np.stack(affine)), remark


# SVR-L0


def load_svr_l0(folder: Path) -> NodeMotion:
    """Node-centred rows as un-centred `[A|t]`: t = u + b - A u.

    Raises:
        DataError: no node.txt, no frames, or a file that does not hold 12 numbers per node.
    """
    nodes = ed_folder.load_nodes(folder)
    files = [p for p in sorted(folder.glob("*.txt")) if p.name != "node.txt"] or [p for p in sorted(folder.glob("*/*.txt")) if re.search(r"\d", p.stem)]
    if not files:
        raise DataError(f"{folder}: no file of rows per frame beside node.txt or in a folder below it. Name them by frame, e.g. rows_0000.txt.")
    affine = []
    for file in (found := _by_frame(files)).values():
        rows = ed_folder.numbers(file, f"12 per node for M={len(nodes)} nodes of node.txt: column-major [A|b]", 12 * len(nodes)).reshape(-1, 12)
        linear, shift = rows[:, :9].reshape(-1, 3, 3).transpose(0, 2, 1), rows[:, 9:]
        offset = nodes + shift - np.einsum("mij,mj->mi", linear, nodes)
        affine.append(np.concatenate([linear, offset[..., None]], -1))
    return NodeMotion(nodes, tuple(found), np.stack(affine))


# Space


def read_transform(path: Path | str) -> np.ndarray:
    """A similarity f64 [4, 4] as text, row-major.

    Raises:
        DataError: not 16 numbers, or no rotation, scale and shift.
    """
    matrix = ed_folder.numbers(Path(path), "a row-major 4x4 similarity, the capture's world from the other space", 16).reshape(4, 4)
    linear = matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    if scale <= 0 or not np.allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-4 * scale**2) or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise DataError(f"{path}: {matrix.round(4).tolist()} is no rotation, uniform scale and shift. Mirrored axes must be turned, not flipped.")
    return matrix


def transformed(motion: NodeMotion, world_from_source: np.ndarray) -> NodeMotion:
    """The same motion seen from another space: nodes are carried there, matrices become T M T^-1."""
    inverse = np.linalg.inv(world_from_source)
    linear = world_from_source[:3, :3] @ motion.affine[..., :3]
    offset = motion.affine[..., 3] @ world_from_source[:3, :3].T + world_from_source[:3, 3]
    affine = np.concatenate([linear @ inverse[:3, :3], (linear @ inverse[:3, 3] + offset)[..., None]], -1)
    return NodeMotion(transform_points(world_from_source, motion.node_positions), motion.frames, affine)
