"""Training of a classifier: one update, with its augmentation, its learning rate and what weight decay spares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from maxgan.config import AffineConfig, ClassifierConfig, ClassifierOptimConfig, ImageFacts
from maxgan.data.transforms import to_float
from maxgan.models import MaxViT

Batch = tuple[Tensor, Tensor]
# Beside what the data loader draws from the same seed, so that no two uses share a stream.
AFFINE = 2


class ClassifierTrainer:
    """A classifier with its optimiser and schedule, and one update of them.

    The affine changes of an update are drawn for the whole global batch from (seed, update) alone, and each process
    takes its slice: they don't depend on the number of processes, and nothing of them need be saved.

    Args:
        config: the settings.
        facts: of the images, with at least 2 classes.
        accelerator: made with step_scheduler_with_optimizer=False, or it would step the schedule once for each process.

    Attributes:
        images_seen: training images seen so far.

    Raises:
        ValueError: if the backbone doesn't fit the images.
    """

    def __init__(self, config: ClassifierConfig, facts: ImageFacts, accelerator: Accelerator) -> None:
        assert not accelerator.step_scheduler_with_optimizer
        self.config = config
        self.accelerator = accelerator
        self.images_seen = 0
        training = config.training
        torch.manual_seed(training.seed)
        network = MaxViT(facts.resolution, facts.channels, facts.num_classes, config=config.backbone)
        network.to(accelerator.device).to(memory_format=torch.channels_last)
        # From here on the random state serves stochastic depth, which must differ among the processes.
        torch.manual_seed(training.seed + accelerator.process_index)
        optimizer = torch.optim.AdamW(parameter_groups(network, config.optim.weight_decay), config.optim.lr)
        schedule = make_schedule(optimizer, config.optim, math.ceil(training.images / training.batch_size))
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

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Do one update; take `accumulation` micro-batches from `batches`.

        Returns:
            Detached scalars of this process's share, on the device.
        """
        accelerator, optim = self.accelerator, self.config.optim
        parts = self.config.training.accumulation
        micro = [next(batches) for _ in range(parts)]
        changes = self._affine_changes(len(micro[0][0]))
        total = {name: torch.zeros((), device=accelerator.device) for name in ("loss", "accuracy")}
        for i, ((images, labels), change) in enumerate(zip(micro, changes, strict=True)):
            x, labels = self._to_input(images, change), labels.to(accelerator.device, non_blocking=True)
            with accelerator.no_sync(self.network) if i + 1 < parts else nullcontext():
                logits = self.network(x)
                loss = F.cross_entropy(logits, labels, label_smoothing=optim.label_smoothing)
                accelerator.backward(loss / parts)
            total["loss"] += loss.detach() / parts
            total["accuracy"] += (logits.argmax(1) == labels).float().mean() / parts
        if optim.gradient_clip is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), optim.gradient_clip)
        total["learning_rate"] = torch.tensor(self.schedule.get_last_lr()[0], device=accelerator.device)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.images_seen += self.config.training.batch_size
        return total

    def state(self) -> dict[str, Tensor]:
        """Return nothing: the accelerator saves network, optimiser, schedule and random states."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        assert not tensors, sorted(tensors)

    def _affine_changes(self, part: int) -> list[Tensor]:
        """Return `(part, 4)` numbers in [-1, 1) for every micro-batch of this process in this update."""
        training = self.config.training
        rng = np.random.default_rng((training.seed, AFFINE, self.update))
        drawn = torch.from_numpy(rng.uniform(-1, 1, (training.batch_size, 4)).astype(np.float32))
        share = training.accumulation * part
        return list(drawn[self.accelerator.process_index * share :][:share].split(part))

    def _to_input(self, images: Tensor, change: Tensor) -> Tensor:
        device, affine = self.accelerator.device, self.config.affine
        x = to_float(images.to(device, non_blocking=True))
        if affine.rotate or affine.scale or affine.shift:
            x = change_affine(x, change.to(device, non_blocking=True), affine)
        return x.contiguous(memory_format=torch.channels_last)


def change_affine(images: Tensor, change: Tensor, config: AffineConfig) -> Tensor:
    """Rotate, scale and shift each image by its own amounts (bilinear): torchvision's `affine`, which has one for all.

    Args:
        images: `(N, C, H, H)` in [-1, 1]; what comes in from outside is -1.
        change: `(N, 4)` in [-1, 1], as fractions of the largest rotation, scale and shifts to the right and down.
        config: the largest changes.
    """
    angle = change[:, 0] * math.radians(config.rotate)
    cos, sin = angle.cos(), angle.sin()
    # From a place in the result to that in the image, in coordinates that span 2 from side to side.
    linear = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2) / (1 + change[:, 1] * config.scale).view(-1, 1, 1)
    shift = 2 * config.shift * change[:, 2:, None]
    places = F.affine_grid(torch.cat([linear, -linear @ shift], 2), list(images.shape), align_corners=False)
    # grid_sample pads with 0, which is to be black.
    return F.grid_sample(images + 1, places, align_corners=False) - 1


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's two groups: kernels with weight decay; biases, norms and relative-position tables without."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in network.named_parameters():
        groups[parameter.ndim <= 1 or name.endswith("relative_bias")].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def make_schedule(optimizer: torch.optim.Optimizer, config: ClassifierOptimConfig, updates: int) -> LRScheduler:
    """Return the schedule of `updates` updates: linear warm-up, then a cosine (arXiv 1608.03983, without restarts).

    With w = floor(warmup * updates), update t (from 0) has lr * (t + 1) / (w + 1) up to t = w, and from there
    min_lr + (lr - min_lr) * (1 + cos(pi * (t - w) / (updates - w))) / 2.
    """
    warmup = int(config.warmup * updates)
    cosine = CosineAnnealingLR(optimizer, updates - warmup, config.min_lr)
    if warmup == 0:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [linear, cosine], [warmup])
