"""Stage 7: the canonical vertices carried to every frame of a window (a job per window), then windows joined and exported."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from instant_nk import layout, log
from instant_nk.fitting import window_files
from instant_nk.fitting.visibility import seen_by
from instant_nk.geometry import smoothing, tearing
from instant_nk.io import artifact
from instant_nk.io import dataset as dataset_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io import motion as motion_io
from instant_nk.io.mesh import Animation
from instant_nk.kernels.blend_skinning import blend_with_jacobian
from instant_nk.layout import Job
from instant_nk.models.warp import InverseQuality, LiveSpace, inverse_quality, to_canonical
from instant_nk.models.window_field import WindowField
from instant_nk.stages import mesh_exports, mesh_surfaces

logger = logging.getLogger(__name__)

NEWTON_STEPS = 6
BLOCK = 1 << 16  # vertices carried at once
LOST = 0.01  # weight, against its neighbours, of a frame that registration lost


def run(job: Job) -> None:
    """With a part: that window's `7_mesh/windows/{window}.npz`. Without: `animation.npz` and all exports.

    In modes of `field.dyna_mode` that do not track: a surface per frame instead.
    """
    if job.config.field.dyna_mode != "deform":
        (mesh_surfaces.join if job.part is None else mesh_surfaces.extract_window)(job)
    elif job.part is None:
        join(job)
    else:
        carry_window(job)


def _header(job: Job, inputs: dict[str, str]) -> dict:
    return artifact.make_header("animation", mesh_io.ANIMATION_FORMAT, "mesh", layout.stage_config(job.config, "mesh"), inputs)


def carry_window(job: Job) -> None:
    """Every canonical vertex at every frame of one window, in world units, with its quality."""
    measure = log.measure()
    dataset = dataset_io.load(job.paths.manifest)
    field, canonical = window_files.load(job.paths, dataset, job.part, job.device)
    mesh, frames = mesh_io.load(job.paths.canonical_mesh), window_files.window_frames(dataset, job.part)
    motion = field.motion()
    space = LiveSpace(field.skeleton, *motion, canonical.occupancy_resolution)
    parts, fallbacks, generator, judged = [], 0, torch.Generator().manual_seed(job.config.runtime.seed), []
    for index in log.progress(list(range(len(frames))), f"mesh {job.part}", logger):
        live, missed = carry(field, motion, index)
        cycle, residual = _quality(field, space, motion, live, index)
        judged.append(inverse_quality(space, *motion, index, generator))
        points = live.cpu().numpy()
        fallbacks += missed
        parts.append((points, residual, cycle, seen_by(dataset, points, mesh.faces, job.device).sum(0).astype(np.int32)))
    points, residual, cycle, n_views = (np.stack(p) for p in zip(*parts))
    animation = Animation(
        np.array(frames, np.int32), dataset.to_world(points), mesh.faces, mesh.colours,
        (residual / dataset.scale).astype(np.float32), (cycle / dataset.scale).astype(np.float32), n_views,
    )  # fmt: skip
    mesh_io.save_animation(job.paths.mesh_window(job.part), animation, _header(job, {"field": artifact.file_hash(job.paths.field(job.part))}))
    numbers = {
        "vertices": len(mesh.vertices),
        "root_fallback_share": fallbacks / (len(frames) * len(mesh.vertices)),
        "cycle_error_median_scene": float(np.median(cycle)),
        **inverse_numbers(judged, float(np.linalg.norm(dataset.box[1] - dataset.box[0])) * dataset.scale),
    }
    artifact.save_json(job.paths.mesh_window(job.part).with_suffix(".json"), {**measure.numbers(), **numbers})


def inverse_numbers(judged: list[InverseQuality], diagonal: float) -> dict[str, float]:
    """The inverse warp over a window's frames: lengths as shares of the box's diagonal, which is given in scene units."""
    cycle, converged, blended = (torch.cat([getattr(quality, name) for quality in judged]) for name in ("cycle", "converged", "blended"))
    return {
        "inverse_cycle_median": float(cycle.median()) / diagonal,
        "inverse_unconverged_share": float((~converged).float().mean()),
        "blended_inverse_cycle_median": float(blended.median()) / diagonal,
    }


@torch.no_grad()
def carry(field: WindowField, motion: tuple[Tensor, Tensor], index: int) -> tuple[Tensor, int]:
    """Live position [V, 3] of every canonical vertex V: the root x' of x' + residual(x') = V by Newton, then the graph's warp of x'.

    Returns:
        live positions, and how many vertices fell back to their coarse position because the root was not found.
    """
    s = field.skeleton
    tolerance = 1e-4 * s.spacing
    live, missed = [], 0
    for vertices, anchors in zip(s.vertices[: s.of_mesh].split(BLOCK), s.anchors[: s.of_mesh].split(BLOCK)):
        frame = torch.full((len(vertices),), index, device=vertices.device)
        x, eye = vertices.clone(), torch.eye(3, device=vertices.device)
        for _ in range(NEWTON_STEPS):
            residual, stretch = field.residual.with_jacobian(x, field.tau(frame))
            ramp = field.ramp(frame)[:, None]
            step = torch.linalg.solve(eye + stretch * ramp[..., None], x + residual * ramp - vertices)
            length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
            x = x - step * (s.spacing / length.clamp_min(s.spacing))
        found = torch.linalg.vector_norm(x + field.residual_at(x, frame) - vertices, dim=-1) < tolerance
        x = torch.where(found[:, None], x, vertices)
        missed += int((~found).sum())
        live.append(blend_with_jacobian(x, anchors, s.nodes, s.radii, *motion, frame)[0])
    return torch.cat(live), missed


@torch.no_grad()
def _quality(field: WindowField, space: LiveSpace, motion: tuple[Tensor, Tensor], live: Tensor, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Cycle error and |sdf| [V], scene units: what the inverse warp makes of the live vertices, seeded by the live grid alone."""
    cycle, residual = [], []
    for points, vertices in zip(live.split(BLOCK), field.skeleton.vertices[: len(live)].split(BLOCK)):
        frame = torch.full((len(points),), index, device=points.device)
        vertex = field.quick_sdf(space, points, frame)[1]
        canonical, _, _ = to_canonical(space, points, frame, vertex, *motion)
        back = canonical + field.residual_at(canonical, frame)
        cycle.append(torch.linalg.vector_norm(back - vertices, dim=-1))
        residual.append(field.sdf(back).abs())
    return torch.cat(cycle).cpu().numpy(), torch.cat(residual).cpu().numpy()


def join(job: Job) -> None:
    """Blend windows over their overlap, cut webs, smooth over time, write the exports and `animation.npz`."""
    measure = log.measure()
    dataset = dataset_io.load(job.paths.manifest)
    windows = window_files.windows_of(dataset.frames, job.config.field)
    parts = [mesh_io.load_animation(job.paths.mesh_window(w)) for w in windows]
    blended, disagreement = blend(parts, dataset.frames)
    seams = seam_numbers(blended, parts, disagreement)
    motion = motion_io.load(job.paths.motion)
    rest = dataset.to_world(mesh_io.load(job.paths.canonical_mesh).vertices)
    whole, torn = tear(blended, rest, motion.converged, job.config.mesh.tear_at)
    animation, smoothed = smooth(whole, motion.converged, motion.residual / dataset.scale, dataset.canonical_frame, job.config.mesh.smoothing)
    exported = mesh_exports.write(job, dataset, animation)
    inputs = {"motion": artifact.file_hash(job.paths.motion)} | {w: artifact.file_hash(job.paths.mesh_window(w)) for w in windows}
    mesh_io.save_animation(job.paths.animation, animation, _header(job, inputs))
    job.paths.surfaces.unlink(missing_ok=True)  # an earlier run's, in a mode that does not track
    artifact.save_json(job.paths.mesh / "metrics.json", {**measure.numbers(), **seams, **torn, **smoothed, **exported})


def blend(parts: list[Animation], frames: tuple[int, ...]) -> tuple[Animation, list[float]]:
    """One animation from overlapping windows; weights fall linearly over the frames that a window shares with its neighbour.

    Returns:
        the animation, and the mean distance between windows at every shared frame before blending, world units.
    """
    first = parts[0]
    names = ("vertices", "sdf_residual", "cycle_error")
    total = {name: np.zeros((len(frames), *getattr(first, name).shape[1:])) for name in names}
    weights, views, disagreement = np.zeros(len(frames)), np.zeros((len(frames), first.n_views.shape[1]), np.int32), []
    for part, ramp in zip(parts, _ramps([part.frames for part in parts])):
        for i, (frame, weight) in enumerate(zip(part.frames, ramp)):
            row = frames.index(int(frame))
            if weights[row]:
                earlier = total["vertices"][row] / weights[row]
                disagreement.append(float(np.linalg.norm(earlier - part.vertices[i], axis=-1).mean()))
            for name in names:
                total[name][row] += weight * getattr(part, name)[i]
            weights[row] += weight
            views[row] = np.maximum(views[row], part.n_views[i])
    mean = {name: (values / weights.reshape(-1, *[1] * (values.ndim - 1))).astype(np.float32) for name, values in total.items()}
    return Animation(np.array(frames, np.int32), mean["vertices"], first.faces, first.colours, mean["sdf_residual"], mean["cycle_error"], views), disagreement


def tear(animation: Animation, rest: np.ndarray, converged: np.ndarray, limit: float) -> tuple[Animation, dict[str, int]]:
    """The animation without webs between parts that touched in the canonical mesh and come apart.

    Vertices keep their numbers; those of a web, which no face needs any more, go to the nearest vertex that one does.

    Args:
        rest: canonical vertices, world units, [V, 3].
        converged: frames that are asked, bool [N]: a lost one tears anything. One in which a part lies wrongly is asked: colours alone say so, and may be wrong everywhere.
        limit: `mesh.tear_at`.

    Returns:
        the animation, and how many faces were cut and how many close the holes.
    """
    from scipy.spatial import cKDTree

    nothing = {"torn_faces": 0, "closing_faces": 0}
    if not limit or not converged.any():
        return animation, nothing
    rest = rest.astype(np.float64)
    rows = np.flatnonzero(converged)

    def seen() -> Iterator[np.ndarray]:
        return (animation.vertices[row].astype(np.float64) for row in rows)

    cut = tearing.torn_faces(rest, animation.faces, seen(), len(rows), limit)
    if not cut.any():
        return animation, nothing
    kept, caps = tearing.without(rest, animation.faces, cut)
    caps = caps[~tearing.stretched(rest, caps, seen(), len(rows), (limit,))[0]]  # a hole between parts that go on parting stays open
    used = np.unique(kept)
    spare = np.setdiff1d(animation.faces, used)
    place = np.arange(len(rest))
    place[spare] = used[cKDTree(rest[used]).query(rest[spare])[1]]
    logger.info("cut %d faces that hung between parts which touched at rest, %d close the holes", cut.sum(), len(caps))
    faces = np.concatenate([kept, caps]).astype(np.int32)
    return dataclasses.replace(animation, vertices=animation.vertices[:, place], faces=faces), {"torn_faces": int(cut.sum()), "closing_faces": len(caps)}


def smooth(
    animation: Animation, converged: np.ndarray, residual: np.ndarray, canonical_frame: int, strength: float | None
) -> tuple[Animation, dict[str, float]]:
    """The animation smoothed over time; each frame was fitted on its own, and what differs between neighbours at random is seen as jitter.

    Args:
        converged: of the frames, bool [N]; a lost one follows its neighbours where anything is smoothed.
        residual: median distance of the moved surface to the observed one, world units, [N]; 0 where nobody measured it, and then nothing is smoothed unasked.
        strength: see `geometry.smoothing`; None: found from the trajectories, and nothing where it would carry surfaces off what was observed.

    Returns:
        the animation, whose canonical frame stays; the strength used, and how far vertices moved on average, % of the box's diagonal.
    """
    weights = np.where(converged, 1.0, LOST)
    weights[animation.frames == canonical_frame] = smoothing.FIXED
    found = strength is None
    judged = np.flatnonzero((weights == 1) & (residual > 0))
    if found:
        strength = smoothing.strength(animation.vertices, weights) if len(judged) else 0.0
    vertices = smoothing.smooth(animation.vertices, strength, weights)
    if found and strength:
        off = smoothing.across(animation.vertices, vertices, animation.faces, judged) / float(np.median(residual[judged]))
        if off > smoothing.ACROSS_LIMIT:
            logger.info(
                "not smoothed: strength %.3g would carry parts of the surface off what was observed, by %.1f times what they lie from it", strength, off
            )
            strength, vertices = 0.0, animation.vertices.copy()
    low, high = animation.vertices.min((0, 1)), animation.vertices.max((0, 1))
    shift = float(np.linalg.norm(vertices - animation.vertices, axis=-1).mean()) * 100 / float(np.linalg.norm(high - low))
    logger.info("%s", log.fields(smoothing=strength, mean_shift_pct=shift))
    return dataclasses.replace(animation, vertices=vertices), {"smoothing": strength, "smoothing_shift_pct": shift}


def _ramps(windows: list[np.ndarray]) -> list[np.ndarray]:
    """Weight of every window at each of its frames: one, and falling in even steps where it meets the window before or after."""
    result = []
    for k, window in enumerate(windows):
        place, last = np.arange(len(window)), len(window) - 1
        before, after = (len(np.intersect1d(window, windows[j])) if 0 <= j < len(windows) else 0 for j in (k - 1, k + 1))
        result.append(np.minimum(1, np.minimum((place + 1) / (before + 1), (last - place + 1) / (after + 1))))
    return result


def seam_numbers(animation: Animation, parts: list[Animation], disagreement: list[float]) -> dict:
    """How windows meet, % of the box diagonal.

    `seam_disagreement_pct`: mean distance of two windows at the frames they share, before blending. `seam_step_pct`: how much
    more a vertex moves from one frame to the next than its window says, because the blend passes from window to window; mean
    over the transitions at seams. `within_jolt_pct`: change of velocity from frame to frame, what a step hides in.
    """
    low, high = animation.vertices.min((0, 1)), animation.vertices.max((0, 1))
    percent = 100 / float(np.linalg.norm(high - low))
    frames, steps = animation.frames.tolist(), []
    for part in parts:
        away = animation.vertices[[frames.index(int(f)) for f in part.frames]] - part.vertices
        step = np.linalg.norm(np.diff(away, axis=0), axis=-1).mean(-1)
        steps += step[step > 0].tolist()
    jolt = np.linalg.norm(np.diff(animation.vertices, 2, axis=0), axis=-1)
    return {
        "seam_disagreement_pct": float(np.mean(disagreement)) * percent if disagreement else None,
        "seam_step_pct": float(np.mean(steps)) * percent if steps else None,
        "within_jolt_pct": float(jolt.mean()) * percent if len(jolt) else None,
    }
