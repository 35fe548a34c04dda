"""Whether a sequence's results are whole and belong together: every file is read, every recorded hash compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instant_nk.errors import ContractError, DataError, InstantNKError
from instant_nk.io import artifact, capture, capture_images, capture_video, checkpoint, dataset, graph, mesh, metrics, motion, observation, ply_file, surfaces
from instant_nk.layout import Paths

WINDOW = re.compile(r"\d+-\d+")
GLB_MAGIC, USDC_MAGIC = b"glTF", b"PXR-USDC"
AGAIN = {"dataset": "dataset_sequence", "mesh": "mesh_join", "report": "report_sequence"}  # the rule that writes a stage's files anew


def run_verify(paths: Paths) -> str:
    """Verify a sequence.

    Returns:
        one line that says how many files are sound, then what else was seen.

    Raises:
        ContractError: something is missing, truncated, mixed or changed; every finding is listed.
    """
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
        (paths.texture, mesh.load_texture), (paths.metrics, metrics.load), (paths.report_preview, read_gif),
    ]  # fmt: skip
    yield from ((path, load) for path, load in single if path.is_file())
    many = [
        (paths.dataset / "hulls", "*.npz", lambda path: artifact.load_npz(path, "hull", dataset.HULL_FORMAT)), (paths.observation_dir, "*.npz", observation.load),
        (paths.field_dir, "*.npz", checkpoint.load), (paths.mesh / "windows", "*.npz", load_window), (paths.mesh / "frames", "*.ply", read_ply),
        (paths.mesh, "*.glb", read_glb), (paths.mesh, "*.usdc", read_usdc), (paths.mesh, "*.pc2", read_pc2), (paths.mesh, "**/*.png", image_of("mesh")),
        (paths.dataset, "[id][me]*/**/*.png", image_of("dataset")),
        (paths.report, "*.mp4", read_video), (paths.report / "renders", "**/*", image_of("report")),
    ]  # fmt: skip
    if any(paths.mesh.glob("**/*.obj")):
        many.append((paths.mesh, "**/*.obj", obj_of(paths.animation)))
    for folder, pattern, load in many:
        shown = (path for path in sorted(folder.glob(pattern)) if not any(name[0] == "." for name in path.relative_to(folder).parts))
        yield from ((path, load) for path in shown if ".partial" not in path.name and path.is_file())


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


def not_whole(path: Path, kind: str, why: object, stage: str = "mesh") -> ContractError:
    """The one message for an export that is cut off or of another kind."""
    return ContractError(f"{path}: not a whole {kind} ({why}). Re-run stage '{stage}' (--forcerun {AGAIN[stage]}).")


def read_glb(path: Path) -> None:
    """Raises ContractError: another kind of file, or not as long as it says."""
    with open(path, "rb") as handle:
        head = handle.read(12)
    length, size = int.from_bytes(head[8:12], "little"), path.stat().st_size
    if head[:4] != GLB_MAGIC or length != size:
        raise not_whole(path, "GLB", f"{size} bytes, it says {length}")


def read_usdc(path: Path) -> None:
    """Raises ContractError: another kind of file, or its table of contents, written last, is not at its end."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        head = handle.read(24)
        handle.seek(min(table := int.from_bytes(head[16:24], "little"), size))
        end = table + 8 + 32 * int.from_bytes(handle.read(8), "little")
    if head[:8] != USDC_MAGIC or end != size:
        raise not_whole(path, "USD", f"{size} bytes, it says {end}")


def read_pc2(path: Path) -> None:
    """Raises ContractError: another kind of file, or not as long as its points and samples need."""
    from instant_nk.io.export import pc2  # brings torch

    with open(path, "rb") as handle:
        head = handle.read(pc2.HEADER.size).ljust(pc2.HEADER.size)
    magic, _, points, _, _, samples = pc2.HEADER.unpack(head)
    size, wanted = path.stat().st_size, pc2.HEADER.size + 12 * points * samples
    if magic.rstrip(b"\0") != pc2.MAGIC or size != wanted:
        raise not_whole(path, "PC2", f"{size} bytes, it says {wanted}")


def obj_of(animation: Path) -> Callable[[Path], None]:
    """What refuses (ContractError) an OBJ that has not the animation's vertices and faces: the format does not say its own length."""
    try:
        found = mesh.load_animation(animation)
        wanted = found.vertices.shape[1], len(found.faces)
    except InstantNKError:  # found already
        wanted = None

    def read(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        counts = tuple(sum(line.startswith(kind) for line in lines) for kind in (b"v ", b"f "))
        if lines[-1] or counts != (wanted or counts):
            raise not_whole(path, "OBJ", "{} vertices and {} faces; the animation has {} and {}".format(*counts, *(wanted or counts)))

    return read


def read_ply(path: Path) -> None:
    """Raises ContractError: not a readable PLY with faces."""
    try:
        faces = ply_file.read(path)[1]
    except Exception as error:  # a broken file makes readers raise anything
        raise not_whole(path, "PLY", error) from None
    if faces is None:
        raise not_whole(path, "PLY", "it has no faces")


def image_of(stage: str) -> Callable[[Path], None]:
    """What refuses (ContractError) a PNG of a stage that does not end as one."""

    def read(path: Path) -> None:
        if not capture_images.seems_whole(path):
            raise not_whole(path, "PNG", "its end is missing", stage)

    return read


def read_gif(path: Path) -> None:
    """Raises ContractError: a GIF that does not end as one."""
    data = path.read_bytes()
    if not (data.startswith(b"GIF8") and data.endswith(b";")):
        raise not_whole(path, "GIF", "its end is missing", "report")


def read_video(path: Path) -> None:
    """Raises ContractError: an mp4 that is cut off."""
    try:
        capture_video.frame_count(path)
    except DataError as error:
        raise not_whole(path, "mp4", error, "report") from None


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
    meshed = paths.animation.is_file() or paths.surfaces.is_file()
    for place, stage, done in (
        (paths.observation, "observation", paths.motion.is_file()), (paths.mesh_frame, "mesh", meshed), (paths.texture_frame, "mesh", meshed),
        (lambda frame: paths.mesh / "obj" / f"{frame:06d}.obj", "mesh", meshed),
    ):  # fmt: skip
        folder, absent = place(0).parent, [str(frame) for frame in frames if not place(frame).is_file()]
        if folder.is_dir() and done and absent:
            yield f"{folder}: frames {', '.join(absent[:8])}{' …' if len(absent) > 8 else ''} are missing. Re-run stage '{stage}'."


def source_of(paths: Paths, name: str) -> Path | None:
    """The file behind a name in a header's `inputs`; None for what lies outside the results."""
    known = {
        "dataset": paths.manifest, "canonical": paths.canonical_field, "mesh": paths.canonical_mesh, "graph": paths.graph, "motion": paths.motion,
        "animation": paths.animation, "surfaces": paths.surfaces, "texture": paths.texture,
    }  # fmt: skip
    if name.startswith(observation.INPUT):
        return paths.observation(int(name.removeprefix(observation.INPUT)))
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
