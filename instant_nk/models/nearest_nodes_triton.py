"""Nearest nodes of every vertex along the surface, as a Triton kernel. `geodesic_loops.nearest` finds the same on the CPU, but for nodes that only rounding
makes equally far.

Each vertex keeps the nearest nodes it knows of. In a round all look at those of the vertices they are linked with, and take over what is nearer that
way; a node that is not among a vertex's nearest is not among those of any vertex behind it either. Rounds go on until nothing changes.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from instant_nk.kernels import _backend
from instant_nk.kernels._triton_memory import launched
from instant_nk.kernels._upload import upload

VERTICES = 32  # of a program
TOGETHER = 12  # rounds before the host asks whether the last one changed anything
NOBODY = 1 << 30  # from here on, names of places that are still free
MEMORY = 1 << 30  # bytes that the search may take: beyond, the CPU is to be asked


@launched(do_not_specialize=["vertices"])
def _look_around(
    start, links, lengths, distance, name, new_distance, new_name, changed, vertices, limit,
    COUNT: tl.constexpr, ROOM: tl.constexpr, VERTICES: tl.constexpr,
):  # fmt: skip
    """One round for some vertices of one level (grid axis 1): `distance` f64 and `name` i32 are [level, V, ROOM], of which the first COUNT are used."""
    level = tl.program_id(1).to(tl.int64) * vertices * ROOM
    v = tl.program_id(0) * VERTICES + tl.arange(0, VERTICES)
    live, slot = v < vertices, tl.arange(0, ROOM)[None]
    at, used = level + v[:, None] * ROOM + slot, live[:, None] & (slot < COUNT)
    most = tl.load(limit)
    far = tl.load(distance + at, mask=used, other=-1.0)  # what is not used is nearer than anything, and has no name
    who = tl.load(name + at, mask=used, other=-1)
    old, old_who = far, who
    begin, end = tl.load(start + v, mask=live, other=0), tl.load(start + v + 1, mask=live, other=0)
    for i in range(tl.max(end - begin, 0)):
        linked = begin + i < end
        there = level + tl.load(links + begin + i, mask=linked, other=0).to(tl.int64) * ROOM
        length = tl.load(lengths + begin + i, mask=linked, other=0.0)
        for k in tl.static_range(COUNT):
            d = tl.load(distance + there + k, mask=linked, other=float("inf")) + length
            n = tl.load(name + there + k, mask=linked, other=0)
            same = who == n[:, None]
            known = tl.max(same.to(tl.int32), 1) == 1
            worst = tl.max(far, 1)
            last = tl.max(tl.where(far == worst[:, None], who, -1), 1)
            nearer = (d <= most) & ((d < worst) | ((d == worst) & (n < last)))
            place = tl.where(known[:, None], same & (d[:, None] < far), (who == last[:, None]) & nearer[:, None])
            far = tl.where(place, d[:, None], far)
            who = tl.where(place, n[:, None], who)
    tl.store(new_distance + at, far, mask=used)
    tl.store(new_name + at, who, mask=used)
    differs = tl.max(tl.max((used & ((far != old) | (who != old_who))).to(tl.int32), 1), 0)
    tl.store(changed, 1, mask=differs > 0)


def fits(vertices: int, levels: int, count: int) -> bool:
    """Whether a search of `count` nodes on so many levels stays within MEMORY: two tables, and one that is sorted."""
    return vertices * levels * triton.next_power_of_2(count) * 48 <= MEMORY


def nearest(
    start: np.ndarray, links: np.ndarray, lengths: np.ndarray, nodes: np.ndarray, limit: float, count: int, prefixes: list[int], device: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """What `geodesic_loops.nearest` finds, with the same arguments but for where nodes lie; `device` is a GPU, or the CPU under Triton's interpreter."""
    vertices, room = len(start) - 1, triton.next_power_of_2(count)
    levels = [*prefixes, len(nodes)]
    rows = [x.astype(np.int32) for x in (start, links)]
    beginning, neighbour, length, place = upload([*rows, lengths, np.asarray(nodes, np.int64)], device)
    distance = torch.full((len(levels), vertices, room), torch.inf, dtype=torch.float64, device=device)
    name = (NOBODY + torch.arange(room, dtype=torch.int32, device=device)).expand(len(levels), vertices, room).contiguous()
    for level, size in enumerate(levels):
        distance[level, place[:size], 0] = 0.0
        name[level, place[:size], 0] = torch.arange(size, dtype=torch.int32, device=device)
    other = torch.empty_like(distance), torch.empty_like(name)
    most = torch.full((), limit, dtype=torch.float64, device=device)
    grid = triton.cdiv(vertices, VERTICES), len(levels)
    with _backend.on(distance):
        while True:
            changed = torch.zeros(TOGETHER, 4, dtype=torch.int32, device=device)  # 16 bytes apart: one compilation serves all
            for i in range(TOGETHER):
                _look_around[grid](beginning, neighbour, length, distance, name, *other, changed[i], vertices, most, COUNT=count, ROOM=room, VERTICES=VERTICES)
                (distance, name), other = other, (distance, name)
            if not int(changed[-1, 0]):
                break
    name, order = name[..., :count].sort(dim=-1)
    order = distance[..., :count].gather(-1, order).sort(dim=-1, stable=True).indices  # of equals the lower number comes first
    found = name.gather(-1, order)
    found = torch.where(found < NOBODY, found, -1)
    whole = found[-1].cpu().numpy().astype(np.int64)
    early = [found[level, place[:size]].cpu().numpy().astype(np.int64) for level, size in enumerate(prefixes)]
    return whole, early
