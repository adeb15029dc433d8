"""Training of a GAN: the two updates, and the loop around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maxgan.config import GanConfig, ImageFacts
from maxgan.data.transforms import to_float
from maxgan.models import MaxViTGenerator, ResidualDiscriminator
from maxgan.training.losses import discriminator_loss, generator_loss, gradient_penalty
from maxgan.training.schedules import ema_decay, lazy_adam

Batch = tuple[Tensor, Tensor]
DISCRIMINATOR, GENERATOR = 0, 1


class GanTrainer:
    """Generator, discriminator, optimisers and moving average, and one update of them all.

    Latents and fake labels of an update are drawn for the whole global batch from (seed, update) alone, and each
    process takes its
    slice: they don't depend on the number of processes, and nothing of them need be saved.

    Args:
        config: the settings.
        facts: of the images.
        label_weights: `(num_classes,)` relative frequency of the classes, from which fake labels are drawn; None
            without classes.
        accelerator: places and wraps the networks.

    Attributes:
        ema: the averaged generator (`ema.module`), not wrapped.
        images_seen: real images seen so far.
    """

    def __init__(
        self, config: GanConfig, facts: ImageFacts, label_weights: Tensor | None, accelerator: Accelerator
    ) -> None:
        self.config = config
        self.facts = facts
        self.label_weights = label_weights
        self.accelerator = accelerator
        self.images_seen = 0
        size = (facts.resolution, facts.channels, facts.num_classes)
        torch.manual_seed(config.training.seed)
        generator = MaxViTGenerator(*size, config=config.generator)
        discriminator = ResidualDiscriminator(*size, config=config.discriminator)
        for network in (generator, discriminator):
            network.to(accelerator.device).to(memory_format=torch.channels_last)
        self.ema = AveragedModel(generator, multi_avg_fn=self._average, use_buffers=True).requires_grad_(False)

        optim = config.optim
        betas = (float(optim.beta1), float(optim.beta2))
        optimizer_g = torch.optim.Adam(generator.parameters(), optim.lr, betas, optim.eps)
        lr, betas = lazy_adam(optim.discriminator_lr or optim.lr, optim.beta1, optim.beta2, config.loss.r1_interval)
        optimizer_d = torch.optim.Adam(discriminator.parameters(), lr, betas, optim.eps)
        self.generator, self.discriminator, self.optimizer_g, self.optimizer_d = accelerator.prepare(
            generator, discriminator, optimizer_g, optimizer_d
        )
        self.bare_discriminator = accelerator.unwrap_model(self.discriminator)

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.images_seen // self.config.training.batch_size

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Update D, then G, then the moving average; take `accumulation` micro-batches from `batches`.

        Returns:
            Detached scalars of this process's share, on the device.
        """
        accumulation = self.config.training.accumulation
        micro = [self._to_device(*next(batches)) for _ in range(accumulation)]
        metrics = self._update_discriminator(micro)
        metrics |= self._update_generator(len(micro[0][0]))
        self.images_seen += self.config.training.batch_size
        self.ema.update_parameters(self.accelerator.unwrap_model(self.generator))
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Return the moving average: all that isn't in the networks and optimisers that the accelerator saves."""
        return dict(self.ema.state_dict())

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.ema.load_state_dict(tensors)

    def _update_discriminator(self, micro: list[Batch]) -> dict[str, Tensor]:
        loss_config, parts = self.config.loss, len(micro)
        penalise = loss_config.r1_gamma > 0 and self.update % loss_config.r1_interval == 0
        metrics: dict[str, Tensor] = {}
        latents = self._latents(DISCRIMINATOR, len(micro[0][0]))
        for i, ((real, labels), (z, fake_labels)) in enumerate(zip(micro, latents, strict=True)):
            with torch.no_grad():
                fake = self.generator(z, fake_labels)
            real.requires_grad_(penalise)
            # Reals and fakes in one pass: DistributedDataParallel wants one forward for each backward.
            with self._accumulating(self.discriminator, i + 1 < parts):
                joined = None if fake_labels is None else torch.cat([labels, fake_labels])
                real_logits, fake_logits = self.discriminator(torch.cat([real, fake]), joined).chunk(2)
                loss = discriminator_loss(real_logits, fake_logits)
                values = {
                    "loss_discriminator": loss,
                    "real_logit": real_logits.mean(),
                    "fake_logit": fake_logits.mean(),
                }
                if penalise:
                    r1 = gradient_penalty(real_logits, real, self._loss_scale())
                    values["r1"] = r1
                    loss = loss + 0.5 * loss_config.r1_gamma * loss_config.r1_interval * r1
                self.accelerator.backward(loss / parts)
            _add(metrics, values, parts)
        self.optimizer_d.step()
        self.optimizer_d.zero_grad()
        return metrics

    def _update_generator(self, images: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        parts = self.config.training.accumulation
        # The gradient passes through D to G and leaves no trace in D.
        self.bare_discriminator.requires_grad_(False)
        for i, (z, labels) in enumerate(self._latents(GENERATOR, images)):
            with self._accumulating(self.generator, i + 1 < parts):
                loss = generator_loss(self.bare_discriminator(self.generator(z, labels), labels))
                self.accelerator.backward(loss / parts)
            _add(metrics, {"loss_generator": loss}, parts)
        self.bare_discriminator.requires_grad_(True)
        self.optimizer_g.step()
        self.optimizer_g.zero_grad()
        return metrics

    def _latents(self, phase: int, images: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield (z, labels) of this process for every micro-batch of one phase of this update."""
        training, device = self.config.training, self.accelerator.device
        entropy = np.random.SeedSequence([training.seed, self.update, phase]).generate_state(1, np.uint64)
        source = torch.Generator().manual_seed(int(entropy[0] >> np.uint64(1)))
        z = torch.randn(training.batch_size, self.config.generator.latent_dim, generator=source)
        labels = None
        if self.label_weights is not None:
            labels = torch.multinomial(self.label_weights, training.batch_size, replacement=True, generator=source)
        first = self.accelerator.process_index * training.accumulation * images
        for i in range(training.accumulation):
            part = slice(first + i * images, first + (i + 1) * images)
            yield z[part].to(device, non_blocking=True), None if labels is None else labels[part].to(device)

    def _to_device(self, images: Tensor, labels: Tensor) -> Batch:
        device = self.accelerator.device
        images = to_float(images.to(device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        return images, labels.to(device, non_blocking=True)

    def _accumulating(self, model: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """Return a context without gradient exchange, if more micro-batches of this update follow."""
        return self.accelerator.no_sync(model) if more else nullcontext()

    def _loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def _average(self, averaged: Any, current: Any, _: Any) -> None:
        ema, batch_size = self.config.ema, self.config.training.batch_size
        decay = ema_decay(self.images_seen, batch_size, ema.half_life, ema.warmup)
        get_ema_multi_avg_fn(decay)(averaged, current, 0)


def _add(metrics: dict[str, Tensor], values: dict[str, Tensor], parts: int) -> None:
    for name, value in values.items():
        metrics[name] = metrics.get(name, 0.0) + value.detach().float() / parts
