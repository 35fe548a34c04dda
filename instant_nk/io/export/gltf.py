"""The glTF 2.0 container: typed arrays and a scene description, written as one binary .glb."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import __version__
from instant_nk.errors import ContractError
from instant_nk.io import artifact

VERTEX_DATA, INDEX_DATA = 34962, 34963  # bufferView targets ARRAY_BUFFER and ELEMENT_ARRAY_BUFFER
MAX_BYTES = 2**32 - 1  # the length field of a .glb is 32 bits wide
_COMPONENT = {"uint8": 5121, "uint16": 5123, "uint32": 5125, "float32": 5126}
_SHAPE = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}


class Document:
    """A glTF document under construction: `json` is its scene description, `add` appends an array and returns its accessor."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {"asset": {"version": "2.0", "generator": f"instant-nk {__version__}"}, "accessors": [], "bufferViews": []}
        self.chunks: list[bytes | np.ndarray] = []
        self.length = 0

    def _view(self, data: np.ndarray, **fields: Any) -> int:
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": self.length, "byteLength": data.nbytes, **fields})
        padding = -data.nbytes % 4
        self.chunks += [data, bytes(padding)]
        self.length += data.nbytes + padding
        return len(self.json["bufferViews"]) - 1

    def add(self, array: np.ndarray, target: int | None = None, bounds: bool = False, normalized: bool = False) -> int:
        """Append `array` [count, ...] and return the index of its accessor.

        Args:
            target: VERTEX_DATA or INDEX_DATA for mesh attributes; None for animation data and matrices.
            bounds: store component-wise min and max (required for positions and key times).
            normalized: integers stand for [0, 1].
        """
        data = np.ascontiguousarray(array)
        accessor: dict[str, Any] = {
            "bufferView": self._view(data, **({} if target is None else {"target": target})),
            "componentType": _COMPONENT[data.dtype.name],
            "count": len(data),
            "type": _SHAPE[data.shape[1:]],
        }
        if bounds:
            accessor |= {"min": np.atleast_1d(data.min(0)).tolist(), "max": np.atleast_1d(data.max(0)).tolist()}
        if normalized:
            accessor["normalized"] = True
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def add_png(self, png: bytes) -> None:
        """Append an image as the document's only texture, index 0."""
        view = self._view(np.frombuffer(png, np.uint8))
        self.json |= {
            "images": [{"bufferView": view, "mimeType": "image/png"}],
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
            "textures": [{"source": 0, "sampler": 0}],
        }

    def add_scene(self, roots: list[int], turned: int, turn: list[float] | None) -> None:
        """Make these nodes the scene; one of them below a node that turns it by a quaternion (x, y, z, w), where that is given."""
        if turn is not None:
            self.json["nodes"].append({"name": "up", "rotation": turn, "children": [turned]})
            roots = [len(self.json["nodes"]) - 1 if root == turned else root for root in roots]
        self.json |= {"scenes": [{"nodes": roots}], "scene": 0}

    def write(self, path: Path | str) -> None:
        """Write the .glb, whole or not at all.

        Raises:
            ContractError: the file would pass 4 GiB, which the format cannot hold, or the disk is full.
        """
        self.json["buffers"] = [{"byteLength": self.length}]
        text = json.dumps(self.json, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self.length
        if total > MAX_BYTES:
            raise ContractError(
                f"{path}: a .glb holds at most {MAX_BYTES} bytes, this animation needs {total}. "
                "Lower canonical.target_faces or export fewer frames; usd and ply have no such limit."
            )
        with artifact.atomic(path) as aside, open(aside, "wb") as handle:
            handle.write(struct.pack("<4sII", b"glTF", 2, total))
            handle.write(struct.pack("<I4s", len(text), b"JSON") + text)
            handle.write(struct.pack("<I4s", self.length, b"BIN\0"))
            for chunk in self.chunks:
                handle.write(chunk)
