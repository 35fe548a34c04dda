"""Reading PLY: every property of its elements, in the file's own order; what mesh libraries drop (normals of points, empty elements) stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4",
    "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
CORNERS = ("vertex_indices", "vertex_index")  # of faces; other lists, as texture coordinates, are passed over
ORDER = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


def read(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Scalar properties of the vertices by name, [V] each, and triangles i64 [T, 3] (polygons cut into fans), None where there are none.

    Raises:
        ValueError: not a PLY, or shorter than its header says.
    """
    data = path.read_bytes()
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise ValueError("it does not begin with a PLY header")
    start = data.index(b"\n", end) + 1
    order, elements = _header(data[:end].decode("ascii", "replace"))
    vertices, faces = {}, None
    values, position = (data[start:].split(), 0) if order == "" else (data, start)
    for name, count, properties in elements:
        take = _ascii if order == "" else _binary
        columns, lists, position = take(values, position, order, count, properties)
        if name == "vertex":
            vertices = columns
        elif name == "face" and count:
            faces = next((rows for key, rows in lists.items() if key in CORNERS), None)
    if not {"x", "y", "z"} <= set(vertices):
        raise ValueError("its vertices have no x, y, z")
    return vertices, None if faces is None or not len(faces) else faces


def _header(text: str) -> tuple[str, list]:
    """Byte order ("" for text) and elements: name, count, properties as (name, type, type of the count or None)."""
    order, elements = None, []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            order = ORDER[words[1]]
        elif words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:2] == ["property", "list"]:
            elements[-1][2].append((words[4], TYPES[words[3]], TYPES[words[2]]))
        elif words[:1] == ["property"]:
            elements[-1][2].append((words[2], TYPES[words[1]], None))
    if order is None:
        raise ValueError("its header names no format")
    return order, elements


def fans(polygons: list[np.ndarray] | np.ndarray) -> np.ndarray:
    """Triangles i64 [T, 3] of polygons given by their corners; fewer than three corners make none."""
    if isinstance(polygons, np.ndarray):
        k = polygons.shape[1]
        if k < 3:
            return np.zeros((0, 3), np.int64)
        return np.stack([polygons[:, [0, i, i + 1]] for i in range(1, k - 1)], 1).reshape(-1, 3).astype(np.int64)
    return np.array([(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)], np.int64).reshape(-1, 3)


def _ascii(words: list[bytes], position: int, order: str, count: int, properties: list) -> tuple[dict, dict, int]:
    if all(kind is None for _, _, kind in properties):
        stop = position + count * len(properties)
        if stop > len(words):
            raise ValueError("it ends before its header says")
        table = np.array(words[position:stop], np.float64).reshape(count, len(properties))
        return {name: table[:, i] for i, (name, _, _) in enumerate(properties)}, {}, stop
    rows: dict[str, list] = {name: [] for name, _, kind in properties if kind and name in CORNERS}
    for _ in range(count):
        for name, _, kind in properties:
            size = int(words[position]) if kind else 1
            position += bool(kind)
            if name in rows:
                rows[name].append(np.array(words[position : position + size], np.float64).astype(np.int64))
            position += size
    if position > len(words):
        raise ValueError("it ends before its header says")
    return {}, {name: fans(polygons) for name, polygons in rows.items()}, position


def _binary(data: bytes, position: int, order: str, count: int, properties: list) -> tuple[dict, dict, int]:
    """An element whose rows are all alike (scalars, and lists as long as in the first row) at once; otherwise row by row."""
    if not count:
        return {}, {}, position
    sizes, at = [], position
    for _, dtype, kind in properties:
        sizes.append(int(np.frombuffer(data, order + kind, 1, at)[0]) if kind else None)
        at += np.dtype(dtype).itemsize * (1 if kind is None else sizes[-1]) + (np.dtype(kind).itemsize if kind else 0)
    fields = []
    for i, ((_, dtype, kind), size) in enumerate(zip(properties, sizes)):
        fields += [(f"n{i}", order + kind), (f"v{i}", order + dtype, (size,))] if kind else [(f"v{i}", order + dtype)]
    row = np.dtype(fields)
    if position + count * row.itemsize <= len(data):
        table = np.frombuffer(data, row, count, position)
        if all((table[f"n{i}"] == size).all() for i, size in enumerate(sizes) if size is not None):
            columns = {name: table[f"v{i}"].astype(np.float64) for i, (name, _, kind) in enumerate(properties) if kind is None}
            lists = {name: fans(table[f"v{i}"]) for i, (name, _, kind) in enumerate(properties) if kind and name in CORNERS}
            return columns, lists, position + count * row.itemsize
    return _binary_rows(data, position, order, count, properties)


def _binary_rows(data: bytes, position: int, order: str, count: int, properties: list) -> tuple[dict, dict, int]:
    rows: dict[str, list] = {name: [] for name, _, _ in properties}
    for _ in range(count):
        for name, dtype, kind in properties:
            size = int(np.frombuffer(data, order + kind, 1, position)[0]) if kind else 1
            position += np.dtype(kind).itemsize if kind else 0
            rows[name].append(np.frombuffer(data, order + dtype, size, position))
            position += size * np.dtype(dtype).itemsize
    columns = {name: np.concatenate(rows[name]).astype(np.float64) for name, _, kind in properties if kind is None}
    return columns, {name: fans(rows[name]) for name, _, kind in properties if kind and name in CORNERS}, position
