"""The report stage on a run whose result is the truth itself, with the mesh renderer in the neural renderer's place."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from instant_nk import config as configuration
from instant_nk import entry, layout
from instant_nk.errors import BackendError, ContractError
from instant_nk.geometry import evaluation, spaces, surface
from instant_nk.geometry.texture import Texture
from instant_nk.io import artifact, dataset, graph, mesh, metrics, motion, truth
from instant_nk.models import deformation_graph
from instant_nk.stages import dataset as dataset_stage
from instant_nk.stages import report, report_films, report_page, report_results, report_views
from instant_nk.viewer.mesh_renderer import MeshRenderer

trimesh = pytest.importorskip("trimesh")
DOUBTFUL = 2
CONTRADICTED = 1  # the frame of whose surface a part has nothing like it in the observation


def header(kind, version, stage):
    return artifact.make_header(kind, version, stage)


def write_run(root, **overrides):
    """Results of all stages before the report, made from the built-in capture's truth; the job."""
    config = configuration.parse({"preset": "tiny", "runtime.results": str(root), "sequence": "body", "synthetic.cameras": 4, **overrides})
    job = layout.Job(config, layout.paths_of(config))
    dataset_stage.run(job)
    data = dataset.load(job.paths.manifest)
    true = truth.load(data.capture, data.frames)
    coloured = trimesh.load(data.capture / "gt" / "mesh_0000.ply", process=False)
    colours = (coloured.visual.vertex_colors[:, :3] / 255).astype(np.float32)
    (n, v), faces = true.vertices.shape[:2], true.faces.astype(np.int32)
    small = np.full((n, v), 1e-4, np.float32)
    animation = mesh.Animation(np.array(data.frames, np.int32), true.vertices.astype(np.float32), faces, colours, small, small, np.full((n, v), 2, np.int32))
    mesh.save_animation(job.paths.animation, animation, header("animation", mesh.ANIMATION_FORMAT, "mesh"))
    scene = spaces.transform_points(data.scene_from_world, true.vertices).astype(np.float32)
    rest = scene[data.frames.index(data.canonical_frame)]
    canonical = mesh.Mesh(rest, faces, surface.vertex_normals(rest, faces).astype(np.float32), colours)
    mesh.save(job.paths.canonical_mesh, canonical, header("mesh", mesh.MESH_FORMAT, "canonical"))
    nodes = deformation_graph.build(rest, faces, None, 40, 4, 6)
    graph.save(job.paths.graph, nodes, header("graph", graph.FORMAT, "graph"))
    nearest = np.linalg.norm(rest[:, None] - nodes.node_positions[None], axis=2).argmin(0)
    converged = np.array([frame != DOUBTFUL for frame in data.frames])
    values = np.full(n, 0.01, np.float32)
    turns = np.tile(np.eye(3, dtype=np.float32), (n, len(nearest), 1, 1))
    moved = motion.Motion(
        animation.frames,
        turns,
        scene[:, nearest] - rest[nearest],
        converged,
        values,
        values + 0.9,
        values,
        np.where(data.frames == np.array(CONTRADICTED), 0.05, 0).astype(np.float32),
    )
    motion.save(job.paths.motion, moved, header("motion", motion.FORMAT, "registration"))
    for stage, name in (("canonical", "metrics.json"), ("field", f"{layout.part_name(0, 2)}.json"), ("field", f"{layout.part_name(1, 3)}.json")):
        history = {"step": [0, 10, 20], "loss": [1.0, 0.1, 0.02], "psnr_db": [12.0, 20.0, 24.0]}
        artifact.save_json(job.paths.stage_dir(stage) / name, {"wall_s": 7.0, "peak_host_mib": 300.0, "peak_gpu_mib": None, "history": history})
    artifact.save_json(
        job.paths.mesh / "metrics.json", {"wall_s": 1.0, "peak_host_mib": 100.0, "seam_disagreement_pct": 0.02, "seam_step_pct": 0.4, "within_jolt_pct": None}
    )
    return dataclasses.replace(job, config=entry.restrict(config, "report"))


@pytest.fixture(autouse=True, scope="module")
def mesh_in_place_of_the_field():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "neural_renderer", lambda job, results: MeshRenderer(results.animation))
        patch.setattr(evaluation, "SAMPLES", 3000)
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    job = write_run(tmp_path_factory.mktemp("report"))
    report.run(job)
    return job


def test_a_result_equal_to_the_truth_has_no_surface_and_tracking_error(job):
    summary = metrics.load(job.paths.metrics)["summary"]
    assert summary["chamfer_pct"] < 1e-4 and summary["track_mean_pct"] < 1e-4 and summary["jitter_pct"] < 1e-4
    assert summary["coverage"] == 1 and summary["flipped_fraction"] == 0 and summary["motion_mean_pct"] > 1
    assert summary["silhouette_iou"] > 0.95
    assert summary["test_psnr_db"] > 24 and summary["test_ssim"] > 0.9 and summary["test_fg_psnr_db"] < summary["test_psnr_db"]
    assert summary["test_psnr_db"] == pytest.approx(summary["mesh_test_psnr_db"])
    assert summary["not_converged_frames"] == 1 and summary["doubtful_frames"] == 2 and summary["frames"] == 4


def test_the_joints_of_the_windows_are_told(job):
    summary = metrics.load(job.paths.metrics)["summary"]
    assert (summary["seam_disagreement_pct"], summary["seam_step_pct"], summary["within_jolt_pct"]) == (0.02, 0.4, None)


def test_lengths_are_in_units_of_the_box(job):
    data = dataset.load(job.paths.manifest)
    diagonal = np.linalg.norm(data.box[1] - data.box[0])
    value = metrics.load(job.paths.metrics)
    assert value["summary"]["cycle_error_median"] == pytest.approx(1e-4 / diagonal, rel=1e-3)
    assert value["per_frame"]["registration_residual_pct"][0] == pytest.approx(100 * 0.01 / (diagonal * data.scale), rel=1e-3)


def test_every_list_per_frame_has_all_frames(job):
    per_frame = metrics.load(job.paths.metrics)["per_frame"]
    assert per_frame["frames"] == [0, 1, 2, 3] and per_frame["converged"] == [True, True, False, True]
    assert {len(values) for values in per_frame.values()} == {4} and len(per_frame) > 10


def test_costs_are_those_of_the_stages_and_of_the_report_itself(job):
    value = metrics.load(job.paths.metrics)
    assert value["stages"]["field"]["jobs"] == 2 and value["stages"]["field"]["wall_s"] == 14
    assert value["stages"]["report"]["wall_s"] > 0
    assert value["summary"]["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in value["stages"].values()))
    assert value["summary"]["peak_host_mib"] >= 300


def test_held_out_cameras_are_rendered_as_rgba_under_their_own_names(job):
    data = dataset.load(job.paths.manifest)
    for frame in data.frames:
        picture = iio.imread(job.paths.report / "renders" / str(frame) / data.heldout.names[0])
        assert picture.shape == (48, 48, 4) and picture.dtype == np.uint8
        assert not picture[picture[..., 3] == 0].any() and (picture[..., 3] > 127).sum() > 50
    assert len(metrics.load(job.paths.metrics)["views"]) == 4


def test_the_videos_play_along_the_path(job):
    for name in ("rgb.mp4", "depth.mp4"):
        frames = iio.imread(job.paths.report / name, plugin="FFMPEG")
        assert frames.shape == (4, 48, 48, 3)
        assert (frames.min(-1) < 200).mean() > 0.02 and frames[0].std() > 5


def test_without_films_the_report_has_everything_else_and_no_old_ones(tmp_path):
    job = write_run(tmp_path, **{"report.films": False})
    job.paths.report.mkdir()
    (job.paths.report / "rgb.mp4").write_bytes(b"an earlier run's")
    report.run(job)
    assert not list(job.paths.report.glob("*.mp4"))
    page = job.paths.report_page.read_text()
    assert "<video" not in page and "<canvas" in page
    assert metrics.load(job.paths.metrics)["summary"]["test_psnr_db"] > 10


def test_films_want_ffmpeg_before_the_first_stage(monkeypatch):
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else object())
    with pytest.raises(BackendError, match=r"report.films: true needs the package imageio-ffmpeg.*set report.films: false"):
        configuration.check_packages(configuration.parse({}))
    configuration.check_packages(configuration.parse({"report.films": False}))


def test_the_turntable_shows_the_mesh_in_colour_and_bare(job):
    video = iio.imread(job.paths.report / "turntable.mp4", plugin="FFMPEG").astype(int)
    config = configuration.parse({"preset": "tiny"}).report
    assert len(video) == report_films.TURN * config.path_frames
    half = video.shape[2] // 2
    left, right = video[:, :, :half], video[:, :, half:]
    spread = [(side.max(-1) - side.min(-1))[side.min(-1) < 200].mean() for side in (left, right)]
    assert spread[0] > 40 and spread[1] < 25  # clay is almost grey
    seen = video.min(-1) < 240
    rows, columns = np.flatnonzero(seen.any((0, 2))), np.flatnonzero(left.min(-1).min(0).min(0) < 240)
    assert max(np.ptp(rows) / video.shape[1], np.ptp(columns) / half) > 0.8  # cut to the subject's shape
    assert ((left[0].min(-1) < 240) != (left[3].min(-1) < 240)).mean() > 0.01


def test_the_preview_is_small_and_moves(job):
    assert job.paths.report_preview.stat().st_size < 1_000_000
    preview = iio.imread(job.paths.report_preview)
    assert len(preview) >= 8 and (preview[0] != preview[4]).any(-1).mean() > 0.01


def test_the_held_out_camera_s_video_shows_truth_rendering_and_mesh_side_by_side(job):
    data = dataset.load(job.paths.manifest)
    video = iio.imread(job.paths.report / "heldout.mp4", plugin="FFMPEG").astype(float)
    assert video.shape == (4, 48, 3 * 48, 3)
    for row, frame in enumerate(data.frames):
        true = evaluation.on_white(data.heldout_image(0, frame) / 255) * 255
        given, rendered, meshed = np.split(video[row], 3, axis=1)
        assert np.abs(given - true).mean() < 6 and np.abs(rendered - true).mean() < 12 and np.abs(meshed - rendered).mean() < 3


def test_the_held_out_camera_s_video_is_composed_one_picture_at_a_time(job, monkeypatch):
    results = report_results.load(job)
    drawn, made = MeshRenderer(results.animation), []
    render = drawn.render
    monkeypatch.setattr(drawn, "render", lambda *args: (made.append(args), render(*args))[1])
    counts = []
    monkeypatch.setattr(report_films, "write_video", lambda path, frames, fps: counts.extend(len(made) for _ in frames))
    report_films.heldout(job, results, drawn)
    assert counts == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["cam_000.jpg", "cam_000.tif"])
def test_renders_of_a_capture_of_other_images_are_png_under_the_camera_s_name(job, tmp_path, monkeypatch, name):
    results = report_results.load(job)
    renamed = dataclasses.replace(results.dataset, heldout=dataclasses.replace(results.dataset.heldout, names=(name,)))
    results, drawn = dataclasses.replace(results, dataset=renamed), MeshRenderer(results.animation)
    report_views.render_heldout(tmp_path / "8_report", renamed, [1], drawn, drawn)
    path = tmp_path / "8_report" / "renders" / "1" / name
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (48, 48)) and np.asarray(picture)[..., 3].max() == 255
    shown = []
    monkeypatch.setattr(report_films, "render_file", lambda *args: path)
    monkeypatch.setattr(report_films, "write_video", lambda path, frames, fps: shown.extend(frames))
    report_films.heldout(job, results, drawn)  # reads it again
    assert shown[1].shape == (48, 3 * 48, 3) and np.abs(shown[1][:, 48:96].astype(int) - shown[1][:, 96:]).max() <= 1


def test_the_summary_says_whether_the_mesh_is_sound(job):
    summary = metrics.load(job.paths.metrics)["summary"]
    assert summary["mesh_watertight"] == 1 and summary["mesh_components"] == 1 and summary["flipped_fraction_worst"] == 0
    for name in ("open_edges", "overshared_edges", "turned_edges", "inside_out_components", "degenerate_faces", "unused_vertices"):
        assert summary[f"mesh_{name}"] == 0


def test_without_a_texture_there_are_no_numbers_of_one(job):
    value = metrics.load(job.paths.metrics)
    assert value["summary"]["texture_test_psnr_db"] is None and "texture" not in value["header"]["inputs"]
    assert "data:image/jpeg" not in job.paths.report_page.read_text()


def red_texture(faces, count):
    """One red texture: every vertex of the mesh at the middle of the image."""
    return Texture(np.full((count, 2), 0.5, np.float32), np.arange(count, dtype=np.int32), faces, np.broadcast_to(np.uint8([250, 10, 10]), (8, 8, 3)).copy())


def test_a_baked_texture_is_shown_and_scored_against_the_held_out_pictures(tmp_path):
    job = write_run(tmp_path)
    animation = mesh.load_animation(job.paths.animation)
    mesh.save_texture(job.paths.texture, red_texture(animation.faces, animation.vertices.shape[1]), header("texture", mesh.TEXTURE_FORMAT, "mesh"))
    report.run(job)
    value = metrics.load(job.paths.metrics)
    summary = value["summary"]
    assert summary["texture_test_psnr_db"] < summary["mesh_test_psnr_db"] - 3  # the truth is not all red
    assert summary["mesh_test_psnr_db"] > 24  # the vertex colours are still scored as such
    assert summary["texture_test_fg_psnr_db"] < summary["texture_test_psnr_db"]
    assert value["header"]["inputs"]["texture"] == artifact.file_hash(job.paths.texture)
    assert "data:image/jpeg;base64," in job.paths.report_page.read_text()  # in the player
    video = iio.imread(job.paths.report / "turntable.mp4", plugin="FFMPEG").astype(int)
    left = video[:, :, : video.shape[2] // 2]
    inside = left.min(-1) < 120
    assert inside.mean() > 0.05 and (left[inside][:, 0] - left[inside][:, 1]).mean() > 150


def test_frames_own_textures_are_scored_and_played(tmp_path):
    job = write_run(tmp_path)
    animation = mesh.load_animation(job.paths.animation)
    texture = red_texture(animation.faces, animation.vertices.shape[1])
    mesh.save_texture(job.paths.texture, texture, header("texture", mesh.TEXTURE_FORMAT, "mesh"))
    for frame in animation.frames.tolist():
        job.paths.texture_frame(frame).parent.mkdir(exist_ok=True)
        iio.imwrite(job.paths.texture_frame(frame), np.full((8, 8, 3), 255 if frame % 2 else 0, np.uint8))
    report.run(job)
    views = metrics.load(job.paths.metrics)["views"]
    score = {frame: np.mean([view["texture_psnr_db"] for view in views if view["frame"] == frame]) for frame in animation.frames.tolist()}
    assert score[1] > score[0] and score[3] > score[2]  # white on a white ground is nearer than black
    meta = json.loads(re.search(r'class="nk-meta">(.*?)</script>', job.paths.report_page.read_text(), re.S).group(1))
    assert len(meta["images"]) == len(animation.frames)
    job.paths.texture_frame(1).unlink()
    with pytest.raises(ContractError, match=r"the textures of frames \[1\] are missing. Re-run stage 'mesh'"):
        report.run(job)


def test_results_of_another_version_and_missing_frames_are_refused(tmp_path):
    job = write_run(tmp_path)
    animation = mesh.load_animation(job.paths.animation)
    mesh.save_animation(job.paths.animation, animation, header("animation", mesh.ANIMATION_FORMAT + 1, "mesh") | {"package_version": "9.9"})
    with pytest.raises(ContractError, match=r"wanted format 1 of 'animation', got 2 \(written by version 9.9\). Re-run stage 'mesh'"):
        report.run(job)
    per_frame = {name: getattr(animation, name)[:-1] for name in ("frames", "vertices", "sdf_residual", "cycle_error", "n_views")}
    mesh.save_animation(job.paths.animation, dataclasses.replace(animation, **per_frame), header("animation", mesh.ANIMATION_FORMAT, "mesh"))
    with pytest.raises(ContractError, match=r"frames \[3\] of the sequence are missing from the animation"):
        report.run(job)
    mesh.save_animation(job.paths.animation, dataclasses.replace(animation, faces=animation.faces[:0]), header("animation", mesh.ANIMATION_FORMAT, "mesh"))
    with pytest.raises(ContractError, match="has no faces"):
        report.run(job)
    assert not job.paths.report_page.exists()


def test_the_page_links_to_the_files_that_are_there(job):
    page = job.paths.report_page.read_text()
    linked = re.findall(r"<li><a href='([^']+)'>", page)
    assert "../7_mesh/animation.npz" in linked and "../8_report/metrics.json" in linked and "../8_report/renders/" in linked
    assert all((job.paths.report / path).exists() for path in linked)


def test_of_long_clips_and_large_meshes_the_player_gets_fewer_frames(job):
    animation = mesh.load_animation(job.paths.animation)

    def frames(count, vertices):
        return -(-count // report_page.frames_apart(dataclasses.replace(animation, vertices=np.broadcast_to(np.float32(0), (count, vertices, 3)))))

    assert frames(100, 10000) == 100 and frames(1000, 10000) <= report_page.PLAYER_FRAMES
    assert frames(100, 10**6) * 10**6 <= report_page.PLAYER_POINTS and frames(100, 10**8) == 2


def test_the_page_is_self_contained_and_marks_doubtful_frames(job):
    page = job.paths.report_page.read_text()
    assert not re.search(r"""(src|href|url|srcset|poster)\s*[=(]\s*['"]?\s*(https?:)?//""", page)
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|\bimport\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    assert page.count("data:video/mp4;base64,") == 5 and page.count("data:image/png;base64,") >= 17
    assert "doubtful, and they are marked below: 1, 2." in page and page.count("class='doubt'") >= 8 and "frame 2, cam_000.png – doubtful" in page
    for wanted in (
        "SDF residual",
        "cycle error",
        "flipped triangle",
        "acceleration",
        "silhouette IoU",
        "canonical: loss",
        "field: psnr",
        "peak memory",
        "nk-player",
        "The animated mesh is closed and of one piece; all faces look outwards and have an area.",
    ):
        assert wanted in page
    for name, quantity in metrics.QUANTITIES.items():
        assert f"<code>{name}</code>" in page and html.escape(quantity.meaning, quote=True) in page
    assert str(job.paths.root.parent) not in page  # nobody's folders


def test_nothing_half_written_stays(job):
    assert not list(job.paths.report.rglob(".*"))


def test_scores_agree_with_an_independent_evaluation_of_the_same_folder(job, repository):
    tool = repository.parent / "shared" / "tools" / "evaluate.py"
    if not tool.is_file():
        pytest.skip(f"the independent evaluation {tool} is not on this machine")
    import sys

    data = dataset.load(job.paths.manifest)
    done = subprocess.run([sys.executable, str(tool), str(job.paths.root), str(data.capture), "--samples", "3000"], capture_output=True, text=True, check=True)
    theirs, ours = json.loads(done.stdout), metrics.load(job.paths.metrics)["summary"]
    for name in ("test_psnr_db", "test_fg_psnr_db", "test_ssim", "motion_mean_pct", "coverage"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.02)
    assert abs(ours["chamfer_pct"] - theirs["chamfer_pct"]) < 1e-3 and abs(ours["track_mean_pct"] - theirs["track_mean_pct"]) < 1e-3


def change_manifest(job, **values):
    manifest = json.loads(job.paths.manifest.read_text())
    job.paths.manifest.write_text(json.dumps(manifest | values))


def test_without_truth_and_held_out_cameras_the_rest_is_reported(tmp_path):
    job = write_run(tmp_path)
    shutil.rmtree(dataset.load(job.paths.manifest).capture / "gt")
    change_manifest(job, heldout={"names": [], "c2w": [], "K": [], "sizes": []}, heldout_images={str(frame): [] for frame in range(4)})
    report.run(job)
    value = metrics.load(job.paths.metrics)
    for name in ("chamfer_pct", "track_mean_pct", "jitter_pct", "test_psnr_db", "mesh_test_psnr_db"):
        assert value["summary"][name] is None
    assert value["summary"]["silhouette_iou"] > 0.95 and value["summary"]["flipped_fraction"] == 0 and value["views"] == []
    page = job.paths.report_page.read_text()
    assert "no ground truth" in page and not (job.paths.report / "heldout.mp4").exists() and "no held-out cameras" in page and "against the truth" not in page


def test_a_held_out_camera_without_picture_is_rendered_and_not_scored(tmp_path):
    job = write_run(tmp_path)
    heldout = json.loads(job.paths.manifest.read_text())["heldout"] | {"names": ["../../side/cam_000.png"]}
    change_manifest(job, heldout=heldout, heldout_images={"0": ["missing"], "1": [None], "2": [None], "3": [None]})
    results = report_results.load(job)
    one = dataclasses.replace(results, animation=report_page.thinned(results.animation, 4))
    one.animation.frames[:] = 1
    drawn = MeshRenderer(one.animation)
    assert report_views.render_heldout(job.paths.report, one.dataset, [1], drawn, drawn) == [{"frame": 1, "camera": "../../side/cam_000.png"}]
    assert (job.paths.report / "renders" / "1" / "side" / "cam_000.png").is_file()  # below the report, whatever the camera is called


def test_chromium_shows_the_subject_in_the_page(job, photograph):
    picture = photograph(job.paths.report_page, size=(1200, 1500)).astype(int)
    colourful = (picture.max(-1) - picture.min(-1)) > 60
    assert colourful[80:700, 50:700].sum() > 3000  # the player
    assert colourful[80:700, 700:1150].sum() > 3000  # the input beside it


def test_in_the_page_two_times_differ_in_the_mesh_and_in_the_input_beside_it(job, photograph, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(job.paths.report_page.read_text() + LISTEN)
    first, last = (photograph(page, f"#frame={frame}", size=(1200, 900)).astype(int) for frame in (0, 3))
    seen = [picture[80:600, 50:700].min(-1) < 200 for picture in (first, last)]
    assert all(0.03 < part.mean() < 0.7 for part in seen) and (seen[0] != seen[1]).mean() > 0.003
    for frame, moment in ((0, "0.05"), (3, "0.35")):  # the middle of each frame's tenth of a second
        assert dom(page, moment, f"#frame={frame}")["video"] == moment


def test_the_time_slider_moves_mesh_and_input(job, photograph, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(job.paths.report_page.read_text() + LISTEN.replace("/* act */", "slider.value = 2; slider.dispatchEvent(new Event('input'));"))
    found = dom(page, "0.25")
    assert (found["frame"], found["label"], found["video"]) == ("2", "frame 2", "0.25")


LISTEN = """<script>
const root = document.querySelector(".nk-player"), slider = root.querySelector(".nk-time"), film = document.getElementById("input-video");
let acted = false;
setInterval(() => {
  if (root.dataset.state !== "ready" || film.readyState === 0) return;
  if (!acted) { acted = true; /* act */ return; }
  if (root.dataset.frame !== slider.value || film.seeking) return; // not drawn yet; frames are numbered from 0 here
  Object.assign(document.body.dataset, { frame: root.dataset.frame, label: root.querySelector(".nk-frame").textContent, video: film.currentTime.toFixed(2) });
}, 50);
</script>"""


def dom(page, video, address=""):
    """What `LISTEN` has noted on the page's body, once the film is at the moment `video`; virtual time does not wait for its decoder, so a few times."""
    browser = next(name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name))
    flags = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--virtual-time-budget=30000"]
    flags += [f"--user-data-dir={page.parent}/profile", "--host-resolver-rules=MAP * ~NOTFOUND"]
    noted = {}
    for _ in range(6):
        done = subprocess.run([browser, *flags, "--dump-dom", f"file://{page}{address}"], capture_output=True, text=True, timeout=120, check=True)
        noted = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", done.stdout).group(0)))
        if noted.get("video") == video:
            break
    return noted


def test_the_page_fits_a_phone(job, photograph, tmp_path):
    browser = next(name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name))
    inner = html.escape(job.paths.report_page.read_text(), quote=True)
    script = "f.onload=()=>{document.body.dataset.width=f.contentDocument.documentElement.scrollWidth}"
    outer = tmp_path / "phone.html"
    outer.write_text(
        f"<body><iframe id=f width=360 height=740 frameborder=0 srcdoc='{inner.replace(chr(39), '&#39;')}'></iframe><script>{script}</script></body>"
    )
    flags = ["--headless", "--no-sandbox", "--virtual-time-budget=4000", f"--user-data-dir={tmp_path}/profile", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run([browser, *flags, "--dump-dom", f"file://{outer}"], capture_output=True, text=True, timeout=120, check=True)
    assert int(re.search(r'data-width="(\d+)"', done.stdout).group(1)) <= 360
