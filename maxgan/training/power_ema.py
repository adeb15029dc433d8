"""Averages with power-function profiles, and any such average from a few snapshots of two (EDM2, arXiv 2312.02696,
section 3 and appendix C)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from maxgan.config.checks import WIDEST

Profile = tuple[float, int]
"""An average: its relative width sigma_rel, and the images seen up to it."""


@cache
def exponent(sigma_rel: float) -> float:
    """Return gamma of the profile proportional to t^gamma whose deviation is sigma_rel of the training so far.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), equation 123 of the paper solved for its root above -1.

    Raises:
        ValueError: unless sigma_rel is above 0 and at most `WIDEST`, 0.2887.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(
            f"the width of a power-function average must be above 0 and at most {WIDEST:.4f}, not {sigma_rel}"
        )
    square = sigma_rel**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return max(0.0, float(roots.real.max()))


def power_decay(images_seen: int, batch_size: int, sigma_rel: float) -> float:
    """Return the weight that a power-function average keeps of its old value at one update: (1 - batch / seen)^(gamma +
    1).

    So after n updates the weights of update k lie in proportion to k^(gamma + 1) - (k - 1)^(gamma + 1): the profile's
    integral over that update, exactly.

    Args:
        images_seen: images seen up to and including this update.
        batch_size: images of one update.
        sigma_rel: width of the profile.
    """
    return float((1 - batch_size / images_seen) ** (exponent(sigma_rel) + 1))


def coefficients(snapshots: Sequence[Profile], target: Profile) -> np.ndarray:
    """Return the factors, in float64, that sum to 1 and with which the snapshots come closest to the target.

    Least squares between profiles as functions of the images seen (appendix C.2), from the inner products of the
    profiles. There the sum is free; here it is held, so that weights that never moved stay what they are, although no
    snapshot knows the time before the first. Solved by singular values, since neighbouring snapshots are nearly alike.

    Raises:
        ValueError: without a snapshot, for a target beyond the last, or for a width out of range.
    """
    last = max((seen for _, seen in snapshots), default=0)
    if not 0 < target[1] <= last:
        raise ValueError(f"no average at {target[1]} images can be made of snapshots up to {last}: name fewer images")
    gram = _gram([*snapshots, target])
    known, right = gram[:-1, :-1], gram[:-1, -1]
    # What is sought are the steps away from one snapshot to all others, in units in which those are of like size: early
    # profiles are tall and narrow, and would drown the late ones.
    steps = np.concatenate([np.eye(len(snapshots) - 1), -np.ones((1, len(snapshots) - 1))])
    steps = steps / np.sqrt(np.diag(steps.T @ known @ steps))
    start = np.eye(len(snapshots))[-1]
    solution = np.linalg.lstsq(steps.T @ known @ steps, steps.T @ (right - known @ start), rcond=1e-12)[0]
    return np.asarray(start + steps @ solution)


def mismatch(snapshots: Sequence[Profile], factors: np.ndarray, target: Profile) -> float:
    """Return the distance between the target's profile and what the factors make, relative to the target's length."""
    gram = _gram([*snapshots, target])
    weights = np.append(factors, -1.0)
    return float(np.sqrt(max(0.0, weights @ gram @ weights) / gram[-1, -1]))


def _gram(profiles: Sequence[Profile]) -> np.ndarray:
    """Return the integrals of the products of all profiles with all, (gamma + 1) t^gamma / end^(gamma + 1) on [0, end].

    Written with ratios of the ends, whose powers stay in the range of float64.
    """
    gamma = np.array([exponent(width) for width, _ in profiles])
    end = np.array([seen for _, seen in profiles], dtype=np.float64)
    least = np.minimum(end[:, None], end)
    part = (least / end) ** gamma / end * (gamma + 1)
    return np.asarray(part * part.T * least / (gamma[:, None] + gamma + 1))
