"""NeuS opacities and compositing: planes with known answers, and no sample lost that carries weight."""

import pytest
import torch

from instant_nk.kernels.neus_opacity.reference import alpha_of
from instant_nk.kernels.volume_rendering import render_weights, visible
from instant_nk.models.renderer import composite
from tests.unit.neural_fixtures import ball


def ray_through_plane(samples=400, first=-0.4, last=0.4, cos=-1.0):
    """Mid-point distances, cosines and lengths of even samples along one ray that crosses a plane at t = 0; `cos` is its angle."""
    edges = torch.linspace(first, last, samples + 1, dtype=torch.float64)
    t = (edges[1:] + edges[:-1]) / 2
    return t, t * cos, torch.full_like(t, cos), edges.diff()


def opacity(alpha):
    return 1 - (1 - alpha).prod()


@pytest.mark.parametrize("samples", [20, 100, 400])
@pytest.mark.parametrize("cos", [-1.0, -0.5, -0.2])
def test_the_opacity_of_a_plane_is_the_known_one_whatever_step_and_angle(samples, cos):
    """Equation 13 telescopes: what is left behind the plane is the logistic at the ray's end over that at its start."""
    inv_std = torch.tensor(20.0, dtype=torch.float64)
    t, sdf, cosine, lengths = ray_through_plane(samples, -0.3, 0.05, cos)
    left = torch.sigmoid(0.05 * cos * inv_std) / torch.sigmoid(-0.3 * cos * inv_std)
    assert opacity(alpha_of(sdf, cosine, lengths, inv_std)).item() == pytest.approx(
        1 - left.item(), abs=1e-4 + 1e-5 * samples
    )  # 1e-5 a sample keeps the division safe


def test_a_sharp_plane_is_opaque_and_lies_where_it_is():
    t, sdf, cos, lengths = ray_through_plane()
    alpha = alpha_of(sdf, cos, lengths, torch.tensor(200.0, dtype=torch.float64))
    rendered, weights = _composite(alpha, t)
    assert rendered.opacity.item() == pytest.approx(1, abs=1e-4)
    assert rendered.depth.item() == pytest.approx(0, abs=4e-3)
    assert abs(t[weights.argmax()]) < 0.01


def _composite(alpha, t):
    rays = torch.zeros(len(t), dtype=torch.int64)
    shade = torch.ones(len(t), 3, dtype=t.dtype)
    rendered = composite(alpha, shade, shade, t, rays, 1)
    return rendered, alpha * torch.cat([torch.ones(1, dtype=t.dtype), (1 - alpha).cumprod(0)[:-1]])


def test_a_surface_seen_from_behind_is_transparent():
    t, sdf, cos, lengths = ray_through_plane(cos=0.7)
    assert opacity(alpha_of(sdf[200:], cos[200:], lengths[200:], torch.tensor(200.0, dtype=torch.float64))) < 5e-3


def test_early_in_training_a_surface_seen_from_behind_still_gets_gradients():
    sdf = torch.zeros(1, requires_grad=True)
    for anneal, expected in ((0.0, True), (1.0, False)):
        alpha = alpha_of(sdf, torch.tensor([0.5]), torch.tensor([0.1]), torch.tensor(30.0), anneal)
        (gradient,) = torch.autograd.grad(alpha.sum(), sdf)
        assert (gradient.abs().item() > 1e-3) == expected


def test_opacity_stays_between_zero_and_one():
    sdf, cos = torch.randn(1000) * 3, torch.rand(1000) * 2 - 1
    alpha = alpha_of(sdf, cos, torch.rand(1000), torch.tensor(500.0))
    assert alpha.min() >= 0 and alpha.max() <= 1 and torch.isfinite(alpha).all()


def test_opacity_gradients_agree_with_finite_differences():
    sdf = torch.linspace(-0.1, 0.1, 20, dtype=torch.float64, requires_grad=True)
    cos = torch.linspace(-1, -0.1, 20, dtype=torch.float64, requires_grad=True)
    inv_std = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    lengths = torch.full((20,), 0.02, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s, c, i: alpha_of(s, c, lengths, i, 0.4), (sdf, cos, inv_std))


def test_compositing_gives_the_known_colour_depth_and_normal():
    rendered = composite(
        torch.tensor([0.5, 1.0, 0.25]),
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
        torch.tensor([[0.0, 0, -1], [0, 0, 1], [1, 0, 0]]),
        torch.tensor([2.0, 4.0, 8.0]),
        torch.tensor([0, 0, 2]),
        3,
    )
    torch.testing.assert_close(rendered.rgb, torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0.25]]))
    torch.testing.assert_close(rendered.opacity, torch.tensor([1, 0, 0.25]))
    torch.testing.assert_close(rendered.depth, torch.tensor([3, 0, 2.0]))
    torch.testing.assert_close(rendered.normal, torch.tensor([[0, 0, 0.0], [0, 0, 0], [0.25, 0, 0]]))


def rays_at_a_ball(rays=300, step=0.0125):
    """Packed mid-points of even samples along rays through and past the ball of radius 0.5, with lengths and cosines."""
    offset = torch.rand(rays, 2) * 1.4 - 0.7
    t = torch.arange(-0.9, 0.9, step) + step / 2
    points = torch.cat([offset[:, None].expand(-1, len(t), 2), t[None, :, None].expand(rays, -1, 1)], -1).reshape(-1, 3)
    return points, torch.arange(rays).repeat_interleave(len(t)), torch.full((len(points),), step), torch.nn.functional.normalize(points, dim=1)[:, 2]


@pytest.mark.parametrize("inv_std", [64.0, 300.0, 1500.0])
def test_all_samples_that_carry_weight_are_kept(inv_std):
    points, rays, lengths, cos = rays_at_a_ball()
    alpha = alpha_of(ball(points), cos, lengths, torch.tensor(inv_std))
    weights, _ = render_weights(alpha, rays, 300)
    keep = visible(ball(points), rays, 300, inv_std, 5e-4)
    assert weights[~keep].max() < 1e-3
    lost = torch.zeros(300).index_add(0, rays[~keep], weights[~keep])
    assert lost.max() < 0.01 and lost.mean() < 5e-3
    assert keep.float().mean() < 0.5


def test_what_lies_behind_an_opaque_surface_is_dropped():
    points, rays, _, _ = rays_at_a_ball()
    keep = visible(ball(points), rays, 300, 300.0, 5e-4)
    through = points[:, :2].norm(dim=1) < 0.4
    assert not keep[through & (points[:, 2] > 0)].any()


def test_one_rays_samples_do_not_decide_over_the_next_ray():
    """The last sample of a ray lies outside, the next ray begins inside: no surface between them."""
    sdf, rays = torch.tensor([0.3, 0.2, -0.2, -0.3]), torch.tensor([0, 0, 1, 1])
    assert not visible(sdf, rays, 2, 200.0, 1e-3)[:2].any()


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_few_samples_are_no_special_case(samples):
    keep = visible(torch.linspace(0.1, -0.1, 5)[:samples], torch.zeros(samples, dtype=torch.int64), 1, 100.0, 1e-3)
    assert keep.shape == (samples,) and keep.dtype == torch.bool
