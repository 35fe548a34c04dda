"""Cholesky factorisation of symmetric matrices of 6 x 6 blocks whose pattern stays while their values change.

The pattern is analysed once: minimum-degree order, elimination tree, supernodes (columns with nearly the same rows are eliminated together),
and where every front lies in memory. A factorisation is then one pass of compiled loops (numba) over the fronts, multifrontal (Duff and Reid
1983), subtrees side by side. The sum of every entry runs in the same order whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 6  # unknowns of a node
SLACK = 0.05  # share of zeros at which columns are still eliminated together: fewer, larger fronts
SMALL = 4  # columns at which twice as many zeros are taken


@dataclass
class _Front:
    """Columns eliminated together and the rows below them, as nodes."""

    columns: list[int]
    below: set[int]
    children: list[_Front]


@dataclass(frozen=True)
class BlockCholesky:
    """What is fixed while the pattern is: see `analyse`.

    Attributes:
        nodes: rows of all fronts, one after the other, columns first, i64 [R]; row_start: where each front's begin, i64 [F + 1].
        width: columns of each front, i64 [F].
        block, place, flipped: for each front's own entries the block, its row and column in the front as one number, and whether it is to be
            transposed; block_start: where each front's begin.
        children, child_start: fronts that are added to each front; within: rows of the parent that a front's rows below its columns are, i64, `within_start`.
        factor_start, front_start, update_start: where factor, front and what it leaves behind lie in their buffers.
        tasks: fronts that can be eliminated side by side, each in order; rest: those after them.
        sizes: lengths of the buffers of factors and fronts.
    """

    nodes: np.ndarray
    row_start: np.ndarray
    width: np.ndarray
    block: np.ndarray
    place: np.ndarray
    flipped: np.ndarray
    block_start: np.ndarray
    children: np.ndarray
    child_start: np.ndarray
    within: np.ndarray
    within_start: np.ndarray
    factor_start: np.ndarray
    front_start: np.ndarray
    update_start: np.ndarray
    tasks: list[np.ndarray]
    rest: np.ndarray
    sizes: tuple[int, int]

    @staticmethod
    def analyse(m: int, blocks: np.ndarray, threads: int) -> BlockCholesky:
        """The plan for matrices of m x m blocks.

        Args:
            blocks: pairs a <= b of nodes whose block may be non-zero, every (a, a) among them, i64 [U, 2].
            threads: how many subtrees are worth being eliminated side by side.
        """
        order = _minimum_degree(m, blocks)
        rank = np.empty(m, np.int64)
        rank[order] = np.arange(m)
        fronts = _postordered(_merged(_eliminate(m, rank, order, blocks)))
        return _laid_out(m, blocks, rank, fronts, threads)

    def solve(self, values: np.ndarray, right: np.ndarray) -> np.ndarray | None:
        """Solution [M, 6] for upper blocks [U, 6, 6] and right-hand sides [M, 6], f64; None where the matrix is not positive definite."""
        from instant_nk.fitting import block_cholesky_loops as loops
        from instant_nk.kernels._threads import each

        factor, work = np.empty(self.sizes[0]), np.empty(self.sizes[1])
        plan = (
            self.nodes, self.row_start, self.width, self.block, self.place, self.flipped, self.block_start, self.children, self.child_start,
            self.within, self.within_start, self.factor_start, self.front_start, self.update_start,
        )  # fmt: skip
        good = np.ones(len(self.tasks) + 1, bool)

        def eliminate(which: int, fronts: np.ndarray) -> None:
            good[which] = loops.eliminate(fronts, *plan, np.ascontiguousarray(values), factor, work)

        each([lambda i=i, fronts=fronts: eliminate(i, fronts) for i, fronts in enumerate(self.tasks)])
        if good.all():
            eliminate(len(self.tasks), self.rest)
        if not good.all():
            return None
        solution = np.array(right, np.float64)
        loops.substitute(self.nodes, self.row_start, self.width, self.factor_start, factor, solution)
        return solution


def _minimum_degree(m: int, blocks: np.ndarray) -> np.ndarray:
    """Nodes in an order of elimination that fills in little, i64 [M]."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    off = blocks[blocks[:, 0] != blocks[:, 1]]
    value = np.concatenate([np.full(2 * len(off), -1.0), np.full(m, float(m + 1))])
    row, column = (np.concatenate([off[:, side], off[:, 1 - side], np.arange(m)]) for side in (0, 1))
    full = sparse.coo_matrix((value, (row, column)), shape=(m, m)).tocsc()
    found = splu(full, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return np.argsort(found.perm_c, kind="stable")


def _eliminate(m: int, rank: np.ndarray, order: np.ndarray, blocks: np.ndarray) -> list[_Front]:
    """One front per column, children before parents; nodes are told by their rank."""
    pair = np.sort(rank[blocks], axis=1)
    pair = pair[pair[:, 0] != pair[:, 1]]
    pair = pair[np.argsort(pair[:, 0], kind="stable")]
    start = np.searchsorted(pair[:, 0], np.arange(m + 1))
    later = pair[:, 1].tolist()
    fronts = [_Front([j], set(later[start[j] : start[j + 1]]), []) for j in range(m)]
    for j, front in enumerate(fronts):
        for child in front.children:
            front.below |= child.below
        front.below.discard(j)
        if front.below:
            fronts[min(front.below)].children.append(front)
    return fronts


def _merged(fronts: list[_Front]) -> list[_Front]:
    """The roots of the tree after columns with nearly the same rows were joined."""
    for front in fronts:  # children come first, so that theirs is done
        kept = []
        for child in sorted(front.children, key=lambda c: (-len(c.below), c.columns)):
            whole = len(front.columns) + len(front.below)
            zeros = len(child.columns) * (whole - len(child.below))
            size = (len(child.columns) + whole) * (len(child.columns) + len(front.columns))
            slack = 2 * SLACK if len(child.columns) + len(front.columns) <= SMALL else SLACK
            if zeros <= slack * size and zeros <= len(child.columns) * max(2, 0.5 * len(child.below)):
                front.columns = child.columns + front.columns
                kept += child.children
            else:
                kept.append(child)
        front.children = kept
    inner = {id(child) for front in fronts for child in front.children}
    gone = set()
    for front in fronts:
        if len(front.columns) > 1:
            gone.update(front.columns[:-1])
    return [front for j, front in enumerate(fronts) if j not in gone and id(front) not in inner]


def _postordered(roots: list[_Front]) -> list[_Front]:
    """All fronts, each right behind its subtree."""
    result, waiting = [], list(reversed(roots))
    while waiting:
        front = waiting.pop()
        result.append(front)
        waiting += front.children
    return result[::-1]


def _laid_out(m: int, blocks: np.ndarray, rank: np.ndarray, fronts: list[_Front], threads: int) -> BlockCholesky:
    order = np.argsort(rank, kind="stable")
    number = {id(front): i for i, front in enumerate(fronts)}
    place = np.empty(m, np.int64)  # position of each rank in the final order
    columns = np.concatenate([front.columns for front in fronts])
    place[columns] = np.arange(m)
    width = np.array([len(front.columns) for front in fronts])
    count = width + [len(front.below) for front in fronts]
    owner = np.empty(m, np.int64)
    owner[columns] = np.repeat(np.arange(len(fronts)), width)
    of_row, row_start = np.repeat(np.arange(len(fronts)), count), np.concatenate([[0], np.cumsum(count)])
    rows = np.sort(of_row * m + place[[rank for front in fronts for part in (front.columns, front.below) for rank in part]])  # front and place as one number
    block_of = _own_blocks(rank, place, owner, blocks, rows, row_start)
    parent = np.full(len(fronts), -1)
    children = [sorted(number[id(child)] for child in front.children) for front in fronts]
    for i, group in enumerate(children):
        parent[group] = i
    passed = (np.arange(len(rows)) - row_start[of_row] >= width[of_row]) & (parent[of_row] >= 0)
    within = _rows_of(parent[of_row[passed]], rows[passed] % m, rows, row_start, m)
    within_start = np.concatenate([[0], np.cumsum(np.bincount(of_row[passed], minlength=len(fronts)))])
    child_start = np.zeros(len(fronts) + 1, np.int64)
    np.cumsum([len(c) for c in children], out=child_start[1:])
    factor_start = np.concatenate([[0], np.cumsum(SIZE * SIZE * count * width)])
    tasks, rest = _shared_out(parent, children, width, count, threads)
    front_start, update_start, room = _stacked([*tasks, rest], children, SIZE * count, SIZE * (count - width))
    return BlockCholesky(
        order[columns[rows % m]], row_start, width, *block_of,
        np.array([c for group in children for c in group], np.int64), child_start, within, within_start,
        factor_start, front_start, update_start, tasks, rest, (int(factor_start[-1]), room),
    )  # fmt: skip


def _rows_of(front: np.ndarray, place: np.ndarray, rows: np.ndarray, row_start: np.ndarray, m: int) -> np.ndarray:
    """Which row of a front stands for a place in the order."""
    return np.searchsorted(rows, front * m + place) - row_start[front]


def _own_blocks(rank, place, owner, blocks, rows, row_start):
    """Block, place in the front and whether it is transposed, of each front's own entries; where each front's begin."""
    first, second = rank[blocks[:, 0]], rank[blocks[:, 1]]
    swap = place[first] > place[second]  # the earlier one is the column
    column, row = np.where(swap, second, first), np.where(swap, first, second)
    by_front = np.argsort(owner[column], kind="stable")
    front = owner[column[by_front]]
    start = np.searchsorted(front, np.arange(len(row_start)))
    row, column = (_rows_of(front, place[x[by_front]], rows, row_start, len(rank)) for x in (row, column))
    at = row * np.diff(row_start)[front] + column
    return by_front, at, ~swap[by_front], start  # a block (a, b) holds rows of a: the lower triangle wants it transposed where a is the column


def _shared_out(parent: np.ndarray, children: list[list[int]], width: np.ndarray, count: np.ndarray, threads: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Subtrees of about equal work for each thread, and the fronts above them."""
    fronts = len(parent)
    work = (width * count**2 - count * width * (width - 1) + width * (width - 1) * (2 * width - 1) // 6).astype(float)  # squares of count to count - width + 1
    below, first = work.copy(), np.arange(fronts)
    for i in range(fronts):
        for child in children[i]:
            below[i] += below[child]
            first[i] = min(first[i], first[child])
    if threads == 1:
        return [], np.arange(fronts)
    ready = [i for i in range(fronts) if parent[i] < 0]
    while True:
        ready.sort(key=lambda i: (-below[i], i))
        if not ready or below[ready[0]] <= 0.6 * below[ready].sum() / threads or not children[ready[0]]:
            break
        ready = children[ready[0]] + ready[1:]
    shares, load = [[] for _ in range(threads)], np.zeros(threads)
    for i in ready:
        least = int(load.argmin())
        shares[least].append(i)
        load[least] += below[i]
    tasks = [np.concatenate([np.arange(first[i], i + 1) for i in sorted(share)]) for share in shares if share]
    inside = np.zeros(fronts, bool)
    for task in tasks:
        inside[task] = True
    return tasks, np.flatnonzero(~inside)


def _stacked(groups: list[np.ndarray], children: list[list[int]], size: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Where fronts and what they leave behind lie: a stack per group, in which a front's remains take the place of its children's."""
    front_start, update_start, base = np.zeros(len(size), np.int64), np.zeros(len(size), np.int64), 0
    for group in groups:
        mine, top, peak = set(group.tolist()), base, base
        for i in group.tolist():
            front_start[i] = top
            peak = max(peak, top + int(size[i]) ** 2)
            held = [update_start[c] for c in children[i] if c in mine]
            update_start[i] = min(held) if held else top
            top = int(update_start[i]) + int(below[i]) ** 2
        base = peak
    return front_start, update_start, base
