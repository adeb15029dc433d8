"""Precision, recall, density, coverage and nearest neighbours against loops from the formulas and torch-fidelity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from maxgan.evaluation import neighbours
from maxgan.evaluation.neighbours import nearest, nearest_distances, neighbour_scores


def sample(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) / math.sqrt(dim) + shift


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    found = neighbour_scores(real, fake, precision_k=k, density_k=None)
    assert list(found) == ["precision", "recall"]
    return found["precision"], found["recall"]


def naive_precision_recall(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        inside = 0
        for point in points:
            for i, centre in enumerate(centres):
                others = sorted(math.dist(centre, other) for j, other in enumerate(centres) if j != i)
                if math.dist(point, centre) <= others[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    return share(fake, real), share(real, fake)


@pytest.fixture(params=[neighbours.BLOCK_DISTANCES, 100])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_DISTANCES", request.param)
    monkeypatch.setattr(neighbours, "BLOCK_REFERENCES", request.param // 5)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_equals_the_definition_and_torch_fidelity(k: int) -> None:
    real, fake = sample(40, 6, 0), sample(30, 6, 0, 0.4) * 0.8
    found = precision_recall(real, fake, k)
    assert found == naive_precision_recall(real, fake, k)
    assert 0 < found[0] < 1
    assert 0 < found[1] < 1
    options = {"prc_neighborhood": k, "prc_batch_size": 100, "verbose": False}
    expected = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **options)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)


@pytest.mark.usefixtures("block")
def test_copies_are_inside_balls_of_radius_zero() -> None:
    point, other = sample(2, 50, 0, shift=100.0).astype(np.float32)
    real = np.stack([point] * 10 + [other] * 10)
    assert precision_recall(real, np.stack([point] * 7)) == (1, 0.5)
    assert precision_recall(real, np.stack([point + 1] * 7)) == (0, 0)
    x = sample(41, 50, 1, shift=100.0).astype(np.float32)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(np.tile(x, (4, 1)), x[:7])[0] == 1


@pytest.mark.usefixtures("block")
def test_nearest_distances_equal_the_definition_and_copies_have_distance_zero() -> None:
    references, queries = sample(60, 5, 0, 50.0), sample(35, 5, 1, 50.0)
    queries[4] = references[17]
    queries[5] = references[17] + 1e-9
    expected = [min(math.dist(query, reference) for reference in references) for query in queries]
    found = nearest_distances(queries, references)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[4] == 0
    assert found[5] > 0
    assert nearest_distances(queries[:0], references).shape == (0,)


def naive_density_coverage(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    balls, covered = 0, 0
    for i, centre in enumerate(real):
        others = sorted(math.dist(centre, other) for j, other in enumerate(real) if j != i)
        inside = sum(math.dist(point, centre) <= others[k - 1] for point in fake)
        balls += inside
        covered += inside > 0
    return balls / (k * len(fake)), covered / len(real)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_equal_the_definition(k: int) -> None:
    real, fake = sample(40, 6, 0), sample(30, 6, 0, 0.2) * 0.8
    found = neighbour_scores(real, fake, precision_k=None, density_k=k)
    assert list(found) == ["density", "coverage"]
    assert (found["density"], found["coverage"]) == pytest.approx(naive_density_coverage(real, fake, k), rel=1e-14)
    assert found["density"] > 0
    assert 0 < found["coverage"] < 1
    both = neighbour_scores(real, fake, precision_k=3, density_k=k)
    assert both == found | neighbour_scores(real, fake, 3, None)


def test_copies_on_the_border_of_a_ball_are_inside() -> None:
    real = sample(300, 20, 0, 5.0)
    # Every ball holds its centre and its k neighbours.
    assert neighbour_scores(real, real, 3, 4) == {
        "precision": 1.0,
        "recall": 1.0,
        "density": pytest.approx(5 / 4, rel=1e-14),
        "coverage": 1.0,
    }


def test_too_few_images_are_refused() -> None:
    x = sample(10, 4, 0)
    with pytest.raises(ValueError, match=r"precision and recall need .* k is 3, and the set has 3 images"):
        neighbour_scores(x, x[:3], radii=(radii := []))
    assert not radii  # before anything is computed of the reals, which may take minutes
    with pytest.raises(ValueError, match=r"density and coverage need .* k is 5, and the set has 5 images"):
        neighbour_scores(x[:5], x, None)
    with pytest.raises(ValueError, match="at least 1 reference"):
        nearest_distances(x, x[:0])


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("cuts", [[], [2, 2, 20], list(range(1, 30))])
def test_several_nearest_equal_the_definition(cuts: list[int]) -> None:
    references, queries = sample(30, 6, 0), sample(20, 6, 1)
    queries[3] = references[17]
    distances, indices = nearest(queries, np.split(references, cuts), 4)
    for query, found, places in zip(queries, distances.tolist(), indices.tolist(), strict=True):
        by_distance = sorted((math.dist(query, reference), j) for j, reference in enumerate(references))[:4]
        assert found == pytest.approx([distance for distance, _ in by_distance], rel=1e-14)
        assert places == [j for _, j in by_distance]
    with pytest.raises(ValueError, match="31 nearest need at least 31 references, and there are 30"):
        nearest(queries, np.split(references, cuts), 31)
