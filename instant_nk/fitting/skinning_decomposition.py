"""Few rigid parts that explain the motion of many nodes: what a sequence says about each of its frames.

Smooth skinning decomposition with rigid bones (Le and Deng 2012): every node follows a blend of a few bones, `x -> sum_k w_k (R_k x + t_k)`,
with the same weights at all frames. Frames registered one by one wander, each its own way, where nothing holds the surface along itself;
bones that serve all nodes and weights that serve all frames leave most of that out.

A node's rotation counts like its place: each stands for four points, itself and one along either axis of its frame.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from instant_nk.geometry.rotations import project_to_so3

BLENDED = 4  # bones that move one node, as in skinned models
NODES_PER_BONE = 8
ROUNDS = 4  # of weights and bones in turn
SETTLING = 5  # assignments of nodes to whole bones after the last split
EXACT = 1e-12  # of the squared distances from the origin: an error that is rounding
SEED_SHARE = 4  # a new bone starts from the nearest of this part of a bone's nodes


@dataclass(frozen=True)
class Skinning:
    """Bones and how nodes hang on them; f64.

    Attributes:
        weights: [M, K], rows sum to one.
        rotations: [F, K, 3, 3], canonical -> live.
        translations: [F, K, 3].
    """

    weights: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray


def decompose(nodes: np.ndarray, rotations: np.ndarray, translations: np.ndarray, reach: float, bones: int) -> Skinning:
    """Bones and weights that explain the nodes' motion best, in the sense of least squares.

    Args:
        nodes: canonical positions, [M, 3].
        rotations: [F, M, 3, 3]; translations: node-centred, `g -> g + t`, [F, M, 3].
        reach: how far from a node the points lie that its rotation moves.
        bones: at most so many; where there are few nodes, one for every NODES_PER_BONE.
    """
    rest, live = _samples(nodes, rotations, translations, reach)
    sums = _Sums.of(rest, live)
    turn, shift = _whole_bones(sums, nodes, max(1, min(bones, len(nodes) // NODES_PER_BONE)))
    weights = _blend(sums, rest, live, turn, shift)
    for _ in range(ROUNDS):
        turn, shift = _fit_bones(rest, live, weights, turn, shift)
        weights = _blend(sums, rest, live, turn, shift)
    return Skinning(weights, turn.swapaxes(0, 1), shift.swapaxes(0, 1))


def follow(nodes: np.ndarray, rotations: np.ndarray, translations: np.ndarray, reach: float, weights: np.ndarray) -> Skinning:
    """Bones of other frames for weights that are known; arguments as for `decompose`."""
    rest, live = _samples(nodes, rotations, translations, reach)
    turn, shift = _rigid(_Sums.of(rest, live), weights)
    for _ in range(ROUNDS):
        turn, shift = _fit_bones(rest, live, weights, turn, shift)
    return Skinning(weights, turn.swapaxes(0, 1), shift.swapaxes(0, 1))


def _samples(nodes: np.ndarray, rotations: np.ndarray, translations: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Canonical points [M, 4, 3] and where they go [F, M, 4, 3]."""
    arms = np.concatenate([np.zeros((1, 3)), reach * np.eye(3)])
    live = np.einsum("fmij,sj->fmsi", rotations, arms) + (nodes + translations)[:, :, None]
    return nodes[:, None] + arms, live


@dataclass(frozen=True)
class _Sums:
    """Sums over each node's points, from which a rigid motion and its error follow without them.

    Attributes:
        rest: [M, 3]; live: [M, F * 3]; outer: of canonical and live coordinates, [M, 3 * F * 3]; square: of both, over all frames, [M].
    """

    rest: np.ndarray
    live: np.ndarray
    outer: np.ndarray
    square: np.ndarray
    points: int
    frames: int

    @staticmethod
    def of(rest: np.ndarray, live: np.ndarray) -> _Sums:
        frames, m, points = live.shape[:3]
        outer = np.einsum("msi,fmsj->mifj", rest, live).reshape(m, -1)
        square = frames * (rest**2).sum((1, 2)) + (live**2).sum((0, 2, 3))
        return _Sums(rest.sum(1), live.sum(2).swapaxes(0, 1).reshape(m, -1), outer, square, points, frames)


def _rigid(sums: _Sums, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rigid motion of each bone at each frame that carries its nodes best (Kabsch): [K, F, 3, 3] and [K, F, 3]."""
    k, f = weights.shape[1], sums.frames
    total = sums.points * np.maximum(weights.sum(0), 1e-12)
    centre = weights.T @ sums.rest / total[:, None]
    goal = (weights.T @ sums.live / total[:, None]).reshape(k, f, 3)
    outer = (weights.T @ sums.outer).reshape(k, 3, f, 3).swapaxes(1, 2) - total[:, None, None, None] * centre[:, None, :, None] * goal[:, :, None]
    turn = _rotation(outer.swapaxes(-1, -2))
    return turn, goal - np.einsum("kfij,kj->kfi", turn, centre)


def _rotation(matrix: np.ndarray) -> np.ndarray:
    return project_to_so3(torch.from_numpy(matrix)).numpy()


def _errors(sums: _Sums, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Squared distance of each node's points under each bone to where they are, over all frames, [M, K]."""
    k = len(turn)
    back = np.einsum("kfij,kfi->kj", turn, shift)
    along = sums.outer @ turn.transpose(0, 3, 1, 2).reshape(k, -1).T + sums.live @ shift.reshape(k, -1).T
    return sums.square[:, None] + sums.points * (shift**2).sum((1, 2)) + 2 * (sums.rest @ back.T - along)


def _whole_bones(sums: _Sums, nodes: np.ndarray, bones: int) -> tuple[np.ndarray, np.ndarray]:
    """Bones that move whole nodes each: the bone that explains its nodes worst is split until there are enough, then all settle."""
    turn, shift = _rigid(sums, np.ones((len(nodes), 1)))
    for _ in range(bones - 1 + SETTLING):
        error = _errors(sums, turn, shift)
        of, least = error.argmin(1), error.min(1).clip(0)
        shares = np.eye(len(turn))[of]
        if len(turn) < bones and least.sum() > EXACT * sums.square.sum():
            worst = (least @ shares).argmax()
            own = np.flatnonzero(of == worst)
            seed = own[least[own].argmax()]
            near = own[np.linalg.norm(nodes[own] - nodes[seed], axis=1).argsort(kind="stable")[: max(3, len(own) // SEED_SHARE)]]
            shares = np.concatenate([shares, np.isin(np.arange(len(nodes)), near)[:, None]], 1)
            shares[near, worst] = 0
        kept = shares.sum(0) > 0
        turn, shift = _rigid(sums, shares[:, kept])
    return turn, shift


def _blend(sums: _Sums, rest: np.ndarray, live: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Weights of each node on its best bones, none negative, adding up to one, [M, K]: of all subsets of BLENDED bones the best that is allowed."""
    m, k = len(rest), len(turn)
    c = min(BLENDED, k)
    best = _errors(sums, turn, shift).argsort(1, kind="stable")[:, :c]
    away = np.einsum("mcfij,msj->mcfsi", turn[best], rest) + shift[best][:, :, :, None] - live.swapaxes(0, 1)[:, None]
    away = away.reshape(m, c, -1)
    gram = away @ away.swapaxes(1, 2)
    gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(c) / c + 1e-30 * np.eye(c)
    lowest, chosen = np.full(m, np.inf), np.zeros((m, c))
    for size in range(1, c + 1):
        for subset in map(list, itertools.combinations(range(c), size)):
            share = np.linalg.solve(gram[:, subset][:, :, subset], np.ones((m, size, 1)))[..., 0]
            share /= share.sum(1, keepdims=True)
            error = np.einsum("mi,mij,mj->m", share, gram[:, subset][:, :, subset], share)
            better = (share >= 0).all(1) & (error < lowest)
            lowest[better] = error[better]
            chosen[better] = 0
            chosen[np.ix_(better, subset)] = share[better]
    weights = np.zeros((m, k))
    np.put_along_axis(weights, best, chosen, 1)
    return weights


def _fit_bones(rest: np.ndarray, live: np.ndarray, weights: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each bone in turn to what the others leave unexplained (Le and Deng 2012, section 4.2); one that moves fewer than three nodes stays."""
    turn, shift = turn.copy(), shift.copy()

    def moved(bone: int, who: np.ndarray) -> np.ndarray:
        share = weights[who, bone][None, :, None, None]
        return share * (np.einsum("fij,msj->fmsi", turn[bone], rest[who]) + shift[bone][:, None, None])

    left = live.copy()
    users = [np.flatnonzero(weights[:, bone] > 0) for bone in range(len(turn))]
    for bone, who in enumerate(users):
        left[:, who] -= moved(bone, who)
    for bone, who in enumerate(users):
        if len(who) < 3:
            continue
        share = weights[who, bone]
        goal = left[:, who] + moved(bone, who)
        total = rest.shape[1] * (share**2).sum()
        centre = (share[:, None] ** 2 * rest[who].sum(1)).sum(0) / total
        mean = (share[None, :, None] * goal.sum(2)).sum(1) / total
        outer = np.einsum("m,fmsi,msj->fij", share, goal - share[None, :, None, None] * mean[:, None, None], rest[who] - centre)
        turn[bone] = _rotation(outer)
        shift[bone] = mean - turn[bone] @ centre
        left[:, who] = goal - moved(bone, who)
    return turn, shift
