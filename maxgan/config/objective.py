"""What the networks of a GAN are trained for: losses, penalties, and the augmentation before the discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maxgan.config.checks import refuse_idle
from maxgan.config.schedules import Gamma, Scheduled, values_of

LossName = Literal["non_saturating", "hinge", "relativistic"]
# Parts of DiffAugment (arXiv 2006.10738), by its names.
AUGMENTATIONS = ("color", "translation", "cutout")
# Parts of ADA (arXiv 2006.06676), by the names of its code.
ADA = (
    "xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", "brightness", "contrast", "lumaflip", "hue",
    "saturation",
)  # fmt: skip


@dataclass(frozen=True)
class LossConfig:
    """Loss and penalties of the GAN."""

    name: LossName = "relativistic"
    """`non_saturating`, the classic of HiT and StyleGAN2, `hinge`, that of SAGAN and BigGAN, or `relativistic`, which
    compares pairs of reals and fakes (R3GAN), in the update of G with the reals of that of D."""
    r1_gamma: Gamma = 0.5
    """Weight of R1, or its schedule: the loss gains (r1_gamma / 2) * E|gradient of D at real images|^2; 0 leaves it
    out; `auto` takes StyleGAN2-ADA's rule, 0.0002 * resolution^2 / training.batch_size, a first guess for
    photographs."""
    r2_gamma: Gamma = 0.0
    """Weight of R2, or its schedule, the same at generated images; 0 leaves it out."""
    penalty_interval: int = 1
    """Updates from one with penalties to the next; above 1 (lazy penalties) their weights are multiplied by it, and
    D's learning rate and betas are adapted."""
    penalty: Literal["gradient", "finite_difference"] = "gradient"
    """How R1 and R2 are computed: `gradient`, exactly, through a second derivative of D; or `finite_difference`, from
    first derivatives alone, along one random direction for each image and update, equal in the mean."""
    penalty_step: float = 0.03
    """Step of the finite difference, the root mean square of the change of a pixel (which are in [-1, 1]). Larger ones
    miss the gradient (by a factor of 2 at 0.3), smaller ones are lost in bf16's rounding (2 at 0.01)."""
    bcr_real: float = 0.0
    """Weight of balanced consistency regularisation (bCR): the loss of D gains bcr_real * E(D(T(x)) - D(x))^2 over real
    images x and their random augmentations T(x); 0 leaves it out."""
    bcr_fake: float = 0.0
    """Weight of the same over generated images; 0 leaves it out."""
    bcr_augment: str = "color,translation,cutout"
    """The augmentations T of bCR, in their order, those of DiffAugment: `color`, `translation`, `cutout`."""

    def __post_init__(self) -> None:
        gammas = [gamma for gamma in (self.r1_gamma, self.r2_gamma) if gamma != "auto"]
        if not all(value >= 0 for gamma in gammas for value in values_of(gamma)):
            raise ValueError(
                f"loss.r1_gamma and loss.r2_gamma must be 0 or more, or auto, not {self.r1_gamma}, {self.r2_gamma}"
            )
        if not (self.bcr_real >= 0 and self.bcr_fake >= 0):
            raise ValueError(f"loss.bcr_real and loss.bcr_fake must be 0 or more, not {self.bcr_real}, {self.bcr_fake}")
        _check_policy("loss.bcr_augment", self.bcr_augment, AUGMENTATIONS)
        if self.penalty_interval < 1:
            raise ValueError(f"loss.penalty_interval must be at least 1, not {self.penalty_interval}")
        if not self.penalty_step > 0:
            raise ValueError(f"loss.penalty_step must be above 0, not {self.penalty_step}: take 0.03")
        if len(gammas) == 2 and not any(value > 0 for gamma in gammas for value in values_of(gamma)):
            remedy = "penalties, whose weights are both 0: set loss.r1_gamma or loss.r2_gamma"
            refuse_idle(self, "loss", ("penalty", "penalty_interval"), remedy)
        if self.penalty == "gradient":
            refuse_idle(self, "loss", ("penalty_step",), "finite differences: set loss.penalty finite_difference")
        if not (self.bcr_real or self.bcr_fake):
            remedy = "bCR, whose weights are both 0: set loss.bcr_real or loss.bcr_fake"
            refuse_idle(self, "loss", ("bcr_augment",), remedy)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation T of all that the discriminator sees in training.

    D(x) is D(T(x)) in both losses, in the penalties, whose gradient is taken by x, before T, and in bCR. One T is drawn
    for each image and update of a network.
    """

    policy: str | None = None
    """What T is made of, joined by commas: `ada`, or some of its parts `xflip`, `rotate90`, `xint`, `scale`, `rotate`,
    `aniso`, `xfrac`, `brightness`, `contrast`, `lumaflip`, `hue`, `saturation`; then DiffAugment's `color`,
    `translation`, `cutout`, in their order; unset: nothing."""
    probability: Scheduled = 1.0
    """Probability of each part for each image, or its schedule; ADA's parts stay out of the samples up to about 0.8."""
    target: float | None = None
    """Adaptive probability, from 0, in place of a given one: it rises while the mean sign of D at reals (with the
    relativistic loss: of D(real) - D(fake)) is above this, 0.6 in ADA, and falls below; unset: not adaptive."""
    adapt_images: int = 500_000
    """Images in which the adaptive probability can go from 0 to 1."""

    def __post_init__(self) -> None:
        if self.policy is not None:
            _check_policy("augment.policy", self.policy, (*AUGMENTATIONS, "ada", *ADA))
        if not all(0 <= value <= 1 for value in values_of(self.probability)):
            raise ValueError(f"augment.probability must be from 0 to 1, not {self.probability}")
        if self.target is not None and (self.policy is None or self.probability != 1):
            raise ValueError(
                f"augment.target {self.target} adapts the probability of augment.policy: set that, and leave "
                "augment.probability out"
            )
        if self.target is not None and not -1 < self.target < 1:
            raise ValueError(f"augment.target must be between -1 and 1, not {self.target}: take 0.6")
        if self.adapt_images < 1:
            raise ValueError(f"augment.adapt_images must be at least 1, not {self.adapt_images}")
        if self.policy is None:
            refuse_idle(self, "augment", ("probability",), "augmentation, and there is none: set augment.policy")
        if self.target is None:
            refuse_idle(self, "augment", ("adapt_images",), "an adaptive probability: set augment.target")


def _check_policy(setting: str, policy: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a policy names augmentations, each once."""
    parts = policy.split(",")
    if any(part not in choices for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(
            f"{setting} must join some of {', '.join(choices)} by ',', each once, like color,translation; not "
            f"{policy!r}"
        )
    if "ada" in parts and not set(parts).isdisjoint(ADA):
        raise ValueError(f"{setting} {policy!r} names parts of ada beside ada, which is all of them: leave them out")
