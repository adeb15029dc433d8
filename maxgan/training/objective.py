"""What the discriminator learns from: its loss, penalties and consistency, in one forward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import LossConfig
from maxgan.training.augment import augment
from maxgan.training.losses import discriminator_loss, finite_difference_penalty, gradient_penalty
from maxgan.training.signs import ACCURACY, accuracy


class DiscriminatorObjective(nn.Module):
    """The discriminator with its loss, as one module: DistributedDataParallel wants one forward for each backward.

    With one penalty alone, reals and fakes pass separately, since the second derivative would else be taken, as zeros,
    through the others too: a third of the time of such an update.

    Args:
        discriminator: images and labels to logits.
        config: of the loss.
        policy: of the augmentation of all that it sees; None for none.
    """

    def __init__(self, discriminator: nn.Module, config: LossConfig, policy: str | None = None) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.config = config
        self.policy = policy

    def forward(
        self,
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        r1_gamma: float,
        r2_gamma: float,
        scale: float,
        changed_real: Tensor | None = None,
        changed_fake: Tensor | None = None,
        real_directions: Tensor | None = None,
        fake_directions: Tensor | None = None,
        real_draws: Tensor | None = None,
        fake_draws: Tensor | None = None,
        probability: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts.

        Args:
            real, fake: images `(N, C, H, W)`.
            labels: `(N,)`, of the reals and of the fakes alike; None without classes.
            r1_gamma, r2_gamma: weights of the penalties; 0 leaves one out.
            scale: see `gradient_penalty`.
            changed_real, changed_fake: the same images, augmented, for consistency (bCR, arXiv 2002.04724); None leaves
                it out.
            real_directions, fake_directions: where the penalties are finite differences, those of R1 and R2, `(N, C, H,
                W)`; None leaves one out.
            real_draws, fake_draws, probability: of the augmentation, see `augment`; None without one.
        """

        def see(images: Tensor, labels: Tensor | None, draws: Tensor | None) -> Tensor:
            if self.policy is not None and draws is not None:
                images = augment(images, draws, self.policy, probability)
            logits: Tensor = self.discriminator(images, labels)
            return logits

        # Other tensors than the caller's: those must not come back asking for a gradient, which the generator's update
        # would then compute for nothing.
        real, fake = real.detach(), fake.detach()
        gammas = {"r1": r1_gamma, "r2": r2_gamma}
        penalties: dict[str, Tensor] = {}
        exact = self.config.penalty == "gradient"
        exact_r1, exact_r2 = exact and r1_gamma > 0, exact and r2_gamma > 0
        if exact_r1 == exact_r2:
            both = torch.cat([real, fake]).requires_grad_(exact_r1)
            draws = None if real_draws is None or fake_draws is None else torch.cat([real_draws, fake_draws])
            logits = see(both, None if labels is None else labels.repeat(2), draws)
            real_logits, fake_logits = logits.chunk(2)
            if both.requires_grad:
                penalties["r1"], penalties["r2"] = gradient_penalty(logits, both, scale).chunk(2)
        else:
            name, images = ("r1", real) if exact_r1 else ("r2", fake)
            images.requires_grad_()
            real_logits, fake_logits = see(real, labels, real_draws), see(fake, labels, fake_draws)
            penalties[name] = gradient_penalty(real_logits if name == "r1" else fake_logits, images, scale)
        for name, images, draws, logits, directions in (
            ("r1", real, real_draws, real_logits, real_directions),
            ("r2", fake, fake_draws, fake_logits, fake_directions),
        ):
            if directions is not None:
                step = self.config.penalty_step
                moved_logits = see(images + step * directions, labels, draws)
                penalties[name] = finite_difference_penalty(logits, moved_logits, step)
        loss = discriminator_loss(self.config.name, real_logits, fake_logits)
        values = {
            "loss_discriminator": loss,
            "real_logit": real_logits.mean(),
            "fake_logit": fake_logits.mean(),
            ACCURACY: accuracy(real_logits, fake_logits),
        }
        if real_draws is not None:
            # What a relativistic D says of a real is how much more it says of it than of a fake.
            margin = real_logits - fake_logits if self.config.name == "relativistic" else real_logits
            values["real_sign"] = margin.sign().mean()
        for name, penalty in penalties.items():
            values[name] = penalty.mean()
            loss = loss + 0.5 * gammas[name] * values[name]
        for name, weight, logits, changed, draws in (
            ("bcr_real", self.config.bcr_real, real_logits, changed_real, real_draws),
            ("bcr_fake", self.config.bcr_fake, fake_logits, changed_fake, fake_draws),
        ):
            if changed is not None:
                values[name] = F.mse_loss(see(changed.detach(), labels, draws), logits)
                loss = loss + weight * values[name]
        return loss, values
