"""Whether the discriminator has learned its images by heart: what it says of others that it has not seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from maxgan.checkpoint import together
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.data.transforms import to_float
from maxgan.evaluation.evaluate import open_images
from maxgan.runtime import share_of
from maxgan.sampling import Generator, drawn_at_once, generate
from maxgan.training.signs import accuracy

MOST = 2000
"""Held-out images that are looked at, evenly chosen: the accuracy's error is then below a hundredth."""
BATCH_SIZE = 64


def default_held_out(source: str) -> str | None:
    """Return the images that belong to those of a training on `source` and are not among them, if any are known."""
    return "digits-test" if source == "digits-train" else None


class HeldOut:
    """Held-out images, as many training images of the same classes, and how well D tells each from as many samples.

    All are cut as for a score, and none is augmented. What is compared doesn't depend on the number of processes, and
    no random state is touched.

    Args:
        training: the images that D learns from.
        source: of others, as data.source names them.
        accelerator: of this process; every process makes one.
        group: images that D looks at together (minibatch deviation), which follow each other here too.

    Raises:
        ValueError: if the others can't be used, or have other classes.

    Attributes:
        count: held-out images.
    """

    def __init__(self, training: ImageDataset, source: str, accelerator: Accelerator, group: int = 1) -> None:
        facts = training.facts
        self.accelerator = accelerator
        self.training = training
        cut = dataclasses.replace(training.config, source=source, resolution=facts.resolution, channels=facts.channels)
        self.others = open_images(cut, "evaluation.held_out")
        if self.others.source.class_names != training.source.class_names:
            raise ValueError(
                f"evaluation.held_out {source} has {self.others.facts.num_classes} classes and "
                f"{training.config.source} has {facts.num_classes}, or their names differ: give both the same, or set "
                "data.labels false"
            )
        self.batch_size = max(group, drawn_at_once(facts.resolution, BATCH_SIZE) // group * group)
        self.count = min(len(self.others), MOST) // group * group
        if not self.count:
            raise ValueError(
                f"evaluation.held_out {source} has {len(self.others)} images, fewer than discriminator.minibatch_group "
                f"{group}: name more"
            )
        chosen = np.arange(self.count) * len(self.others) // self.count
        labels = None if self.others.labels is None else self.others.labels[chosen]
        self.chosen = chosen, same_classes(labels, training, self.count)
        self.labels = None if labels is None else torch.from_numpy(labels).to(accelerator.device)

    @torch.no_grad()
    def measure(self, discriminator: nn.Module, generator: Generator) -> dict[str, float]:
        """Return what D makes of both kinds of reals and of the samples, the same on every process; all call it.

        `discriminator_accuracy_training` and `..._held_out` are the shares of all pairs of a real, of one kind or the
        other, and a sample, the same ones for both, in which D gives the real the higher logit: what the relativistic
        loss works on, and for other losses the area under the ROC curve; 0.5 is chance. `training_logit`,
        `held_out_logit` and `sample_logit` are the mean logits: they part where the accuracies still are 1 (arXiv
        2006.06676, figure 1). The farther those of held-out images fall below those of training images, the more of
        the latter D has learned by heart.

        Args:
            discriminator: not wrapped.
            generator: in eval mode.
        """
        device = self.accelerator.device
        logits = torch.zeros(3, self.count, device=device)
        # Whole batches, so that each is the same whoever takes it, and every sum has but one number that isn't zero.
        batches = share_of(-(-self.count // self.batch_size), self.accelerator)
        first, last = batches.start * self.batch_size, min(batches.stop * self.batch_size, self.count)
        mine = slice(first, last)
        seen = [
            (images for images, _ in evaluation_batches(dataset, self.batch_size, indices[mine].tolist()))
            for dataset, indices in zip((self.others, self.training), self.chosen, strict=True)
        ]
        classes = None if self.labels is None else self.labels.tolist()
        samples = generate(generator, range(first, last), self.batch_size, device, classes)
        with together():
            for start, *kinds, batch in zip(range(first, last, self.batch_size), *seen, samples, strict=True):
                place = slice(start, start + len(batch.images))
                labels = None if self.labels is None else self.labels[place]
                for row, images in zip(logits, (*kinds, batch.images), strict=True):
                    x = to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
                    with self.accelerator.autocast():
                        row[place] = discriminator(x, labels).float()
        held_out, training, fake = self.accelerator.reduce(logits, reduction="sum")
        means = zip(("training_logit", "held_out_logit", "sample_logit"), (training, held_out, fake), strict=True)
        return {
            "discriminator_accuracy_training": accuracy(training, fake).item(),
            "discriminator_accuracy_held_out": accuracy(held_out, fake).item(),
            **{name: values.mean().item() for name, values in means},
        }


def same_classes(labels: np.ndarray | None, training: ImageDataset, count: int) -> np.ndarray:
    """Return the indices of `count` training images, evenly chosen, with the classes of `labels` `(count,)` in their
    order; any, where there are no classes.

    Raises:
        ValueError: if a class has no training image.
    """
    if labels is None or training.labels is None:
        return np.arange(count) * len(training) // count
    indices = np.empty(count, dtype=np.int64)
    for label in np.unique(labels):
        places, members = np.flatnonzero(labels == label), np.flatnonzero(training.labels == label)
        if not len(members):
            name = training.source.class_names[label]
            raise ValueError(f"evaluation.held_out has images of {name!r}, of which {training.config.source} has none")
        indices[places] = members[np.arange(len(places)) * len(members) // len(places)]
    return indices
