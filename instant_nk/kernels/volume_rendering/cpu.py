"""Volume rendering as compiled CPU loops (numba), float32; `reference.py` is the definition."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instant_nk.kernels._loop import loop


@loop()
def _weights(alphas, rays, weights, transmittance):
    clear = np.float32(1)
    for i in range(len(alphas)):
        if i == 0 or rays[i] != rays[i - 1]:
            clear = np.float32(1)
        transmittance[i] = clear
        weights[i] = alphas[i] * clear
        clear *= np.float32(1) - alphas[i]


@loop()
def _weights_grad(alphas, transmittance, rays, grad_weights, grad_transmittance, grad_alphas):
    behind = np.float32(0)  # d loss / d (light that passes sample i), per unit of that light
    for i in range(len(alphas) - 1, -1, -1):
        if i == len(alphas) - 1 or rays[i] != rays[i + 1]:
            behind = np.float32(0)
        grad_alphas[i] = transmittance[i] * (grad_weights[i] - behind)
        behind = alphas[i] * grad_weights[i] + grad_transmittance[i] + (np.float32(1) - alphas[i]) * behind


@loop()
def _accumulate(weights, values, rays, sums):
    for i in range(len(weights)):
        for c in range(sums.shape[1]):
            sums[rays[i], c] += weights[i] * values[i, c]


@loop()
def _accumulate_grad(weights, values, rays, grad, grad_weights, grad_values):
    for i in range(len(weights)):
        total = np.float32(0)
        for c in range(grad.shape[1]):
            g = grad[rays[i], c]
            total += g * values[i, c]
            grad_values[i, c] = g * weights[i]
        grad_weights[i] = total


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def render_weights(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """As `reference.render_weights`."""
    weights, transmittance = torch.empty(len(alphas)), torch.empty(len(alphas))
    _weights(_array(alphas), _array(ray_indices), weights.numpy(), transmittance.numpy())
    return weights, transmittance


def render_weights_grad(alphas: Tensor, transmittance: Tensor, ray_indices: Tensor, n_rays: int, grad_weights: Tensor, grad_transmittance: Tensor) -> Tensor:
    """Gradient of the alphas by a reverse scan: T_i (g_i - V_i), V_{i-1} = a_i g_i + h_i + (1 - a_i) V_i; no division, so exact at alpha = 1."""
    grad_alphas = torch.empty(len(alphas))
    _weights_grad(_array(alphas), _array(transmittance), _array(ray_indices), _array(grad_weights), _array(grad_transmittance), grad_alphas.numpy())
    return grad_alphas


def accumulate(weights: Tensor, values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """As `reference.accumulate`."""
    sums = torch.zeros(n_rays, values.shape[1])
    _accumulate(_array(weights), _array(values), _array(ray_indices), sums.numpy())
    return sums


def accumulate_grad(weights: Tensor, values: Tensor, ray_indices: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weights [samples] and values [samples, channels]."""
    grad_weights, grad_values = torch.empty(len(weights)), torch.empty(len(weights), values.shape[1])
    _accumulate_grad(_array(weights), _array(values), _array(ray_indices), _array(grad), grad_weights.numpy(), grad_values.numpy())
    return grad_weights, grad_values
