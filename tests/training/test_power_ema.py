"""Power-function averages against their definition, weights of single updates, and integrals done by sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maxgan.training.power_ema import WIDEST, coefficients, exponent, mismatch, power_decay

BATCH, UPDATES = 20, 1000
SNAPSHOTS = [(width, seen) for seen in range(1000, 20_001, 1000) for width in (0.05, 0.10)]


def weights_of(sigma_rel: float, seen: int) -> np.ndarray:
    """The weight of every update in the average at `seen` images, by running it on the unit vectors."""
    weights = np.zeros(UPDATES)
    for update in range(seen // BATCH):
        decay = power_decay((update + 1) * BATCH, BATCH, sigma_rel)
        weights *= decay
        weights[update] = 1 - decay
    return weights


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.72), (WIDEST, 0.0)])
def test_the_exponent_has_the_width_that_is_asked_for(sigma_rel: float, gamma: float) -> None:
    # The paper's own are 16.97 and 6.94.
    found = exponent(sigma_rel)
    assert found == pytest.approx(gamma, abs=5e-3)
    t = (np.arange(100_000) + 0.5) / 100_000
    p = t**found / (t**found).sum()
    assert math.sqrt((p * t**2).sum() - (p * t).sum() ** 2) == pytest.approx(sigma_rel, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3])
def test_widths_that_no_profile_has_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=rf"above 0 and at most 0\.2887, not {sigma_rel}"):
        exponent(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.25])
def test_an_update_weighs_what_the_profile_gives_it(sigma_rel: float) -> None:
    weights = np.zeros(200)
    for update in range(200):
        decay = power_decay((update + 1) * BATCH, BATCH, sigma_rel)
        weights *= decay
        weights[update] = 1 - decay
    edges = (np.arange(201) / 200) ** (exponent(sigma_rel) + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-9, atol=1e-15)


def test_the_factors_are_those_of_least_squares_done_by_sums() -> None:
    snapshots = [(0.05, 4000), (0.10, 8000), (0.05, 12_000), (0.10, 16_000)]
    t = (np.arange(200_000) + 0.5) / 10

    def profile(width: float, seen: int) -> np.ndarray:
        gamma = exponent(width)
        return np.where(t < seen, (gamma + 1) * t**gamma / float(seen) ** (gamma + 1), 0.0)

    columns = np.stack([profile(*snapshot) for snapshot in snapshots], 1)
    for target in ((0.07, 16_000), (0.2, 15_000), (0.03, 9000)):
        # Without the condition that they sum to 1: the last is what the others leave.
        others = columns[:, :3] - columns[:, 3:]
        free, *_ = np.linalg.lstsq(others, profile(*target) - columns[:, 3], rcond=None)
        expected = np.append(free, 1 - free.sum())
        found = coefficients(snapshots, target)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
        distance = np.linalg.norm(columns @ expected - profile(*target)) / np.linalg.norm(profile(*target))
        assert mismatch(snapshots, found, target) == pytest.approx(distance, rel=1e-3, abs=1e-6)


def test_a_snapshot_is_made_of_itself() -> None:
    found = coefficients(SNAPSHOTS, SNAPSHOTS[25])
    np.testing.assert_allclose(found, np.arange(len(SNAPSHOTS)) == 25, atol=1e-5)
    assert mismatch(SNAPSHOTS, found, SNAPSHOTS[25]) < 1e-5


def averages(course: np.ndarray, sigma_rel: float) -> np.ndarray:
    """The average after every update."""
    average, found = np.zeros_like(course[0]), np.empty_like(course)
    for update, weights in enumerate(course):
        decay = power_decay((update + 1) * BATCH, BATCH, sigma_rel)
        average = found[update] = decay * average + (1 - decay) * weights
    return found


def test_reconstructions_are_the_averages_that_would_have_been_made() -> None:
    """On weights that move as in a training: a drift with noise, far from zero, in 50 dimensions."""
    noise = np.random.default_rng(0).standard_normal((UPDATES, 50))
    course = 5 + np.cumsum(noise, 0) / 30 + 3 * np.linspace(0, 1, UPDATES)[:, None] ** 0.5
    kept = {width: averages(course, width) for width in (0.05, 0.10)}
    saved = np.stack([kept[width][seen // BATCH - 1] for width, seen in SNAPSHOTS])
    for width, seen in ((0.06, 20_000), (0.15, 20_000), (0.25, 20_000), (0.10, 14_500), (0.03, 20_000)):
        factors = coefficients(SNAPSHOTS, (width, seen))
        assert factors.sum() == pytest.approx(1, abs=1e-9)
        direct = averages(course, width)[seen // BATCH - 1]
        # Beside the noise that averaging takes away.
        scale = np.linalg.norm(course[seen // BATCH - 1] - direct)
        assert np.linalg.norm(factors @ saved - direct) < 0.03 * scale, (width, seen)


def test_what_no_snapshot_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="no average at 2000 images can be made of snapshots up to 1000"):
        coefficients([(0.05, 1000)], (0.05, 2000))
    with pytest.raises(ValueError, match="snapshots up to 0"):
        coefficients([], (0.05, 2000))
