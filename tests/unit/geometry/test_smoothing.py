"""Smoothing over time: noise goes, motion stays, and how much is found from the trajectories alone."""

import numpy as np
import pytest

from instant_nk.geometry import smoothing


def swings(frames, period, amplitude=1.0, points=60, seed=0):
    """Points that swing each in its own direction and phase, [F, V, 3]."""
    rng = np.random.default_rng(seed)
    way, phase = rng.normal(size=(points, 3)), rng.uniform(0, 2 * np.pi, points)
    return amplitude * np.sin(2 * np.pi * np.arange(frames)[:, None] / period + phase)[..., None] * way / np.linalg.norm(way, axis=1, keepdims=True)


def jitter(x):
    return float(np.linalg.norm(np.diff(x, 2, axis=0), axis=-1).mean())


def test_smoothing_solves_its_least_squares():
    rng = np.random.default_rng(0)
    y, w, value = rng.normal(size=(9, 4, 3)), rng.uniform(0.1, 2, 9), 0.7
    bend = np.diff(np.eye(9), 2, axis=0)
    expected = np.linalg.solve(np.diag(w) + value * bend.T @ bend, np.diag(w)) @ y.reshape(9, -1)
    np.testing.assert_allclose(smoothing.smooth(y, value, w).reshape(9, -1), expected, atol=1e-12)


def test_straight_motion_and_fixed_frames_stay():
    line = np.arange(12.0)[:, None, None] * np.ones((1, 5, 3))
    np.testing.assert_allclose(smoothing.smooth(line, 10.0, np.ones(12)), line, atol=1e-9)
    y, w = np.random.default_rng(1).normal(size=(12, 5, 3)), np.ones(12)
    w[4] = smoothing.FIXED
    np.testing.assert_allclose(smoothing.smooth(y, 10.0, w)[4], y[4], atol=1e-4)


@pytest.mark.parametrize("period", [12, 25, 60])
def test_noise_goes_and_motion_stays_where_frames_are_close(period):
    truth = swings(80, period)
    noisy = truth + np.random.default_rng(2).normal(0, 0.03, truth.shape)
    found = smoothing.strength(noisy, np.ones(80))
    smooth = smoothing.smooth(noisy, found, np.ones(80))
    error = np.linalg.norm(smooth - truth, axis=-1).mean() / np.linalg.norm(noisy - truth, axis=-1).mean()
    assert found > 0 and error < 1
    assert jitter(smooth - truth) < 0.7 * jitter(noisy - truth)


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_motion_that_changes_within_few_frames_is_left_alone(noise):
    truth = swings(40, 5)
    noisy = truth + np.random.default_rng(3).normal(0, noise, truth.shape)
    smooth = smoothing.smooth(noisy, smoothing.strength(noisy, np.ones(40)), np.ones(40))
    np.testing.assert_allclose(smooth, noisy, atol=0.004)


def test_the_best_strength_is_nearly_found():
    """Against the truth, the strength found from the noisy trajectories errs at most a tenth more than the best one."""
    truth = swings(60, 20)
    noisy = truth + np.random.default_rng(4).normal(0, 0.05, truth.shape)

    def error(value):
        return np.square(smoothing.smooth(noisy, value, np.ones(60)) - truth).sum(-1).mean()

    assert error(smoothing.strength(noisy, np.ones(60))) < 1.1 * min(error(value) for value in smoothing.STRENGTHS)


def test_a_doubtful_frame_follows_its_neighbours():
    truth = swings(40, 40)
    y, w = truth + np.random.default_rng(5).normal(0, 0.01, truth.shape), np.ones(40)
    y[20] += 0.5
    w[20] = 0.01
    smooth = smoothing.smooth(y, 1.0, w)
    away = np.linalg.norm(smooth - truth, axis=-1).mean(1)
    assert away[20] < 0.05 and away[[18, 19, 21, 22]].max() < 0.02


def test_few_frames_are_not_judged():
    assert smoothing.strength(np.random.default_rng(6).normal(size=(5, 9, 3)), np.ones(5)) == 0
    assert smoothing.strength(np.random.default_rng(6).normal(size=(40, 9, 3)), np.full(40, 0.01)) == 0  # all of them lost
    assert smoothing.smooth(np.ones((1, 2, 3)), 1.0, np.ones(1)).shape == (1, 2, 3)


def test_the_shift_across_a_surface_is_told_from_the_one_along_it():
    side = 9
    x, y = (v.ravel() for v in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    flat = np.stack([x, y, 0 * x], -1).astype(np.float64)
    corner = np.arange(side * side).reshape(side, side)[:-1, :-1].ravel()
    faces = np.concatenate([np.stack([corner, corner + side, corner + 1], -1), np.stack([corner + 1, corner + side, corner + side + 1], -1)])
    before = np.stack([flat, flat])
    after = before + np.array([[[0.7, 0.2, 0.0]], [[0.7, 0.2, 0.05]]])
    both = np.arange(2)
    assert smoothing.across(before, after, faces, both[:1]) == pytest.approx(0, abs=1e-12)
    assert smoothing.across(before, after, faces, both) == pytest.approx(0.05 / 2**0.5)
    few = before.copy()
    few[:, :4, 2] += 5.0  # a twentieth of the vertices: a hand
    assert smoothing.across(before, few, faces, both) > 1
    stray = np.concatenate([before, np.full((2, 20, 3), 9.0)], 1), np.concatenate([before, np.full((2, 20, 3), 1.0)], 1)
    assert smoothing.across(*stray, faces, both) == 0  # vertices of no face
    assert smoothing.across(before, after, faces[:0], both) == smoothing.across(before, after, faces, both[:0]) == 0
