"""How a network is trained, and what a run writes: optimiser, average, length, folder, watchdog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maxgan.config.checks import WIDEST
from maxgan.config.schedules import Schedule, Scheduled, values_of

CompileMode = Literal["none", "inductor", "cudagraphs"]


@dataclass(frozen=True)
class OptimConfig:
    """Adam for generator and discriminator, and how their updates alternate."""

    updates: Literal["alternating", "simultaneous"] = "alternating"
    """`alternating`: D is updated, then G against the new D with fakes of its own; or `simultaneous`, HiT's way: both
    from the same fakes and the networks as they were, which saves a forward pass of G."""
    lr: Scheduled = Schedule(5e-4, 1e-5)
    """Learning rate of the generator, and of the discriminator unless discriminator_lr is set: a number, or a schedule
    in images seen such as {start: 5e-4, end: 1e-5}, as every setting may be that says so; further fields are `over`,
    images (unset: all), and `shape`, cosine or linear."""
    discriminator_lr: Scheduled | None = None
    """Learning rate of the discriminator, or its schedule; unset: lr."""
    beta1: Scheduled = 0.0
    """Adam's beta1, or its schedule."""
    beta2: Scheduled = 0.99
    """Adam's beta2, or its schedule."""
    eps: float = 1e-8
    """Adam's epsilon."""

    def __post_init__(self) -> None:
        for rate in (self.lr, self.lr if self.discriminator_lr is None else self.discriminator_lr):
            first, *last = values_of(rate)
            if not first > 0 or not all(value >= 0 for value in last):
                raise ValueError(
                    "optim.lr and optim.discriminator_lr must be above 0, and may fall to 0, not "
                    f"{self.lr}, {self.discriminator_lr}"
                )
        if not all(0 <= value < 1 for beta in (self.beta1, self.beta2) for value in values_of(beta)):
            raise ValueError(f"optim.beta1 and optim.beta2 must be in [0, 1), not {self.beta1}, {self.beta2}")
        if not self.eps >= 0:
            raise ValueError(f"optim.eps must be 0 or more, not {self.eps}")


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of weights and BatchNorm statistics: the network that is sampled, measured and exported."""

    half_life: Scheduled = 20_000
    """Half-life in images seen, or its schedule; 0 for no average."""
    warmup: float = 0.4
    """Early in training the half-life is at most this fraction of the images seen; 0 switches the warm-up off."""

    def __post_init__(self) -> None:
        if not all(value >= 0 for value in (*values_of(self.half_life), self.warmup)):
            raise ValueError(f"ema.half_life and ema.warmup must be 0 or more, not {self.half_life}, {self.warmup}")


@dataclass(frozen=True)
class GanEmaConfig(EmaConfig):
    """Moving average of the generator, which is sampled, measured and exported; and others beside it."""

    others: tuple[float, ...] = ()
    """Half-lives of further averages, with the same warm-up, such as [5000, 50000]; each is exported with every
    checkpoint to averages/ in the run's folder."""
    power: tuple[float, ...] = ()
    """Widths (sigma_rel) of power-function averages, best [0.05, 0.1] as in EDM2; every checkpoint leaves a snapshot of
    each, from which `python -m maxgan.training.posthoc` makes an average of any width after the training."""
    standing_images: int = 1024
    """Samples of an averaged generator from which its BatchNorm statistics are found, whenever it is drawn from or
    exported (standing statistics); 0 averages the running ones, as HiT does, which a training of less than tens of
    thousands of updates leaves far behind the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.standing_images < 0:
            raise ValueError(f"ema.standing_images must be 0 or more, not {self.standing_images}")
        # By the names of their files, which hold six digits.
        names = [{f"{value:g}" for value in values} for values in (self.others, self.power)]
        if not all(half_life > 0 for half_life in self.others) or len(names[0]) < len(self.others):
            raise ValueError(f"ema.others must be different half-lives above 0, not {list(self.others)}")
        if not all(0 < width < WIDEST for width in self.power) or len(names[1]) < len(self.power):
            raise ValueError(
                f"ema.power must be different widths above 0 and below {WIDEST:.4f}, not {list(self.power)}: "
                "take [0.05, 0.1]"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batch and arithmetic of a training."""

    images: int = 25_600
    """Images seen in the whole training, counted over all processes."""
    batch_size: int = 32
    """Images of one update over all processes and accumulation steps."""
    accumulation: int = 1
    """Micro-batches that one update is summed from, to save memory."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; `no` is float32."""
    sync_batchnorm: bool = False
    """Take the statistics of BatchNorm over the images of all GPUs, in place of those of each alone."""
    seed: int = 0
    """Seed of weights, latents, data order and augmentation."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"training.seed must be 0 or more, not {self.seed}")
        if self.images < 1:
            raise ValueError(f"training.images must be at least 1, not {self.images}")
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"training.batch_size {self.batch_size} must be a positive multiple of training.accumulation "
                f"{self.accumulation}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it writes; nothing here changes what is learned."""

    root: str = "runs"
    """Folder of all runs."""
    name: str | None = None
    """First part of the run's folder name; unset: the name of the config file. A hash of all that changes learning
    follows."""
    directory: str | None = None
    """The run's folder itself, in place of root and name; it must be new or hold a run of the same config."""
    log_every: int = 320
    """Images between two lines of metrics.jsonl; rounded up to whole updates."""
    sample_every: int = 4_000
    """Images between two pictures of samples; 0 makes none."""
    checkpoint_every: int = 4_000
    """Images between two checkpoints."""
    keep: int = 2
    """Checkpoints kept, the newest; with evaluation.every, that of the best score stays beside them."""
    tracker: Literal["auto", "none", "tensorboard", "wandb"] = "auto"
    """Tracker beside metrics.jsonl; `auto` takes tensorboard where it is installed."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""
    compile: CompileMode = "none"
    """`inductor` runs networks as compiled code (torch.compile), which takes a minute or more at the start, wherever no
    second derivative is needed; `cudagraphs`, for CUDA, also replays recorded kernels, which helps small networks;
    rounding differs from `none`."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.checkpoint_every < 1 or self.keep < 1 or self.sample_every < 0:
            raise ValueError(
                "run.log_every, run.checkpoint_every and run.keep must be at least 1, run.sample_every at least 0"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"run.threads must be at least 1, not {self.threads}")


@dataclass(frozen=True)
class WatchdogConfig:
    """What happens when a training goes wrong."""

    rollback: int = 0
    """Times that a run may go back to its last good checkpoint, and on with another seed, before it stops; 0 stops at
    once where a number is not finite."""

    def __post_init__(self) -> None:
        if self.rollback < 0:
            raise ValueError(f"watchdog.rollback must be 0 or more, not {self.rollback}")


@dataclass(frozen=True)
class GanWatchdogConfig(WatchdogConfig):
    """What happens when a training of a GAN goes wrong, and what counts as a sign of it."""

    sign_updates: int = 100
    """Updates that a sign is averaged over."""
    accuracy: float = 0.98
    """D wins where it tells as many of the pairs of a real and a fake apart, and the loss of G grows."""
    variety: float = 0.25
    """Variety has fallen where it is below this fraction of the highest so far."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sign_updates < 1:
            raise ValueError(f"watchdog.sign_updates must be at least 1, not {self.sign_updates}")
        if not (0 <= self.accuracy <= 1 and 0 <= self.variety <= 1):
            raise ValueError(
                f"watchdog.accuracy and watchdog.variety must be in [0, 1], not {self.accuracy}, {self.variety}"
            )
