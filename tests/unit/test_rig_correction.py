"""Exposure, poses and light over time: known disturbances are recovered, and none of it reaches the geometry unasked."""

import dataclasses

import numpy as np
import pytest
import torch

from instant_nk import config as configuration
from instant_nk.errors import ConfigError
from instant_nk.fitting import window_files
from instant_nk.fitting.rays import PixelSource
from instant_nk.fitting.window_fit import WindowFit
from instant_nk.geometry.rotations import so3_exp
from instant_nk.io import dataset as datasets
from instant_nk.models.rig_correction import FrameColour, RigCorrection
from instant_nk.stages import field as field_stage
from tests.unit import neural_fixtures
from tests.unit.capture_writer import BALLS
from tests.unit.neural_fixtures import WINDOWS, numbers, stir
from tests.unit.test_training_state import WINDOW

CAMERAS = 5  # of six; one is kept for validation


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.load(neural_fixtures.balls(tmp_path_factory.getbasetemp()).paths.manifest)


def random_mean_zero(size, seed):
    values = torch.randn(CAMERAS, 3, generator=torch.Generator().manual_seed(seed)) * size
    return values - values.mean(0)


def trained(dataset, disturb, light=0, **changes):
    """A window of the two balls trained on disturbed pixels, and their source."""
    torch.manual_seed(0)
    source, field = PixelSource(dataset, list(dataset.frames), 10**6), neural_fixtures.balls_window(dataset)
    disturb(source)
    field.light = FrameColour(len(dataset.frames), light, field.colour.hidden) if light else None
    fit = WindowFit(dataclasses.replace(WINDOW, **changes), field, source, 32, "cpu", 0, "test")
    fit.train(None)
    return fit, source


# The corrections themselves


def test_a_fresh_correction_changes_nothing():
    rig = RigCorrection(CAMERAS, True, True)
    origins, directions = torch.randn(20, 3), torch.nn.functional.normalize(torch.randn(20, 3), dim=1)
    moved = rig.rays(origins, directions, torch.randint(CAMERAS, (20,)))
    assert torch.equal(moved[0], origins) and torch.allclose(moved[1], directions) and torch.equal(rig.gains(), torch.ones(CAMERAS, 3))


def test_what_all_cameras_share_is_not_a_correction():
    rig = RigCorrection(CAMERAS, True, True)
    stir(rig, 0.1)
    torch.testing.assert_close(rig.gains().log().mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    before = rig.gains().clone(), rig.turns().clone(), rig.shifts().clone()
    with torch.no_grad():
        for parameter in rig.parameters():
            parameter += 0.3
    for was, now in zip(before, (rig.gains(), rig.turns(), rig.shifts())):
        torch.testing.assert_close(now, was, atol=1e-6, rtol=1e-5)


def test_a_camera_turns_about_its_own_centre():
    rig = RigCorrection(CAMERAS, False, True)
    stir(rig, 0.2)
    origins, directions = torch.randn(CAMERAS, 3), torch.eye(3).repeat(2, 1)[:CAMERAS]
    moved, turned = rig.rays(origins, directions, torch.arange(CAMERAS))
    torch.testing.assert_close(moved, origins + rig.shifts())
    torch.testing.assert_close(turned, (so3_exp(rig.turns()) @ directions[..., None])[..., 0])


# Known disturbances


def test_gains_of_the_cameras_are_recovered(dataset):
    """Gains of 10 % per camera and channel, as exposure and white balance give: what a pixel is off by is at least halved in 150 steps."""
    log_gain = random_mean_zero(0.12, 0)
    colours = torch.tensor([colour for _, _, colour in BALLS]) * 0.85  # room for gains above one

    def disturb(source):
        camera = source.views.long() % CAMERAS
        source.colours[:, :3] = (source.colours[:, :3].float() * 0.85 * torch.exp(log_gain)[camera]).round().clamp(0, 255).byte()

    fit, _ = trained(dataset, disturb, steps=150, exposure=True)
    off = [((wrong.exp() - 1)[:, None] * colours).abs().mean() for wrong in (log_gain, fit.rig.gains().log().detach() - log_gain)]
    assert off[0] > 7 and off[1] < 0.5 * off[0], off  # levels of 255
    assert torch.corrcoef(torch.stack([fit.rig.gains().log().detach().reshape(-1), log_gain.reshape(-1)]))[0, 1] > 0.8


def project(c2w, K, points):
    local = torch.einsum("cji,cnj->cni", c2w[:, :3, :3], points[None] - c2w[:, None, :3, 3])
    image = torch.einsum("cij,cnj->cni", K, local)
    return image[..., :2] / image[..., 2:]


def test_poses_of_the_cameras_are_recovered(dataset):
    """Turned by 2 degrees and shifted by 3 % of the box's half: surface points fall where they should to a third of a pixel, from 1.2."""
    turn, shift = random_mean_zero(0.02, 1), random_mean_zero(0.03, 2)
    true = PixelSource(dataset, [0], 10**6).cameras
    points = neural_fixtures.balls_window(dataset).skeleton.vertices[::20]

    def disturb(source):
        source.cameras.c2w[:, :3, :3] = so3_exp(turn) @ source.cameras.c2w[:, :3, :3]
        source.cameras.c2w[:, :3, 3] += shift

    fit, source = trained(dataset, disturb, steps=150, samples_per_step=3000, refine_poses=True)
    found = source.cameras.c2w.clone()
    found[:, :3, :3] = so3_exp(fit.rig.turns().detach()) @ found[:, :3, :3]
    found[:, :3, 3] += fit.rig.shifts().detach()
    wanted = project(true.c2w, true.K, points)
    before, after = ((project(c2w, true.K, points) - wanted).norm(dim=-1).mean() for c2w in (source.cameras.c2w, found))
    assert before > 1.0 and after < 0.45, (before, after)


def test_right_poses_stay_nearly_right(dataset):
    true = PixelSource(dataset, [0], 10**6).cameras
    points = neural_fixtures.balls_window(dataset).skeleton.vertices[::20]
    fit, source = trained(dataset, lambda source: None, steps=60, samples_per_step=3000, refine_poses=True)
    found = source.cameras.c2w.clone()
    found[:, :3, :3] = so3_exp(fit.rig.turns().detach()) @ found[:, :3, :3]
    found[:, :3, 3] += fit.rig.shifts().detach()
    assert (project(found, true.K, points) - project(true.c2w, true.K, points)).norm(dim=-1).mean() < 0.35


def test_gradients_reach_the_poses_inside_the_lesson(dataset):
    """Where samples lie carries none: how many there are is found without."""
    fit, _ = trained(dataset, lambda source: None, steps=1, refine_poses=True)
    whole, found = fit.find, []

    def watched(*args):
        found.append(whole(*args))
        return found[-1]

    fit.find = watched
    fit.step()
    assert not any(value.requires_grad for value in vars(found[0]).values() if torch.is_tensor(value))
    assert fit.rig.turn.grad.abs().max() > 0 and fit.rig.shift.grad.abs().max() > 0


# Light over time


def flicker(source):
    """Frames of 100 %, 70 % and 45 % brightness."""
    frame = source.views.long() // CAMERAS
    source.colours[:, :3] = (source.colours[:, :3].float() * torch.tensor([1.0, 0.7, 0.45])[frame][:, None]).round().byte()


def test_a_code_per_frame_explains_light_that_changes(dataset):
    """The error in colour falls, and the residual, which could only re-explain the light as motion, is not larger."""
    losses, residuals = [], []
    for light in (0, 4):
        fit, source = trained(dataset, flicker, light, steps=150, samples_per_step=2500)
        generator, errors = torch.Generator().manual_seed(5), []
        fit.optimizer.step = lambda: None
        fit.generator = generator
        for _ in range(8):
            errors.append(float(fit.step()["mse"]))
        losses.append(np.mean(errors))
        points = fit.field.skeleton.vertices
        with torch.no_grad():
            moved = [fit.field.residual_at(points, torch.full((len(points),), f)).norm(dim=1).mean() for f in range(3)]
        residuals.append(float(torch.stack(moved).mean()))
    assert losses[1] < 0.8 * losses[0], losses
    assert residuals[1] < 1.2 * residuals[0], residuals


def test_the_code_cannot_say_anything_about_geometry(dataset):
    """Distance, gradient, residual and convergence are the same to the bit whatever the codes are; only colour changes."""
    torch.manual_seed(0)
    field = neural_fixtures.balls_window(dataset)
    stir(field.residual, 0.2)
    field.light = FrameColour(field.frames, 4, field.colour.hidden)
    space = field.live_space(32)
    x = space.live[1][::7] + 0.01
    frame, look = torch.ones(len(x), dtype=torch.long), torch.nn.functional.normalize(torch.randn(len(x), 3), dim=1)
    _, seed = field.quick_sdf(space, x, frame)
    before = field.at(space, x, frame, seed, look, *field.posed())
    stir(field.light, 1.0)
    after = field.at(space, x, frame, seed, look, *field.posed())
    for name in ("sdf", "gradient", "residual", "stretch", "canonical", "converged"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert (before.rgb - after.rgb).abs().mean() > 0.05
    gradients = torch.autograd.grad(after.sdf.sum() + after.residual.sum(), list(field.light.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_a_fresh_code_is_the_colour_without_one(dataset):
    torch.manual_seed(0)
    light, colour = FrameColour(3, 4, 16), neural_fixtures.ColourField(6, 16)
    arguments = [torch.randn(9, 3) for _ in range(3)] + [torch.randn(9, 6)]
    assert torch.equal(colour(*arguments), colour(*arguments, light(torch.randint(3, (9,)))))


# Stage and keys


def test_the_stage_trains_saves_and_tells_all_of_it(tmp_path, tmp_path_factory):
    import shutil

    base = neural_fixtures.body(tmp_path_factory.getbasetemp())
    shutil.copytree(base.job.paths.root, tmp_path / "results" / base.job.paths.root.name)
    job = base.variant(WINDOWS[0], results=tmp_path / "results", field={"exposure": True, "refine_poses": True, "appearance": 3})
    field_stage.run(job)
    said, cameras = numbers(job.paths.field(WINDOWS[0]).with_suffix(".json")), len(base.dataset.cameras)
    assert np.shape(said["camera_gains"]) == (cameras, 3) and np.std(said["camera_gains"]) > 0
    assert len(said["camera_turns_deg"]) == len(said["camera_shifts_scene"]) == cameras and 0 < max(said["camera_turns_deg"]) < 2
    field, _ = window_files.load(job.paths, base.dataset, WINDOWS[0], "cpu")
    assert field.light.codes.shape == (3, 3) and field.light.codes.abs().max() > 0


@pytest.mark.parametrize("name", ["exposure", "refine_poses", "appearance"])
def test_modes_without_a_canonical_surface_refuse_what_they_would_ignore(name):
    with pytest.raises(ConfigError, match=rf"'field.dyna_mode': wanted deform, because field.{name} is set, got 'time'"):
        configuration.parse({"field": {"dyna_mode": "time", name: 1 if name == "appearance" else True}})


def test_all_of_it_is_off_by_default():
    field = configuration.parse({}).field
    assert not field.exposure and not field.refine_poses and field.appearance == 0
