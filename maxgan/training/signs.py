"""Signs that a GAN's training collapses, told from the logged means alone."""

from __future__ import annotations

from collections import deque
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.config import GanWatchdogConfig

ACCURACY, VARIETY, LOSS = "discriminator_accuracy", "variety", "loss_generator"
WINS, FALLS = "discriminator_wins", "variety_falls"
# Side of the images that variety is measured on, the most images of a batch, and the growth, as a share, that tells a
# trend from the noise of a mean over a window.
VARIETY_SIDE, VARIETY_IMAGES, GROWTH = 16, 64, 0.05


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return how often D gives a real a higher logit than a fake, over all pairs of logits `(N,)`; 0.5 is chance.

    This is the area under the ROC curve, in which equal logits count half, and has the same meaning for losses that
    give the sign of a logit none.
    """
    real_logits = real_logits[:, None]
    return ((real_logits > fake_logits).float() + (real_logits >= fake_logits).float()).mean() / 2


@torch.no_grad()
def variety(real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean distance of a fake to its nearest neighbour in the batch, divided by that of the reals.

    About 1 for samples as various as the data, 0 when all are alike or few kinds repeat; blur lowers it.

    Args:
        real, fake: images `(N, C, H, W)`; with one image each, 1 is returned.
    """
    if len(real) < 2:
        return torch.ones((), device=real.device)
    return _nearest(fake) / _nearest(real).clamp(min=1e-6)


def _nearest(images: Tensor) -> Tensor:
    images = images.detach()[:VARIETY_IMAGES].float()
    factor = images.shape[-1] // VARIETY_SIDE
    points = (F.avg_pool2d(images, factor) if factor > 1 else images).flatten(1)
    # Not by a matrix product: that loses small distances, the very ones that matter here.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    return distances.amin(1).mean()


class Signs:
    """Watches the lines of metrics.jsonl for what often comes before a collapse.

    - `discriminator_wins`: over the last window the accuracy of D is at least `config.accuracy` on average, and the
      loss of G is above that of the window before by a twentieth or more.
    - `variety_falls`: the variety of the last window is below `config.variety` times the highest of any window.

    Args:
        config: the thresholds and the window.
        lines: logged lines of one window.

    Attributes:
        present: the signs there are by name, each with a sentence.
    """

    def __init__(self, config: GanWatchdogConfig, lines: int) -> None:
        self.config = config
        self.lines = lines
        self.present: dict[str, str] = {}
        self._seen: deque[dict[str, float]] = deque(maxlen=2 * lines)
        self._highest = 0.0

    def flags(self) -> dict[str, float]:
        """Return 1 for each sign there is, and 0 for the others."""
        return {name: float(name in self.present) for name in (WINS, FALLS)}

    def observe(self, line: dict[str, float]) -> list[str]:
        """Take the next line of metrics, in order; return a sentence for each sign that has appeared with it."""
        if VARIETY not in line:  # a line of scores
            return []
        self._seen.append(line)
        before, self.present = self.present, self._look()
        return [sentence for name, sentence in self.present.items() if name not in before]

    def _look(self) -> dict[str, str]:
        lines = list(self._seen)
        before, last = lines[: -self.lines], lines[-self.lines :]
        found: dict[str, str] = {}
        if len(last) < self.lines:
            return found
        now = _mean(last, VARIETY)
        self._highest = max(self._highest, now)
        if now < self.config.variety * self._highest:
            found[FALLS] = (
                f"the variety of samples is {now:.3f} of the data's and was {self._highest:.3f}: G may be collapsing"
            )
        won = _mean(last, ACCURACY)
        if len(before) == self.lines and won >= self.config.accuracy:
            old, new = _mean(before, LOSS), _mean(last, LOSS)
            if new - old > GROWTH * abs(old):  # hinge's may be negative
                found[WINS] = (
                    f"D tells {won:.1%} of the pairs apart, and the loss of G has grown from {old:.3f} to {new:.3f}: D "
                    "wins; raise loss.r1_gamma or lower optim.discriminator_lr"
                )
        return found


def _mean(lines: list[dict[str, float]], name: str) -> float:
    return fmean(line[name] for line in lines)
