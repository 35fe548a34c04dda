"""What the report's page shows, in order: the mesh in 3-D beside the input, figures, views, graph, curves, costs, all numbers."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import __version__
from instant_nk.geometry import camera_path, evaluation
from instant_nk.io.dataset import Dataset
from instant_nk.io.export.video import write_video
from instant_nk.io.mesh import Animation
from instant_nk.io.metrics import QUANTITIES, StageCost
from instant_nk.layout import Job
from instant_nk.stages import report_scores
from instant_nk.stages.report_results import Renders, Results
from instant_nk.viewer import charts, page, pictures
from instant_nk.viewer.mesh_renderer import MeshRenderer
from instant_nk.viewer.player import player_html

PLAYER_FRAMES = 120  # of longer clips every n-th frame is embedded
PLAYER_POINTS = 12_000_000  # vertices times frames: some 40 MB of page
SHOWN_SIDE = 420  # pixels, of pictures inside the page
FILM_ID = "input-video"
SOUNDNESS = (
    "mesh_components", "mesh_open_edges", "mesh_overshared_edges", "mesh_turned_edges", "mesh_inside_out_components",
    "mesh_pinched_vertices", "mesh_degenerate_faces", "mesh_unused_vertices",
)  # fmt: skip


def build(
    job: Job,
    results: Results,
    neural: Renders,
    drawn: MeshRenderer,
    summary: dict[str, Any],
    per_frame: dict[str, Any],
    costs: dict[str, StageCost],
    films: dict[str, Path],
) -> str:
    """The page's HTML."""
    doubtful = results.motion.frames[results.motion.doubtful].tolist()
    body = hero(job, results, films, page.cards(summary, 0, page.LEADING)) + reel(films)
    body += page.cards(summary, page.LEADING)
    if doubtful:
        body += page.notice(f"Registration calls these frames doubtful, and they are marked below: {', '.join(map(str, doubtful))}.")
    if summary.get("chamfer_pct") is None:
        body += "<p>This capture has no ground truth: surface and tracking errors are unknown.</p>"
    body += page.section(
        "Input and rendering", heldout_film(results, films) + page.comparison(comparison(results, neural, drawn, doubtful)), _heldout_note(results)
    )
    body += page.section(
        "Graph", graph_pictures(results), f"{len(results.graph.node_positions)} nodes, {len(results.graph.edges)} edges, at the canonical frame."
    )
    body += page.section("Quality per frame", quality(per_frame, doubtful))
    body += page.section("Training", page.loss_charts(costs))
    body += page.section("Cost", page.cost_charts(costs), "Time is the sum over a stage's jobs, also of those that ran side by side.")
    body += files(job)
    body += page.section("Is the mesh sound?", soundness(summary), verdict(summary))
    body += page.section("All numbers", page.metrics_table(summary) + "<h3>What each stage wrote down</h3>" + page.stage_details(results.costs))
    return page.document(job.paths.root.name, body, footer(results.dataset))


def footer(data: Dataset) -> str:
    """What made the page, when, and of which capture."""
    when = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return f"instant-nk {__version__}, {when}, capture {page.text(data.capture.name)}"


# Films and the 3-D view


def hero(job: Job, results: Results, films: dict[str, Path], figures: str) -> str:
    """The animated mesh in 3-D, and beside it the input at the same frames and the leading figures."""
    every = frames_apart(results.animation)
    shown = thinned(results.animation, every)
    fps = job.config.report.fps
    player = player_html(
        shown,
        fps=fps,
        texture=results.texture,
        images=[results.frame_textures[frame] for frame in shown.frames.tolist()] if results.frame_textures else None,
        nodes=live_nodes(results, shown),
        edges=results.graph.edges,
        title="drag to turn, wheel to zoom, space to play",
        up=tuple(camera_path.up_axis(results.dataset.cameras.c2w)),
        eye=tuple(results.dataset.cameras.c2w[0, :3, 3]),
        background="#ffffff",
        video_id=FILM_ID,
    )
    film = ""
    if films:
        caption = f"input, camera {results.dataset.cameras.names[0]}, at the same frame" + (f" (every {every}th)" if every > 1 else "")
        film = page.film(input_film(results, shown, fps), caption, identity=FILM_ID, playing=False)
    return f"<div class='hero'>{player}<div class='beside'>{film}{figures}</div></div>"


def reel(films: dict[str, Path]) -> str:
    """The mesh on its turntable, and the fields along a camera path."""
    told = {
        "turntable": "the animated mesh on a turntable, in colour and bare",
        "rgb": "neural rendering along a camera path",
        "depth": "its depth, dark is near",
    }
    return f"<div class='reel'>{''.join(page.film(films[name].read_bytes(), caption) for name, caption in told.items() if name in films)}</div>"


def frames_apart(animation: Animation) -> int:
    """Every which frame the player embeds: of long clips and large meshes not all, or the page would not open."""
    count, vertices = animation.vertices.shape[:2]
    most = max(2, min(PLAYER_FRAMES, PLAYER_POINTS // vertices))
    return -(-count // most)


def files(job: Job) -> str:
    """Links to what lies in the results for other tools."""
    return page.section("Files", page.files(exported(job)), "World coordinates. What each holds and how to open it: docs/formats.md.")


def exported(job: Job) -> list[tuple[str, str, int]]:
    """What lies in the results for other tools: what it is, path relative to the page, bytes."""
    mesh, report = job.paths.mesh, job.paths.report
    known = [
        ("animated mesh, morph targets: Blender, three.js, engines", job.paths.animation_glb),
        ("the same as a skeleton, small", mesh / "animation_skinned.glb"),
        ("USD, time samples", mesh / "animation.usdc"),
        ("point cache for Blender", mesh / "animation_cache.pc2"),
        ("baked texture", job.paths.texture.with_suffix(".png")),
        ("vertices of all frames, with quality, for NumPy", job.paths.animation),
        ("a mesh per frame, with quality", mesh / "frames"),
        ("a mesh per frame", mesh / "obj"),
        ("a texture per frame", mesh / "texture"),
        ("held-out cameras, rendered", report / "renders"),
        ("every number of this page", job.paths.metrics),
    ]
    return [
        (what, f"../{path.relative_to(job.paths.root).as_posix()}{'/' if path.is_dir() else ''}", 0 if path.is_dir() else path.stat().st_size)
        for what, path in known
        if path.exists()
    ]


def thinned(animation: Animation, every: int) -> Animation:
    """Every n-th frame of the animation."""
    per_frame = {name: getattr(animation, name)[::every] for name in ("frames", "vertices", "sdf_residual", "cycle_error", "n_views")}
    return Animation(faces=animation.faces, colours=animation.colours, **per_frame)


def live_nodes(results: Results, shown: Animation) -> np.ndarray:
    """Node positions at the animation's frames, world units, f32 [N, M, 3]."""
    rows = [results.motion.index(int(frame)) for frame in shown.frames]
    return results.dataset.to_world(results.graph.node_positions + results.motion.translations[rows])


def input_film(results: Results, shown: Animation, fps: float) -> bytes:
    """The first camera's images on white as mp4."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.mp4"
        write_video(path, (pictures.shrink(pictures.flat(results.dataset.image(0, int(frame))), SHOWN_SIDE) for frame in shown.frames), fps)
        return path.read_bytes()


# Pictures


def _heldout_note(results: Results) -> str:
    if not len(results.dataset.heldout):
        return "The capture has no held-out cameras: these are training views."
    return "Cameras that were held out: no stage has seen their pictures."


def heldout_film(results: Results, films: dict[str, Path]) -> str:
    """The first held-out camera over the whole clip; nothing where there is none."""
    if "heldout" not in films:
        return ""
    frames, images = results.animation.frames.tolist(), results.dataset.heldout_images
    given = "input, " if all(images[str(frame)][0] is not None for frame in frames) else ""
    return page.film(films["heldout"].read_bytes(), f"held-out camera {results.dataset.heldout.names[0]}: {given}neural rendering, animated mesh")


def comparison(results: Results, neural: Renders, drawn: MeshRenderer, doubtful: list[int]) -> list[page.View]:
    """Input, neural rendering, animated mesh, depth and normals, at the first, middle and last frame."""
    data, frames = results.dataset, results.animation.frames.tolist()
    rig = data.heldout if len(data.heldout) else data.cameras
    chosen = list(dict.fromkeys([frames[0], frames[len(frames) // 2], frames[-1]]))
    views = []
    for i, frame in enumerate(chosen):
        c = i % len(rig)
        size = (int(rig.sizes[c][0]), int(rig.sizes[c][1]))
        layers = pictures.layers_of(neural.render(rig.c2w[c], rig.K[c], size, frame))
        of_mesh = drawn.render(rig.c2w[c], rig.K[c], size, frame)
        given = data.heldout_image(c, frame) if len(data.heldout) else data.image(c, frame)
        views.append(page.View(_view_title(rig.names[c], frame, doubtful), _columns(given, layers, of_mesh, rig.c2w[c])))
    return views


def _view_title(camera: str, frame: int, doubtful: list[int]) -> str:
    return f"frame {frame}, {camera}" + (" – doubtful" if frame in doubtful else "")


def _columns(given: np.ndarray | None, layers: dict[str, np.ndarray], of_mesh: dict[str, np.ndarray], c2w: np.ndarray) -> dict[str, np.ndarray]:
    """The pictures of one view, cropped to the subject; scores in the captions where the true picture is known."""
    rendered, meshed = pictures.to_rgba(layers), pictures.to_rgba(of_mesh)
    crop = pictures.crop_box((layers["alpha"] > 0.5) | (of_mesh["alpha"] > 0.5) | (given[..., 3] > 127 if given is not None else False))
    near, far = pictures.depth_range(layers) or (0.0, 1.0)
    named = {} if given is None else {"input": pictures.flat(given)}
    named[f"rendered{_score(rendered, given)}"] = pictures.flat(rendered)
    named[f"animated mesh{_score(meshed, given)}"] = pictures.flat(meshed)
    named["depth"] = pictures.depth_picture(layers, near, far)
    named["normals"] = pictures.normal_picture(layers, c2w)
    return {name: pictures.shrink(image[crop], SHOWN_SIDE) for name, image in named.items()}


def _score(picture: np.ndarray, given: np.ndarray | None) -> str:
    if given is None:
        return ""
    return f", {evaluation.psnr(evaluation.on_white(picture / 255), evaluation.on_white(given / 255)):.1f} dB"


def graph_pictures(results: Results) -> str:
    """The graph on the canonical mesh from two cameras opposite each other."""
    data, canonical = results.dataset, results.canonical
    vertices = data.to_world(canonical.vertices)
    nothing = np.zeros((1, len(vertices)), np.float32)
    grey = np.full_like(canonical.colours, 0.8) * 0.6 + canonical.colours * 0.4
    still = Animation(np.zeros(1, np.int32), vertices[None], canonical.faces, grey, nothing, nothing, nothing.astype(np.int32))
    renderer = MeshRenderer(still)
    nodes = data.to_world(results.graph.node_positions)
    length = np.linalg.norm(np.diff(results.graph.node_positions[results.graph.edges], axis=1)[:, 0], axis=1)
    strong = length < 2.5 * results.graph.spacing
    c2w = data.cameras.c2w
    across = int((c2w[:, :3, 2] @ c2w[0, :3, 2]).argmin())
    figures = [_graph_from(renderer, nodes, results.graph.edges, strong, data, c) for c in dict.fromkeys((0, across))]
    return f"<div class='pair'>{''.join(figures)}</div>"


def _graph_from(renderer: MeshRenderer, nodes: np.ndarray, edges: np.ndarray, strong: np.ndarray, data: Any, camera: int, side: int = 640) -> str:
    """The graph drawn over the mesh as one camera of the rig sees it, enlarged to `side` pixels."""
    size = data.cameras.sizes[camera].astype(float)
    factor = side / size.max()
    K = np.diag([factor, factor, 1.0]) @ data.cameras.K[camera]
    width, height = (int(n) for n in np.round(size * factor))
    layers = renderer.render(data.cameras.c2w[camera], K, (width, height), 0)
    shade = 0.45 + 0.55 * np.abs(layers["normal"] @ data.cameras.c2w[camera, :3, 2])[..., None]
    picture = pictures.flat(pictures.to_rgba(layers | {"rgb": layers["rgb"] * shade}))
    local = (nodes - data.cameras.c2w[camera, :3, 3]) @ data.cameras.c2w[camera, :3, :3]
    pixel = (local @ K.T)[:, :2] / local[:, 2:]
    column, row = np.clip(pixel, 0, [width - 1, height - 1]).astype(int).T
    inside = ((pixel >= 0) & (pixel < [width, height])).all(1) & (local[:, 2] > 0)
    behind = (layers["alpha"][row, column] > 0.5) & (local[:, 2] > layers["depth"][row, column] + 0.01 * report_scores.box_diagonal(data))
    rows, columns = pictures.crop_box(layers["alpha"] > 0.5)
    pixel = pixel - [columns.start, rows.start]
    return page.graph_figure(picture[rows, columns], pixel, inside & ~behind, edges, strong, f"from camera {data.cameras.names[camera]}")


# Charts


def quality(per_frame: dict[str, Any], doubtful: list[int]) -> str:
    """One chart per quality, over the frames; those without any value are left out."""
    box, true_box = "% of the box's diagonal", "% of the true box's diagonal"
    wanted = [
        ("surface error against the truth", true_box, {"chamfer": "chamfer_pct"}),
        ("tracking error against the truth", true_box, {"mean": "track_mean_pct"}),
        ("jitter against the truth", true_box, {"jitter": "jitter_pct"}),
        ("silhouette IoU", "share", {"mean over cameras": "silhouette_iou"}),
        ("SDF residual of the live vertices", box, {"median": "sdf_residual_median_pct", "95 %": "sdf_residual_p95_pct"}),
        ("cycle error", box, {"median": "cycle_error_median_pct", "95 %": "cycle_error_p95_pct"}),
        ("flipped triangle pairs", "share", {"folded since the first frame": "flipped_fraction"}),
        ("acceleration of the vertices", box, {"mean": "acceleration_pct"}),
        ("registration: distance to the observed surface", box, {"median": "registration_residual_pct"}),
        ("registration: observed surface explained", "share", {"coverage": "registration_coverage"}),
        ("registration: rigidity error of the edges", box, {"mean": "registration_rigidity_pct"}),
        ("registration: surface that the observation contradicts", "share", {"contradicted": "registration_contradicted"}),
    ]
    result = []
    for title, unit, lines in wanted:
        series = {name: per_frame[key] for name, key in lines.items() if key in per_frame}
        if any(v is not None for line in series.values() for v in line):
            from_zero = unit != "share" or "flipped" in title
            result.append(charts.line_chart(title, unit, per_frame["frames"], series, marked=doubtful, from_zero=from_zero))
    return f"<div class='charts'>{''.join(result)}</div>"


# Is the mesh sound?


def soundness(summary: dict[str, Any]) -> str:
    """The numbers of the mesh's check, in words."""
    rows = "".join(f"<tr><td>{page.text(QUANTITIES[name].meaning)}</td><td class='value'>{charts.number(summary[name])}</td></tr>" for name in SOUNDNESS)
    folded = charts.number(100 * summary["flipped_fraction_worst"])
    return f"<table>{rows}<tr><td>neighbouring faces folded over in the worst frame</td><td class='value'>{folded} %</td></tr></table>"


def verdict(summary: dict[str, Any]) -> str:
    """What a tool that opens the mesh will find, in a sentence."""
    pieces = summary["mesh_components"]
    told = ["closed" if summary["mesh_watertight"] else "not closed", "of one piece" if pieces == 1 else f"of {pieces} pieces"]
    faults = {
        "edges turned": "mesh_turned_edges",
        "vertices pinched": "mesh_pinched_vertices",
        "pieces inside out": "mesh_inside_out_components",
        "faces without area": "mesh_degenerate_faces",
    }
    found = [f"{what}: {summary[key]}" for what, key in faults.items() if summary[key]]
    return f"The animated mesh is {' and '.join(told)}; " + (f"{', '.join(found)}." if found else "all faces look outwards and have an area.")
