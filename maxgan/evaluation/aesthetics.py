"""Loss and scores of predicted score distributions (NIMA, arXiv 1709.05424)."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from maxgan.models.aesthetics import mean_score


def earth_movers_distance(predicted: Tensor, target: Tensor, r: float = 2.0) -> Tensor:
    """Return ((1/K) sum over k of |CDF_p(k) - CDF_t(k)|^r)^(1/r) for every image, `(N,)`, in [0, 1].

    NIMA, equation 1: the normalised distance between distributions over ordered scores. Differentiable, with gradient 0
    where the two are equal.

    Args:
        predicted: `(N, K)`, each row a distribution over the scores 1 to K.
        target: the same of the true scores.
        r: 2 to train, 1 to report, as the paper does.

    Raises:
        ValueError: if the shapes differ or r is below 1.
    """
    if predicted.ndim != 2 or predicted.shape != target.shape:
        raise ValueError(f"distributions must both be (N, K), not {tuple(predicted.shape)} and {tuple(target.shape)}")
    if r < 1:
        raise ValueError(f"r of the earth mover's distance must be at least 1, not {r}")
    # Shares of ten scores are sums of many small numbers, and bfloat16 would lose them.
    dtype = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
    difference = (predicted.to(dtype) - target.to(dtype)).cumsum(1)
    return torch.linalg.vector_norm(difference, r, dim=1) / predicted.shape[1] ** (1 / r)


def emd_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the batch of the earth mover's distance with r = 2: the loss of the paper.

    Args:
        predicted, target: `(N, K)`, see `earth_movers_distance`.
    """
    return earth_movers_distance(predicted, target).mean()


def aesthetics_scores(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Return how well predicted score distributions follow the true ones, over a whole test set.

    Args:
        predicted, target: `(N, K)`, N at least 2, see `earth_movers_distance`.

    Returns:
        `plcc` and `srcc`: Pearson's and Spearman's correlation of the mean scores, in [-1, 1]; `emd`: mean earth
        mover's distance with r = 1, in [0, 1].

    Raises:
        ValueError: for fewer than 2 images, values that are not finite, and mean scores that are all equal, which
            correlate with nothing.
    """
    emd = earth_movers_distance(predicted, target, 1.0).double().mean().item()
    means = [mean_score(x.detach().cpu().double()).numpy() for x in (predicted, target)]
    for name, mean in zip(("predicted", "true"), means, strict=True):
        if len(mean) < 2 or not torch.isfinite(torch.from_numpy(mean)).all() or mean.min() == mean.max():
            raise ValueError(
                f"the {name} mean scores have no correlation: it takes at least 2 images with finite, different scores"
            )
    return {"plcc": float(stats.pearsonr(*means)[0]), "srcc": float(stats.spearmanr(*means)[0]), "emd": emd}
