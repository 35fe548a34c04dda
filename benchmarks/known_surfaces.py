"""Registration by itself: what it registers to is the true surface of every frame, in other triangles and another order of vertices.

    python -m benchmarks.known_surfaces CAPTURE [--set frames.step=2 …] [--results DIR] [--json OUT]

CAPTURE has ground truth beside its images. Each frame's mesh is refined and decimated on its own and its vertices are shuffled, so which vertex
was which is unknown; the first one is the canonical surface. The images help as they always do; the field is left out, so the animation is
what registration says. Scored as by the report.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import pipeline
from instant_nk import config as schema
from instant_nk import layout
from instant_nk.fitting import meshing
from instant_nk.geometry import evaluation, surface
from instant_nk.io import mesh as mesh_io
from instant_nk.io import surface_file, truth

FACES = 20000, 24000  # of a surface, between
EDGE = 0.006, 0.008  # longest edge before that, of the diagonal
KEYS = {
    "mesh.texture": "vertex", "observation.provider": "meshes", "dataset.canonical_frame": 0, "graph.max_nodes": 600, "canonical.steps": 300,
    "registration.iterations": 12, "registration.max_points": 12000, "field.steps": 1, "field.refine_motion": False, "mesh.smoothing": 0, "mesh.tear_at": 0,
}  # fmt: skip
STAGES = ("dataset", "canonical", "graph", "observation", "registration", "field", "mesh")


def remesh(vertices: np.ndarray, faces: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same surface in other triangles, with its vertices and faces in another order."""
    vertices, faces, _ = surface.weld(np.asarray(vertices, np.float64), np.asarray(faces, np.int64))
    longest = rng.uniform(*EDGE) * np.linalg.norm(np.ptp(vertices, axis=0))
    vertices, faces, _ = surface.refine(vertices, faces, longest)
    vertices, faces = meshing.decimate(vertices.astype(np.float32), faces.astype(np.int32), int(rng.uniform(*FACES)))
    order = rng.permutation(len(vertices))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return vertices[order], place[faces][rng.permutation(len(faces))]


def write_surfaces(capture: Path, folder: Path) -> None:
    """Every true mesh of a capture, meshed anew."""
    rng, paths = np.random.default_rng(0), sorted((capture / "gt").glob("mesh_*.ply"))
    if not paths:
        sys.exit(f"{capture}/gt: no mesh_*.ply. Give the folder of a capture that has the true surface of every frame.")
    for path in paths:
        whole = truth.load(capture, [int(re.findall(r"\d+", path.stem)[-1])])
        vertices, faces = remesh(whole.vertices[0], whole.faces, rng)
        surface_file.save(folder / path.name, surface_file.Surface.of_mesh(vertices.astype(np.float64), faces))


def measure(values: dict, capture: Path, folder: Path) -> dict:
    """Scores of the motion registered to the surfaces in `folder`."""
    first = sorted(folder.glob("mesh_*.ply"))[0]
    given = {"sequence": f"{capture.name}_known", "observation.folder": str(folder), "canonical.mesh": str(first)}
    config = schema.parse({**KEYS, **given, **values})
    pipeline.run(config, list(STAGES))
    animation = mesh_io.load_animation(layout.paths_of(config).animation)
    true = truth.load(capture, animation.frames.tolist())
    score = evaluation.score_animation(animation.vertices, animation.faces, true)
    score.pop("per_frame")
    return score


def main() -> None:
    parser = pipeline.arguments(__doc__)
    parser.set_defaults(preset="demo")
    options = parser.parse_args()
    capture = Path(options.capture)
    with tempfile.TemporaryDirectory() as folder:
        write_surfaces(capture, Path(folder))
        score = measure(pipeline.values_of(options), capture, Path(folder))
    for name, value in score.items():
        print(f"{name:20s} {value}")
    if options.json:
        options.json.write_text(json.dumps({"capture": options.capture, "set": options.set, "summary": score}, indent=1))


if __name__ == "__main__":
    main()
