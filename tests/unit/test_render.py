"""`instant-nk render`: the orbit and given cameras, what is written, and what is refused; the mesh stands in for the fields."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

from instant_nk import cli, layout
from instant_nk import config as configuration
from instant_nk.errors import ContractError, DataError
from instant_nk.io import artifact, dataset, mesh
from instant_nk.stages import dataset as dataset_stage
from instant_nk.stages import render
from instant_nk.viewer.mesh_renderer import MeshRenderer

SIDE = 40


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The built-in capture's dataset and its true mesh as the result."""
    from instant_nk.io import truth

    config = configuration.parse({"preset": "tiny", "runtime.results": str(tmp_path_factory.mktemp("render")), "sequence": "body", "synthetic.cameras": 4})
    job = layout.Job(config, layout.paths_of(config))
    dataset_stage.run(job)
    data = dataset.load(job.paths.manifest)
    true = truth.load(data.capture, data.frames)
    n, v = true.vertices.shape[:2]
    zero = np.zeros((n, v), np.float32)
    colours = np.random.default_rng(0).random((v, 3)).astype(np.float32)
    animation = mesh.Animation(
        np.array(data.frames, np.int32), true.vertices.astype(np.float32), true.faces.astype(np.int32), colours, zero, zero, zero.astype(np.int32)
    )
    inputs = {"000000-000002": "0", "000001-000003": "1"}
    mesh.save_animation(job.paths.animation, animation, artifact.make_header("animation", mesh.ANIMATION_FORMAT, "mesh", None, inputs))
    return job


@pytest.fixture(autouse=True)
def mesh_in_place_of_the_field(monkeypatch):
    monkeypatch.setattr(render, "neural_renderer", lambda job, data: MeshRenderer(mesh.load_animation(job.paths.animation)))


@pytest.fixture(scope="module")
def orbit(job, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "neural_renderer", lambda job, data: MeshRenderer(mesh.load_animation(job.paths.animation)))
        folder = tmp_path_factory.mktemp("out") / "orbit"
        said = render.run_render(job, "orbit", folder, SIDE)
    assert said.startswith(f"{folder}: 4 pictures of {SIDE}x{SIDE}")
    return folder


def test_the_orbit_writes_three_videos_and_every_frame(orbit):
    for kind in ("rgb", "depth", "normal"):
        video = iio.imread(orbit / f"{kind}.mp4", plugin="FFMPEG")
        assert video.shape == (4, SIDE, SIDE, 3) and (video.min(-1) < 230).mean() > 0.02
    assert len(list((orbit / "frames").iterdir())) == 12
    assert {path.name for path in orbit.iterdir()} == {"rgb.mp4", "depth.mp4", "normal.mp4", "frames", "cameras.json"}
    assert iio.imread(orbit / "frames" / "000003_rgb.png").shape == (SIDE, SIDE, 4)


def test_depth_pixels_times_their_unit_lie_on_the_surface(job, orbit):
    meta = json.loads((orbit / "cameras.json").read_text())
    animation = mesh.load_animation(job.paths.animation)
    for entry in meta["frames"]:
        steps = iio.imread(orbit / entry["depth_path"])
        assert steps.dtype == np.uint16 and 0 < (steps > 0).mean() < 0.7
        row, column = np.nonzero(steps)
        z = steps[row, column] * meta["integer_depth_scale"]
        local = np.stack([column + 0.5, row + 0.5, np.ones(len(row))], 1) @ np.linalg.inv(entry["K"]).T * z[:, None]
        c2w = np.array(entry["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        points = local @ c2w[:3, :3].T + c2w[:3, 3]
        vertices = animation.vertices[animation.frames.tolist().index(entry["frame"])]
        away = np.linalg.norm(points[:, None] - vertices[None], axis=-1).min(1)
        assert np.median(away) < 0.03 * np.ptp(vertices, axis=0).max()


def test_what_was_written_renders_the_same_again(job, orbit, tmp_path):
    render.run_render(job, str(orbit / "cameras.json"), tmp_path / "again", 7)
    for name in ("000000_rgb.png", "000002_normal.png", "000003_depth.png"):
        ours, theirs = (iio.imread(folder / "frames" / name).astype(int) for folder in (orbit, tmp_path / "again"))
        assert np.abs(ours - theirs).mean() < 0.01 * max(theirs.max(), 1) and ours.any()


def camera(job, **more):
    c2w = dataset.load(job.paths.manifest).cameras.c2w[0] @ np.diag([1, -1, -1, 1])
    return {"transform_matrix": c2w.tolist(), "fl_x": 60, "w": 32, "h": 24} | more


def write(tmp_path, *entries):
    (tmp_path / "my.json").write_text(json.dumps({"frames": list(entries)}))
    return str(tmp_path / "my.json")


def test_a_camera_says_which_frame_it_shows(job, tmp_path):
    path = write(tmp_path, camera(job, frame=3), camera(job, frame=0), camera(job))
    taken = render.read_cameras(tmp_path / "my.json", mesh.load_animation(job.paths.animation))
    assert taken.frames == [3, 0, 3] and taken.size == (32, 24) and np.allclose(taken.K[0], [[60, 0, 16], [0, 60, 12], [0, 0, 1]])
    render.run_render(job, path, tmp_path / "out", SIDE)
    assert (iio.imread(tmp_path / "out" / "frames" / "000000_rgb.png") != iio.imread(tmp_path / "out" / "frames" / "000001_rgb.png")).any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frame": 9}, r"frames\[1\]: 'frame' is 9; the animation has frames 0 to 3"),
        ({"frame": "x"}, r"'frame' is 'x'"),
        ({"w": 48}, r"one size, got \[\(32, 24\), \(48, 24\)\]"),
        ({"transform_matrix": [[1]]}, "must be 4x4 numbers"),
        ({"is_fisheye": True}, "is not supported"),
    ],
)
def test_cameras_that_make_no_video_are_refused_before_anything_is_written(job, tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        render.run_render(job, write(tmp_path, camera(job), camera(job, **change)), tmp_path / "out", SIDE)
    assert not (tmp_path / "out").exists()


def test_pictures_without_a_size_and_a_file_that_is_not_there_are_refused(job, tmp_path):
    entry = camera(job)
    del entry["w"], entry["h"]
    with pytest.raises(DataError, match="'w' and 'h' are missing"):
        render.run_render(job, write(tmp_path, entry), tmp_path / "out", SIDE)
    with pytest.raises(DataError, match="no such file"):
        render.run_render(job, str(tmp_path / "none.json"), tmp_path / "out", SIDE)


def test_a_failure_half_way_leaves_nothing(job, tmp_path, monkeypatch):
    class Broken(MeshRenderer):
        def render(self, c2w, K, size, frame):
            if frame == 2:
                raise ContractError("6_field/000001-000003.npz: is missing")
            return super().render(c2w, K, size, frame)

    monkeypatch.setattr(render, "neural_renderer", lambda job, data: Broken(mesh.load_animation(job.paths.animation)))
    with pytest.raises(ContractError, match="is missing"):
        render.run_render(job, "orbit", tmp_path / "out", SIDE)
    assert not list(tmp_path.rglob("*.*"))


def test_the_windows_are_those_the_animation_was_made_from(job, monkeypatch):
    monkeypatch.undo()
    renderer = render.neural_renderer(job, dataset.load(job.paths.manifest))
    assert renderer.windows == ["000000-000002", "000001-000003"] and renderer.window_of(3) == "000001-000003"


def test_the_command_renders_a_sequence_and_says_where(job, tmp_path, capsys):
    assert (
        cli.main(["render", str(job.paths.root), "-o", str(tmp_path / "out"), "--side", "24", "--set", "report.path_frames=2", "--set", "runtime.device=cpu"])
        == 0
    )
    assert f"{tmp_path / 'out'}: 2 pictures of 24x24" in capsys.readouterr().out
    assert cli.main(["render", str(tmp_path / "nothing")]) != 0
    assert "Traceback" not in capsys.readouterr().err
