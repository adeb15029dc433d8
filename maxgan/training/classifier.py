"""Training of a classifier: one update, with its augmentation, its learning rate and what weight decay spares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel

from maxgan.config import ClassifierConfig, ClassifierOptimConfig, ImageFacts, differences
from maxgan.data.loader import Batch
from maxgan.data.transforms import to_float
from maxgan.models import MaxViT
from maxgan.models.convert import load_resized
from maxgan.runtime import fused_on, share_of
from maxgan.training.averaging import moving_average
from maxgan.training.compiling import Compiling
from maxgan.training.draws import seed_of
from maxgan.training.image_augment import Mix, change_affine
from maxgan.training.sync_norm import share_statistics, sync_norms
from maxgan.training.watchdog import Watchdog

# Beside what the data loader draws from the same seed, so that no two uses share a stream.
AFFINE, MIX = 2, 3
# Settings of the backbone that may change from one training to the next.
FREE_OF_WEIGHTS = ("window_size", "drop_path", "checkpointing")


class ClassifierTrainer:
    """A classifier with its optimiser, schedule and moving average, and one update of them.

    The affine changes of an update are drawn for the whole global batch from (seed, update) alone, and each process
    takes its slice: they don't depend on the number of processes, and nothing of them need be saved. So are the share
    and the rectangle of MixUp and CutMix, one draw an update; an image's partner is in its own micro-batch.

    Args:
        config: the settings.
        facts: of the images, with at least 2 classes.
        accelerator: made with step_scheduler_with_optimizer=False, or it would step the schedule once for each process.
        initial: classifier to start from, of the same settings but for its resolution; of another number of classes,
            its last layer starts with random weights. None for random weights throughout.

    Attributes:
        ema: the averaged classifier (`ema.module`), not wrapped; None without an average.
        images_seen: training images seen so far.
        seed: of random draws; another than the config's after a rollback.
        watchdog: looks for numbers that are not finite.

    Raises:
        ValueError: if the backbone doesn't fit the images, or `initial` doesn't fit the backbone.
    """

    def __init__(
        self, config: ClassifierConfig, facts: ImageFacts, accelerator: Accelerator, initial: MaxViT | None = None
    ) -> None:
        assert not accelerator.step_scheduler_with_optimizer
        self.config = config
        self.accelerator = accelerator
        self.images_seen = 0
        training = config.training
        self.seed = training.seed
        torch.manual_seed(training.seed)
        network = MaxViT(facts.resolution, facts.channels, facts.num_classes, config=config.backbone)
        if initial is not None:
            _start_from(network, initial, config)
        network.to(accelerator.device).to(memory_format=torch.channels_last)
        # From here on the random state serves stochastic depth, which must differ among the processes.
        torch.manual_seed(training.seed + accelerator.process_index)
        if config.training.sync_batchnorm:
            network = sync_norms(network, accelerator)
        optimizer = torch.optim.AdamW(
            parameter_groups(network, config.optim.weight_decay),
            config.optim.lr,
            fused=fused_on(accelerator.device),
        )
        schedule = make_schedule(optimizer, config.optim, training.images, training.batch_size)
        self.mix = Mix(config.mix, facts.num_classes) if config.mix.mixup or config.mix.cutmix else None
        self.ema: AveragedModel | None = None
        if config.ema.half_life:
            self.ema = moving_average(network, config.ema, training, lambda: self.images_seen)
        self.watchdog = Watchdog(accelerator, {"network": network}, {"network": optimizer}, training.batch_size)
        self.compiling = Compiling(config.run.compile, accelerator.device, training.accumulation)
        self.compiling.apply(network)
        self.network, self.optimizer, self.schedule = accelerator.prepare(network, optimizer, schedule)
        self.network.train()

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.images_seen // self.config.training.batch_size

    @property
    def bare_network(self) -> MaxViT:
        """The classifier, not wrapped."""
        network: MaxViT = self.accelerator.unwrap_model(self.network)
        return network

    @property
    def result(self) -> MaxViT:
        """The classifier that is exported: the moving average, if there is one."""
        return self.bare_network if self.ema is None else cast(MaxViT, self.ema.module)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Do one update; take `accumulation` micro-batches from `batches`.

        Returns:
            Detached scalars of this process's share, on the device.
        """
        accelerator, optim = self.accelerator, self.config.optim
        parts = self.config.training.accumulation
        micro = [next(batches) for _ in range(parts)]
        changes = self._affine_changes().chunk(parts)
        self.compiling.begin()
        total = {name: torch.zeros((), device=accelerator.device) for name in ("loss", "accuracy")}
        for i, ((images, labels), change) in enumerate(zip(micro, changes, strict=True)):
            x, target = self._to_input(images, labels, change)
            with accelerator.no_sync(self.network) if i + 1 < parts else nullcontext():
                logits = self.network(x)
                loss = F.cross_entropy(logits, target, label_smoothing=optim.label_smoothing)
                accelerator.backward(loss / parts)
            total["loss"] += loss.detach() / parts
            total["accuracy"] += _accuracy(logits, target) / parts
        self.watchdog.watch_gradients("network", self.update)  # clipping would spread a NaN
        if optim.gradient_clip is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), optim.gradient_clip)
        total["learning_rate"] = torch.tensor(self.schedule.get_last_lr()[0], device=accelerator.device)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.watchdog.watch_metrics(total, self.update)
        self.images_seen += self.config.training.batch_size
        share_statistics(self.bare_network, accelerator)
        if self.ema is not None:
            self.ema.update_parameters(self.bare_network)
        return total

    def state(self) -> dict[str, Tensor]:
        """Return the moving average: the accelerator saves network, optimiser, schedule and random states."""
        return {} if self.ema is None else dict(self.ema.state_dict())

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.ema is not None:
            self.ema.load_state_dict(tensors)

    def _affine_changes(self) -> Tensor:
        """Return `(N, 4)` numbers in [-1, 1) for the images of this process in this update."""
        batch_size = self.config.training.batch_size
        drawn = np.random.default_rng((self.seed, AFFINE, self.update)).uniform(-1, 1, (batch_size, 4))
        share = share_of(batch_size, self.accelerator)
        return torch.from_numpy(drawn[share.start : share.stop].astype(np.float32))

    def _to_input(self, images: Tensor, labels: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented images, and their target: labels `(N,)` or, where images are mixed, shares `(N, K)`."""
        device, affine = self.accelerator.device, self.config.affine
        x, target = to_float(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
        if affine.rotate or affine.scale or affine.shift:
            x = change_affine(x, change.to(device, non_blocking=True), affine)
        if self.mix is not None:
            x, target = self.mix(x, target, seed_of(self.seed, MIX, self.update))
        return x.contiguous(memory_format=torch.channels_last), target


def _start_from(network: MaxViT, initial: MaxViT, config: ClassifierConfig) -> None:
    """Fill `network` with the weights of `initial`, the classifier of the file config.init."""
    if initial.num_classes != network.num_classes:
        initial.reset_head(network.num_classes)
    old, new = (dataclasses.asdict(model.config) for model in (initial, network))
    if changes := differences(old, {**new, **{name: old[name] for name in FREE_OF_WEIGHTS}}, "backbone."):
        raise ValueError(
            f"init {config.init} has other settings ({'; '.join(changes)}; its value -> yours): use its own"
        )
    try:
        load_resized(network, initial.state_dict())
    except ValueError as error:
        raise ValueError(f"init {config.init} can't be started from: {error}") from error


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean share that the likeliest class has in the target: 1 or 0 for labels `(N,)`, else of `(N, K)`."""
    likeliest = logits.argmax(1)
    if target.ndim == 1:
        return (likeliest == target).float().mean()
    return target.gather(1, likeliest[:, None]).mean()


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's two groups: kernels with weight decay; biases, norms and relative-position tables without."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in network.named_parameters():
        groups[parameter.ndim <= 1 or name.endswith("relative_bias")].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def make_schedule(
    optimizer: torch.optim.Optimizer, config: ClassifierOptimConfig, images: int, batch_size: int
) -> LRScheduler:
    """Return the schedule of `images` images: linear warm-up, then a cosine (arXiv 1608.03983, no restarts) or lr.

    With T = ceil(images / batch_size) updates and w = floor(warmup * T), or floor(warmup_images / batch_size), update t
    (from 0) has lr * (t + 1) / (w + 1) up to t = w, and from there lr, or
    min_lr + (lr - min_lr) * (1 + cos(pi * (t - w) / (T - w))) / 2.
    """
    updates = math.ceil(images / batch_size)
    warmup = int(config.warmup * updates) if config.warmup_images is None else config.warmup_images // batch_size
    after: LRScheduler
    if config.schedule == "cosine":
        after = CosineAnnealingLR(optimizer, updates - warmup, config.min_lr)
    else:
        after = ConstantLR(optimizer, factor=1)
    if warmup == 0:
        return after
    linear = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [linear, after], [warmup])
