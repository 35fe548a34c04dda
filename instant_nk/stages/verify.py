"""Whether a sequence's results are whole and belong together: every file is read, every recorded hash compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instant_nk.errors import ContractError, DataError, InstantNKError
from instant_nk.io import artifact, capture, capture_images, capture_video, checkpoint, dataset, graph, mesh, metrics, motion, observation, surfaces
from instant_nk.layout import Paths

WINDOW = re.compile(r"\d+-\d+")
GLB_MAGIC = b"glTF"


def run_verify(paths: Paths) -> str:
    """Verify a sequence.

    Returns:
        one line that says how many files are sound, then what else was seen.

    Raises:
        ContractError: something is missing, truncated, mixed or changed; every finding is listed.
    """
    if not paths.root.is_dir():
        raise ContractError(f"{paths.root}: no such folder. Give the folder of one sequence, e.g. results/demo.")
    files = list(present(paths))
    findings = [problem for path, load in files if (problem := unreadable(path, load))]
    broken = {finding.split(":")[0] for finding in findings}
    sound = [path for path, _ in files if str(path) not in broken]
    headers = {path: artifact.read_header(path) for path in sound if path.suffix in (".npz", ".json")}
    findings += [*missing(paths), *stale(paths, headers), *mixed(headers)]
    if findings:
        raise ContractError(f"{paths.root}: {len(findings)} findings.\n  " + "\n  ".join(findings))
    return "\n".join([f"{paths.root}: {len(files)} files, all whole and made from each other", *remarks(paths)])


def present(paths: Paths) -> Iterator[tuple[Path, Callable[[Path], Any]]]:
    """Every artifact and export that is there, with what reads and checks it."""
    single = [
        (paths.manifest, dataset.load), (paths.canonical_field, checkpoint.load), (paths.canonical_mesh, mesh.load), (paths.graph, graph.load),
        (paths.motion, motion.load), (paths.animation, mesh.load_animation), (paths.surfaces, artifact.load_json),
        (paths.animation_glb, read_glb), (paths.texture, mesh.load_texture), (paths.metrics, metrics.load),
    ]  # fmt: skip
    yield from ((path, load) for path, load in single if path.is_file())
    many = [
        (paths.dataset / "hulls", "*.npz", lambda path: artifact.load_npz(path, "hull", dataset.HULL_FORMAT)), (paths.observation_dir, "*.npz", observation.load),
        (paths.field_dir, "*.npz", checkpoint.load), (paths.mesh / "windows", "*.npz", load_window), (paths.mesh / "frames", "*.ply", read_ply),
        (paths.dataset, "[id][me]*/**/*.png", read_image), (paths.report, "*.mp4", read_video), (paths.report / "renders", "**/*.png", read_render),
    ]  # fmt: skip
    for folder, pattern, load in many:
        yield from ((path, load) for path in sorted(folder.glob(pattern)) if path.name[0] != "." and ".partial" not in path.name)


def load_window(path: Path) -> Any:
    """A window of the mesh stage: an animation, or in a mode that does not track a surface per frame."""
    return surfaces.load(path) if artifact.read_header(path)["artifact"] == surfaces.KIND else mesh.load_animation(path)


def unreadable(path: Path, load: Callable[[Path], Any]) -> str | None:
    """What is wrong with a file, or None."""
    try:
        load(path)
    except InstantNKError as error:
        text = str(error)
        return text if text.startswith(str(path)) else f"{path}: {text}"
    return None


def read_glb(path: Path) -> None:
    """A GLB says its own length.

    Raises:
        ContractError: another kind of file, or truncated.
    """
    with open(path, "rb") as handle:
        head = handle.read(12)
    length = int.from_bytes(head[8:12], "little")
    if head[:4] != GLB_MAGIC or length != path.stat().st_size:
        raise ContractError(f"{path}: not a whole GLB ({path.stat().st_size} bytes, it says {length}). Re-run stage 'mesh' (--forcerun mesh_join).")


def read_ply(path: Path) -> None:
    """Raises ContractError: not a readable PLY with faces."""
    import trimesh

    try:
        faces = len(trimesh.load(path, process=False).faces)
    except Exception as error:  # trimesh raises whatever its parser trips over
        raise ContractError(f"{path}: not a whole PLY ({error}). Re-run stage 'mesh' (--forcerun mesh_join).") from None
    if not faces:
        raise ContractError(f"{path}: has no faces. Re-run stage 'mesh' (--forcerun mesh_join).")


def read_image(path: Path) -> None:
    """Raises ContractError: a PNG that does not end as one."""
    if not capture_images.seems_whole(path):
        raise ContractError(f"{path}: not a whole PNG. Re-run stage 'dataset' (--forcerun dataset_sequence).")


def read_render(path: Path) -> None:
    """Raises ContractError: a PNG that does not end as one."""
    if not capture_images.seems_whole(path):
        raise ContractError(f"{path}: not a whole PNG. Re-run stage 'report' (--forcerun report_sequence).")


def read_video(path: Path) -> None:
    """Raises ContractError: an mp4 that is cut off."""
    try:
        capture_video.frame_count(path)
    except DataError:
        raise ContractError(f"{path}: not a whole mp4. Re-run stage 'report' (--forcerun report_sequence).") from None


def missing(paths: Paths) -> Iterator[str]:
    """Images that the manifest names and are gone, and frames of it that a stage which is done left out."""
    if not paths.manifest.is_file():
        return
    try:
        data = dataset.load(paths.manifest)
    except InstantNKError:
        return  # found already
    frames = data.frames
    gone = [
        name
        for kind in (data.images, data.heldout_images, data.depth or {})
        for names in kind.values()
        for name in names
        if name and not (data.root / name).is_file()
    ]
    if gone:
        yield f"{paths.dataset}: {len(gone)} images are missing: {', '.join(gone[:4])}{' …' if len(gone) > 4 else ''}. Restore the capture's, or re-run stage 'dataset' (--forcerun dataset_sequence)."
    for folder, place, stage, done in (
        (paths.observation_dir, paths.observation, "observation", paths.motion), (paths.mesh / "frames", paths.mesh_frame, "mesh", paths.animation),
    ):  # fmt: skip
        absent = [str(frame) for frame in frames if not place(frame).is_file()]
        if folder.is_dir() and done.is_file() and absent:
            yield f"{folder}: frames {', '.join(absent[:8])}{' …' if len(absent) > 8 else ''} are missing. Re-run stage '{stage}'."


def source_of(paths: Paths, name: str) -> Path | None:
    """The file behind a name in a header's `inputs`; None for what lies outside the results."""
    known = {
        "dataset": paths.manifest, "canonical": paths.canonical_field, "mesh": paths.canonical_mesh, "graph": paths.graph, "motion": paths.motion,
        "animation": paths.animation, "texture": paths.texture,
    }  # fmt: skip
    return paths.mesh_window(name) if WINDOW.fullmatch(name) else known.get(name)


def stale(paths: Paths, headers: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Files made from another version of their input than the one that is there."""
    hashes: dict[Path, str] = {}
    for path, header in headers.items():
        for name, recorded in header["inputs"].items():
            source = paths.field(path.stem) if name == "field" else source_of(paths, name)
            if source is None:
                continue
            if not source.is_file():
                yield f"{path}: was made from {source}, which is gone. Re-run stage '{header['stage']}'."
                continue
            if hashes.setdefault(source, artifact.file_hash(source)) != recorded:
                yield f"{path}: was made from another {source} than the one there now. Re-run stage '{header['stage']}'."
    listing = capture.listing_file(paths.manifest)
    if paths.manifest in headers and listing.is_file() and (root := dataset.load(paths.manifest).capture).is_dir():
        if changes := capture.changes_since(paths.manifest, capture.listing(root)):
            yield f"{paths.manifest}: the capture {root} changed since ({changes}). Re-run from stage 'dataset' on."


def mixed(headers: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Parts of one stage that were made with different settings or versions."""
    groups: dict[tuple[str, str], dict[tuple, list[Path]]] = {}
    for path, header in headers.items():
        made_with = (header["config_hash"], header["stage_version"])
        groups.setdefault((header["stage"], header["artifact"]), {}).setdefault(made_with, []).append(path)
    for (stage, _), kinds in groups.items():
        if len(kinds) > 1:
            fewest = min(kinds.values(), key=len)
            yield f"{fewest[0]}: was made with other settings than its {sum(map(len, kinds.values())) - len(fewest)} neighbours. Re-run stage '{stage}'."


def remarks(paths: Paths) -> Iterator[str]:
    """What killed jobs left: nothing that harms."""
    for path in sorted(paths.root.rglob("*")):
        if ".partial" in path.name and path.name[0] != ".":
            yield f"{path}: a checkpoint; the next run resumes from it"
        elif re.fullmatch(r"\..+\.\d+(\..+)?", path.name):
            yield f"{path}: left by a killed job; may be deleted"
