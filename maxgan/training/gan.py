"""Training of a GAN: the networks, and one update of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maxgan.config import Gamma, GanConfig, ImageFacts, Scheduled
from maxgan.data.loader import Batch
from maxgan.data.transforms import to_float
from maxgan.models.build import build_discriminator, build_generator
from maxgan.runtime import fused_on, share_of
from maxgan.training.ada import AdaptiveProbability
from maxgan.training.augment import ALL_DRAWS, DRAWS, augment
from maxgan.training.averaging import further_averages, moving_average
from maxgan.training.compiling import Compiling
from maxgan.training.draws import seed_of
from maxgan.training.losses import automatic_gamma, directions_of, generator_loss
from maxgan.training.objective import DiscriminatorObjective
from maxgan.training.schedules import lazy_adam, value_at
from maxgan.training.signs import VARIETY, variety
from maxgan.training.sync_norm import share_statistics, sync_norms
from maxgan.training.watchdog import Watchdog

# What random numbers are for, so that no two uses share a stream.
DISCRIMINATOR, GENERATOR, CHANGES, REAL_DIRECTIONS, FAKE_DIRECTIONS, AUGMENT_D, AUGMENT_G = range(7)
Images = tuple[Tensor, Tensor | None]
"""Images `(N, C, H, W)` in [-1, 1] and their labels `(N,)`, None without classes."""


class GanTrainer:
    """Generator, discriminator, optimisers and moving average, and one update of them all.

    The random numbers of an update are drawn for the whole global batch from (seed, update) alone, and each process
    takes its slice; directions of finite differences from (seed, update, place in the global batch). So they don't
    depend on the number of processes, and nothing of them need be saved.

    Args:
        config: the settings.
        facts: of the images.
        accelerator: places and wraps the networks.

    Attributes:
        latent_dim: size of z.
        ema: the averaged generator (`ema.module`), not wrapped.
        averages: further ones by name, see `further_averages`.
        images_seen: real images seen so far.
        seed: of random draws; another than the config's after a rollback.
        watchdog: looks for numbers that are not finite.
    """

    def __init__(self, config: GanConfig, facts: ImageFacts, accelerator: Accelerator) -> None:
        self.config = config
        self.facts = facts
        self.accelerator = accelerator
        self.images_seen = 0
        self.seed = config.training.seed
        torch.manual_seed(config.training.seed)
        generator, discriminator = build_generator(config, facts), build_discriminator(config, facts)
        for network in (generator, discriminator):
            network.to(accelerator.device).to(memory_format=torch.channels_last)
        self.ema = moving_average(generator, config.ema, config.training, lambda: self.images_seen)
        self.averages = further_averages(generator, config.ema, config.training, lambda: self.images_seen)
        self.latent_dim = generator.latent_dim
        if config.training.sync_batchnorm:
            generator = sync_norms(generator, accelerator)
        # With the rates of the first update; every update sets them.
        (lr_g, betas_g), (lr_d, betas_d) = self._rates()
        eps, fused = config.optim.eps, fused_on(accelerator.device)
        optimizer_g = torch.optim.Adam(generator.parameters(), lr_g, betas_g, eps, fused=fused)
        optimizer_d = torch.optim.Adam(discriminator.parameters(), lr_d, betas_d, eps, fused=fused)
        self.discriminator = discriminator
        self.compiling = Compiling(config.run.compile, accelerator.device, config.training.accumulation)
        for network in (generator, discriminator):
            self.compiling.apply(network)
        networks = {"generator": generator, "discriminator": discriminator}
        optimizers = {"generator": optimizer_g, "discriminator": optimizer_d}
        self.watchdog = Watchdog(accelerator, networks, optimizers, config.training.batch_size)
        self.adaptive: AdaptiveProbability | None = None
        if config.augment.target is not None:
            self.adaptive = AdaptiveProbability(config.augment, config.training.batch_size, accelerator.device)
        objective = DiscriminatorObjective(discriminator, config.loss, config.augment.policy)
        self.generator, self.objective, self.optimizer_g, self.optimizer_d = accelerator.prepare(
            generator, objective, optimizer_g, optimizer_d
        )

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.images_seen // self.config.training.batch_size

    @property
    def probability(self) -> float:
        """Probability of each part of the augmentation."""
        return self._now(self.config.augment.probability) if self.adaptive is None else self.adaptive.value

    def gamma(self, setting: Gamma) -> float:
        """Return the weight of a penalty at this update."""
        if setting == "auto":
            return automatic_gamma(self.facts.resolution, self.config.training.batch_size)
        return self._now(setting)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Update both networks, then the moving average; take `accumulation` micro-batches from `batches`.

        Returns:
            Detached scalars of this process's share, on the device.
        """
        for optimizer, (lr, betas) in zip((self.optimizer_g, self.optimizer_d), self._rates(), strict=True):
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = lr, betas
        self.compiling.begin()
        metrics = self.update_networks(
            [self._to_device(*next(batches)) for _ in range(self.config.training.accumulation)]
        )
        metrics = self.watchdog.watch_metrics(metrics, self.update) | self.watchdog.norms
        if self.config.augment.policy is not None:
            metrics["augment_probability"] = torch.tensor(self.probability, device=self.accelerator.device)
        if self.adaptive is not None:
            self.adaptive.add(metrics["real_sign"], self.update, self.accelerator)
        self.images_seen += self.config.training.batch_size
        generator = self.accelerator.unwrap_model(self.generator)
        share_statistics(generator, self.accelerator)
        for average in (self.ema, *self.averages.values()):
            average.update_parameters(generator)
        return metrics

    def update_networks(self, micro: list[Images]) -> dict[str, Tensor]:
        """Update D and G from micro-batches of reals; return detached scalars.

        Fakes take the labels of the reals beside them: they are distributed as the data's, and no difference in the
        frequency of classes adds noise to the gradients. The relativistic loss of G compares with the reals that D is
        updated with, so that an update sees batch_size images; R3GAN (arXiv 2501.05441) draws others for it.
        """
        if self.config.optim.updates == "simultaneous":
            # D needs of G the images alone, and G must see D as it was. In this order the fakes are made once, each
            # network has one backward pass and its step, and the loss scale of float16 can't change between those.
            metrics, fakes = self._update_generator(micro)
            return metrics | self._update_discriminator(micro, fakes)
        metrics = self._update_discriminator(micro, self._fakes(micro))
        return metrics | self._update_generator(micro)[0]

    def state(self) -> dict[str, Tensor]:
        """Return the moving averages, and the augmentation's probability where it adapts: all that isn't in the
        networks and optimisers that the accelerator saves. Every process must call this."""
        groups = {name: average.state_dict() for name, average in self.averages.items()}
        if self.adaptive is not None:
            self.adaptive.share(self.accelerator)
            groups["augment"] = self.adaptive.state()
        further = {f"{group}/{name}": tensor for group, part in groups.items() for name, tensor in part.items()}
        return dict(self.ema.state_dict()) | further

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.rpartition("/")
            groups.setdefault(group, {})[rest] = tensor
        self.ema.load_state_dict(groups[""])
        for name, average in self.averages.items():
            average.load_state_dict(groups[name])
        if self.adaptive is not None:
            self.adaptive.restore(groups["augment"])

    def _fakes(self, micro: list[Images]) -> Iterator[Tensor]:
        """Yield images of G for the update of D alone, one batch for each of reals."""
        for (_, labels), z in zip(micro, self._draws(DISCRIMINATOR, self.latent_dim, torch.randn), strict=True):
            with torch.no_grad():  # not around the yield: the mode would leak into the caller
                fake = self.compiling.keep(self.generator(z, labels))
            yield fake

    def _update_discriminator(self, micro: list[Images], fakes: Iterable[Tensor]) -> dict[str, Tensor]:
        config, parts = self.config.loss, len(micro)
        lazy = config.penalty_interval if self.update % config.penalty_interval == 0 else 0
        gammas = (self.gamma(config.r1_gamma) * lazy, self.gamma(config.r2_gamma) * lazy)
        metrics: dict[str, Tensor] = {}
        draws = self._draws(CHANGES, 2 * DRAWS, torch.rand)
        directions = zip(
            self._directions(REAL_DIRECTIONS, gammas[0], micro),
            self._directions(FAKE_DIRECTIONS, gammas[1], micro),
            strict=True,
        )
        # D sees several batches before its backward pass, and exact penalties derive it twice.
        eager = self.compiling.graphs or (config.penalty == "gradient" and max(gammas) > 0)
        rows = zip(micro, fakes, draws, directions, self._augmentations(AUGMENT_D, parts), strict=True)
        for i, ((real, labels), fake, draw, pair, seen) in enumerate(rows):
            changed = [
                augment(images, part, config.bcr_augment) if weight else None
                for images, part, weight in zip(
                    (real, fake), draw.split(DRAWS, 1), (config.bcr_real, config.bcr_fake), strict=True
                )
            ]
            with self._accumulating(self.objective, i + 1 < parts):
                with self.compiling.eager(eager):
                    loss, values = self.objective(
                        real, fake, labels, *gammas, self._loss_scale(), *changed, *pair, *seen, self.probability
                    )
                self.accelerator.backward(loss / parts)
            _add(metrics, values | {VARIETY: variety(real, fake)}, parts)
        self.watchdog.watch_gradients("discriminator", self.update)
        self.optimizer_d.step()
        self.optimizer_d.zero_grad()
        return metrics

    def _update_generator(self, micro: list[Images]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the metrics, and the fakes of every micro-batch."""
        metrics: dict[str, Tensor] = {}
        fakes = []
        name, parts = self.config.loss.name, len(micro)
        # The gradient passes through D to G and leaves no trace in D.
        self.discriminator.requires_grad_(False)
        latents = self._draws(GENERATOR, self.latent_dim, torch.randn)
        rows = zip(micro, latents, self._augmentations(AUGMENT_G, parts), strict=True)
        for i, ((real, labels), z, (real_draws, fake_draws)) in enumerate(rows):
            with self._accumulating(self.generator, i + 1 < parts):
                fake = self.compiling.keep(self.generator(z, labels))
                with self.accelerator.autocast():  # what `prepare` wraps is the objective, not D
                    # No gradient of D is kept and the reals need none: their pass costs a forward alone.
                    real_logits = None
                    if name == "relativistic":
                        # Told aloud: compiled code of torch 2.11 doesn't look at whether weights require gradients.
                        with torch.no_grad():
                            real_logits = self._judge(real, real_draws, labels)
                    loss = generator_loss(name, real_logits, self._judge(fake, fake_draws, labels))
                self.accelerator.backward(loss / parts)
            fakes.append(fake.detach())
            _add(metrics, {"loss_generator": loss}, parts)
        self.discriminator.requires_grad_(True)
        self.watchdog.watch_gradients("generator", self.update)
        self.optimizer_g.step()
        self.optimizer_g.zero_grad()
        return metrics, fakes

    def _draws(self, phase: int, size: int, draw: Callable[..., Tensor]) -> Iterator[Tensor]:
        """Yield random numbers `(images, size)` of this process for every micro-batch of one phase of this update."""
        training = self.config.training
        source = torch.Generator().manual_seed(seed_of(self.seed, self.update, phase))
        numbers = draw(training.batch_size, size, generator=source)
        share = share_of(training.batch_size, self.accelerator)
        for part in numbers[share.start : share.stop].chunk(training.accumulation):
            yield part.to(self.accelerator.device, non_blocking=True)

    def _augmentations(self, phase: int, parts: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yield the draws of the augmentation of reals and of fakes for every micro-batch; None without one."""
        if self.config.augment.policy is None:
            yield from [(None, None)] * parts
            return
        for draws in self._draws(phase, 2 * ALL_DRAWS, torch.rand):
            yield draws[:, :ALL_DRAWS], draws[:, ALL_DRAWS:]

    def _judge(self, images: Tensor, draws: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the logits of augmented images for the update of G."""
        policy = self.config.augment.policy
        if policy is not None and draws is not None:
            images = augment(images, draws, policy, self.probability)
        return self.compiling.keep(self.discriminator(images, labels))

    def _directions(self, phase: int, gamma: float, micro: list[Images]) -> Iterator[Tensor | None]:
        """Yield directions of the finite difference for every micro-batch of this update; None where it needs none."""
        if self.config.loss.penalty == "gradient" or gamma == 0:
            yield from [None] * len(micro)
            return
        # As many numbers as an image has, so each process draws for its own images, where they are: the whole batch's
        # would be 200 MB at 128 px. A seed for each image keeps them free of the number of processes.
        device = self.accelerator.device
        source = torch.Generator("cpu" if device.type == "meta" else device)  # a dry run draws nothing
        places = iter(share_of(self.config.training.batch_size, self.accelerator))
        for images, _ in micro:
            normal = images.new_empty(len(images), images[0].numel())
            for row in normal:
                row.normal_(generator=source.manual_seed(seed_of(self.seed, self.update, phase, next(places))))
            yield directions_of(normal, images)

    def _rates(self) -> list[tuple[float, tuple[float, float]]]:
        """Return Adam's lr and betas of G and of D at this update; nothing of them need be saved."""
        optim = self.config.optim
        betas = self._now(optim.beta1), self._now(optim.beta2)
        rate_d = optim.lr if optim.discriminator_lr is None else optim.discriminator_lr
        return [
            (self._now(optim.lr), betas),
            lazy_adam(self._now(rate_d), *betas, self.config.loss.penalty_interval),
        ]

    def _now(self, setting: Scheduled) -> float:
        """Return the value of a setting at this update."""
        return value_at(setting, self.images_seen, self.config.training.images)

    def _to_device(self, images: Tensor, labels: Tensor) -> Images:
        device = self.accelerator.device
        images = to_float(images.to(device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        return images, labels.to(device, non_blocking=True) if self.facts.num_classes else None

    def _accumulating(self, model: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """Return a context without gradient exchange, if more micro-batches of this update follow."""
        return self.accelerator.no_sync(model) if more else nullcontext()

    def _loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0


def _add(metrics: dict[str, Tensor], values: dict[str, Tensor], parts: int) -> None:
    for name, value in values.items():
        metrics[name] = metrics.get(name, 0.0) + value.detach().float() / parts
