"""Which found points are which known ones: optimal one-to-one assignment within a radius."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

MATCH_UM = 4.0
"""Farthest that a found nucleus may lie from an annotated one: half the width of a small tumour nucleus."""


def match_points(
    found: NDArray[np.float64], known: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match points one to one: as many pairs as can be, and of all such matchings the one of the shortest distances.

    Kuhn's Hungarian method, for each group of points within reach of one another by itself.

    Parameters
    ----------
    found, known
        ``(N, 2)`` and ``(M, 2)``, x and y in one unit.
    radius
        Farthest that two points of a pair lie apart, in this unit.

    Returns
    -------
    found_indices, known_indices
        ``(P,)`` each, ascending in the first.

    Examples
    --------
    >>> match_points(np.array([[0.0, 0.0], [9.0, 0.0]]), np.array([[1.0, 0.0], [5.0, 5.0]]), 4.0)
    (array([0]), array([0]))
    """
    nothing = np.zeros(0, dtype=np.intp)
    if len(found) == 0 or len(known) == 0:
        return nothing, nothing
    reach = cKDTree(found).sparse_distance_matrix(cKDTree(known), radius, output_type="coo_matrix")
    # Distances of 0 are pairs too, which a sparse matrix would take for none.
    rows, columns = reach.coords
    size = len(found) + len(known)
    graph = type(reach)((np.ones(len(rows)), (rows, len(found) + columns)), shape=(size, size))
    _, groups = connected_components(graph, directed=False)
    pairs = [
        _assigned(found, known, *members, radius)
        for members in _members(groups[: len(found)], groups[len(found) :], np.unique(groups[rows]))
    ]
    if not pairs:
        return nothing, nothing
    first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
    order = np.argsort(first)
    return first[order], second[order]


def _members(
    groups_found: NDArray[np.int32], groups_known: NDArray[np.int32], wanted: NDArray[np.int32]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Indices of the found and the known points of each group."""
    parts = []
    for groups in (groups_found, groups_known):
        order = np.argsort(groups, kind="stable")
        first = np.searchsorted(groups[order], wanted)
        last = np.searchsorted(groups[order], wanted, side="right")
        parts.append([order[start:end] for start, end in zip(first, last, strict=True)])
    return list(zip(*parts, strict=True))


def _assigned(
    found: NDArray[np.float64],
    known: NDArray[np.float64],
    of_found: NDArray[np.intp],
    of_known: NDArray[np.intp],
    radius: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    distance = cdist(found[of_found], known[of_known])
    # Pairs out of reach cost more than any number of pairs within reach, so that they are only left-overs.
    cost = np.where(distance <= radius, distance, radius * 2 * (1 + min(distance.shape)))
    rows, columns = linear_sum_assignment(cost)
    near = distance[rows, columns] <= radius
    return of_found[rows[near]], of_known[columns[near]]
