from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from maxgan.evaluation.aesthetics import aesthetics_scores, earth_movers_distance, emd_loss


def shares(n: int, seed: int, sharpness: float = 1.0) -> Tensor:
    return (torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)).double() * sharpness).softmax(1)


@pytest.mark.parametrize("r", [1.0, 2.0, 3.0])
def test_distance_equals_the_formula_term_by_term(r: float) -> None:
    p, t = shares(5, 0), shares(5, 1)
    for i, value in enumerate(earth_movers_distance(p, t, r).tolist()):
        terms = [abs(sum(p[i, : k + 1].tolist()) - sum(t[i, : k + 1].tolist())) ** r for k in range(10)]
        assert value == pytest.approx((sum(terms) / 10) ** (1 / r))
    assert emd_loss(p, t).item() == pytest.approx(earth_movers_distance(p, t, 2.0).mean().item())


def test_r_1_is_the_wasserstein_distance_of_the_scores() -> None:
    from scipy.stats import wasserstein_distance

    p, t = shares(4, 2), shares(4, 3)
    k = np.arange(1, 11)
    truth = [wasserstein_distance(k, k, a, b) / 10 for a, b in zip(p.numpy(), t.numpy(), strict=True)]
    np.testing.assert_allclose(earth_movers_distance(p, t, 1.0).numpy(), truth, rtol=1e-12)


def test_all_votes_moved_from_the_worst_to_the_best_score() -> None:
    ends = torch.eye(10)[[0, 9]]
    assert earth_movers_distance(ends, ends.flip(0)).tolist() == pytest.approx([math.sqrt(0.9)] * 2)
    assert earth_movers_distance(ends, ends.flip(0), 1.0).tolist() == pytest.approx([0.9] * 2)
    # Order counts: one step off is nearer than nine, unlike for cross-entropy.
    assert earth_movers_distance(ends[:1], torch.eye(10)[1:2]).item() == pytest.approx(math.sqrt(0.1))


def test_gradient_equals_finite_differences_and_is_zero_at_the_target() -> None:
    p, t = shares(3, 4).requires_grad_(), shares(3, 5)
    assert torch.autograd.gradcheck(lambda x: earth_movers_distance(x, t), p)
    same = t.clone().requires_grad_()
    emd_loss(same, t).backward()
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros_like(same))


def test_half_precision_is_summed_in_float32() -> None:
    p, t = shares(64, 6).bfloat16(), shares(64, 7)
    loss = emd_loss(p, t.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(emd_loss(p.double(), t).item(), rel=1e-6)


def test_correlations_equal_their_definitions() -> None:
    p, t = shares(50, 8, 3), shares(50, 8, 3) * 0.5 + shares(50, 9, 3) * 0.5
    scores = aesthetics_scores(p, t)
    x, y = ([sum((k + 1) * row[k] for k in range(10)) for row in d.tolist()] for d in (p, t))

    def pearson(a: list[float], b: list[float]) -> float:
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        covariance = sum((i - mean_a) * (j - mean_b) for i, j in zip(a, b, strict=True))
        return covariance / math.sqrt(sum((i - mean_a) ** 2 for i in a) * sum((j - mean_b) ** 2 for j in b))

    def ranks(a: list[float]) -> list[float]:
        return [float(sum(j < i for j in a)) for i in a]

    assert scores["plcc"] == pytest.approx(pearson(x, y))
    assert scores["srcc"] == pytest.approx(pearson(ranks(x), ranks(y)))
    assert scores["emd"] == pytest.approx(earth_movers_distance(p, t, 1.0).mean().item())
    assert 0.2 < scores["srcc"] < 0.95
    assert abs(scores["plcc"] - scores["srcc"]) > 1e-3


def test_what_has_no_score_is_refused() -> None:
    p = shares(4, 0)
    with pytest.raises(ValueError, match=r"distributions must both be \(N, K\), not \(4, 10\) and \(4, 9\)"):
        earth_movers_distance(p, p[:, :9])
    with pytest.raises(ValueError, match=r"not \(10,\) and \(10,\)"):
        earth_movers_distance(p[0], p[0])
    with pytest.raises(ValueError, match=r"must be at least 1, not 0\.5"):
        earth_movers_distance(p, p, 0.5)
    with pytest.raises(ValueError, match="the predicted mean scores have no correlation"):
        aesthetics_scores(p[:1].expand(4, 10), p)
    with pytest.raises(ValueError, match="the true mean scores have no correlation"):
        aesthetics_scores(p, p.clone().index_fill_(0, torch.tensor([2]), float("nan")))
    with pytest.raises(ValueError, match="at least 2 images"):
        aesthetics_scores(p[:1], p[:1])
