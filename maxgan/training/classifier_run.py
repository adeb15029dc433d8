"""A classifier training from start to end: data, run folder, resuming, loop, export, accuracy, pictures.

And accuracy alone, of an exported classifier.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor

import maxgan
from maxgan.checkpoint import atomic_path, export_model, load_model
from maxgan.config import ClassifierConfig, ImageFacts
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.data.sources import source_name
from maxgan.data.transforms import to_float
from maxgan.models import MaxViT
from maxgan.runtime import share_of, start
from maxgan.training.classifier import ClassifierTrainer
from maxgan.training.image_augment import RandAugment
from maxgan.training.loop import Loop
from maxgan.training.pictures import plot_curves
from maxgan.training.run import CURVES, METRICS, SCORES, read_metrics
from maxgan.training.session import execute

EXPORT_NAME = "classifier.safetensors"
# After as many, BatchNorm's running statistics hold 0.1 % of their initial values; of activations with a small variance
# the initial 1 is otherwise the larger part.
SETTLED_UPDATES = 700
TEST_BATCH_SIZE = 128
# Up to so many classes, a picture of the confusion matrix has room for names and counts.
LABELLED_CLASSES = 20
PANELS = {
    "loss": ("loss",),
    "accuracy in training": ("accuracy",),
    "learning rate": ("learning_rate",),
    "speed": ("images_per_second",),
}


@dataclass(frozen=True)
class Accuracy:
    """What a classifier makes of N labelled images.

    Attributes:
        confusion: `(K, K)` int64, number of images by true class (row) and predicted class (column).
        in_top5: number of images whose class is among the five likeliest; None with fewer than 5 classes.
    """

    confusion: Tensor
    in_top5: int | None

    @property
    def images(self) -> int:
        """N."""
        return int(self.confusion.sum())

    def fractions(self) -> dict[str, float]:
        """Return `top1`, and `top5` where there are 5 classes, as fractions of the images in [0, 1]."""
        found = {"top1": int(self.confusion.trace()) / self.images}
        if self.in_top5 is not None:
            found["top5"] = self.in_top5 / self.images
        return found

    def describe(self, test: str | None) -> str:
        """One line: accuracy in percent on the images of `test`."""
        found = (f"{name.replace('top', 'top-')} {100 * value:.2f} %" for name, value in self.fractions().items())
        return f"accuracy on the {self.images:,} images of {test}: {', '.join(found)}"


@torch.no_grad()
def measure_accuracy(network: MaxViT, dataset: ImageDataset, accelerator: Accelerator) -> Accuracy:
    """Count how `network`, in eval mode on the accelerator's device, classifies every image of a labelled data set.

    Every process must call this; each takes its share, of whatever size, and all get the whole counts.
    """
    classes = network.num_classes
    # The last number is that of the images whose class is among the five likeliest.
    counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=accelerator.device)
    for images, labels in evaluation_batches(dataset, TEST_BATCH_SIZE, share_of(len(dataset), accelerator)):
        x = to_float(images.to(accelerator.device)).contiguous(memory_format=torch.channels_last)
        labels = labels.to(accelerator.device)
        likeliest = network(x).topk(min(5, classes)).indices
        counts[:-1] += torch.bincount(labels * classes + likeliest[:, 0], minlength=classes * classes)
        counts[-1] += (likeliest == labels[:, None]).sum()
    counts = accelerator.reduce(counts, reduction="sum").cpu()
    return Accuracy(counts[:-1].view(classes, classes), int(counts[-1]) if classes >= 5 else None)


class ClassifierRun:
    """A training in its folder: data, network, loop, and what is written along the way.

    Args:
        config: the settings.
        directory: the run's folder.
        accelerator: of this process.
        command: what trains it, noted in the exported file.

    Raises:
        ValueError: if the images have no labels, those of the test set are other classes, or `config.init` is no
            classifier that fits them and the settings.
    """

    def __init__(self, config: ClassifierConfig, directory: Path, accelerator: Accelerator, command: str) -> None:
        self.config = config
        self.directory = directory
        self.accelerator = accelerator
        self.command = command
        updates = config.training.images // config.training.batch_size
        least = SETTLED_UPDATES * config.training.batch_size
        if updates < SETTLED_UPDATES:
            accelerator.print(
                f"note: {updates} updates are few for BatchNorm's running statistics (momentum 0.01), so that accuracy "
                f"may be far lower than in training: raise training.images to {least:,} or more"
            )
        randaugment = RandAugment(config.mix) if config.mix.randaugment_ops else None
        self.dataset = ImageDataset(config.data, augment=randaugment)
        facts = self.dataset.facts
        accelerator.print(self.dataset.describe(accelerator.device))
        if self.dataset.labels is None:
            remedy = "sort them into class folders or add a dataset.json" if config.data.labels else "set data.labels"
            raise ValueError(f"a classifier needs labels, and the images of {config.data.source} have none: {remedy}")
        if randaugment is not None and facts.channels not in (1, 3):
            raise ValueError(
                f"RandAugment is for grey and RGB images, not for {facts.channels} channels: set data.channels to 1 or "
                "3, or mix.randaugment_ops to 0"
            )
        # Before anything long starts: a test set that can't be used is said now.
        self.test: ImageDataset | None = None
        if config.test is not None:
            names = self.dataset.source.class_names
            self.test = open_test(config, facts, names, f"data.source {config.data.source}")
        initial = None if config.init is None else load_model(config.init, expect=MaxViT)
        if initial is not None and initial.num_classes != facts.num_classes:
            accelerator.print(
                f"note: init {config.init} knows {initial.num_classes} classes and {config.data.source} has "
                f"{facts.num_classes}: its last layer starts anew"
            )
        self.trainer = ClassifierTrainer(config, facts, accelerator, initial)
        self.loop = Loop(
            config.run,
            config.training,
            config.watchdog,
            directory,
            accelerator,
            self.trainer,
            self.dataset,
            shown=("loss", "accuracy"),
            after_save=self.export,
        )

    @property
    def complete(self) -> bool:
        """Whether all is done: there are curves, and no test set, or scores.json tells of this one."""
        file = self.directory / SCORES
        if not (self.directory / CURVES).exists():
            return False
        if self.test is None or not file.exists():
            return self.test is None
        told = json.loads(file.read_text())
        return (told["test"], told["test_crop"]) == (self.config.test, self.config.test_crop)

    def export(self, accuracy: Accuracy | None = None) -> None:
        """Write the classifier in half precision, with where it comes from."""
        if not self.accelerator.is_main_process:
            return
        info: dict[str, Any] = {
            "images_seen": self.trainer.images_seen,
            "source": self.config.data.source,
            "class_names": list(self.dataset.source.class_names),
            "command": self.command,
            "maxgan": maxgan.__version__,
            "torch": str(torch.__version__),
        }
        if accuracy is not None:
            info["accuracy"] = {"test": self.config.test, "images": accuracy.images, **accuracy.fractions()}
        export_model(self.trainer.result, self.directory / EXPORT_NAME, info, torch.float16)

    def begin(self) -> None:
        """Write nothing: a classifier has no pictures at its start."""

    def finish(self) -> None:
        """Write the curves and the exported file, and measure that file's accuracy.

        scores.json comes last: it says that all is done.
        """
        if self.accelerator.is_main_process:
            plot_curves(read_metrics(self.directory / METRICS), PANELS, self.directory / CURVES)
        self.export()
        if self.test is None:
            return
        self.accelerator.wait_for_everyone()
        exported = load_model(self.directory / EXPORT_NAME, self.accelerator.device, expect=MaxViT)
        accuracy = measure_accuracy(exported.fuse(), self.test, self.accelerator)
        self.accelerator.wait_for_everyone()  # all have read the file before it is written anew
        self.accelerator.print(accuracy.describe(self.config.test))
        if self.accelerator.is_main_process:
            plot_confusion(accuracy.confusion, self.test.source.class_names, self.directory / "confusion.png")
            self.export(accuracy)
            scores = {
                "test": self.config.test,
                "test_crop": self.config.test_crop,
                "images": accuracy.images,
                **accuracy.fractions(),
                "images_seen": self.trainer.images_seen,
            }
            with atomic_path(self.directory / SCORES) as temporary:
                temporary.write_text(json.dumps(scores, indent=2) + "\n")


def open_test(
    config: ClassifierConfig, facts: ImageFacts, class_names: Sequence[str] | None, owner: str
) -> ImageDataset:
    """Open the images of `config.test`, that accuracy is measured on.

    Args:
        config: the settings.
        facts: what the classifier takes.
        class_names: those that it knows, in its order; None if only their number is known.
        owner: what has these classes, for messages.

    Raises:
        ValueError: if they can't be used, have no labels, or other classes.
    """
    assert config.test is not None
    try:
        dataset = ImageDataset(
            dataclasses.replace(
                config.data,
                source=config.test,
                labels=True,
                resolution=facts.resolution,
                channels=facts.channels,
                crop=config.test_crop,
            )
        )
    except ValueError as error:
        raise ValueError(f"the images of the setting test can't be used: {error}") from error
    if dataset.labels is None:
        raise ValueError(
            f"the images of test {config.test} have no labels to measure accuracy by: add them, or set --test null"
        )
    own = dataset.source.class_names
    named = own if class_names is None else tuple(class_names)
    if own != named or len(own) != facts.num_classes:
        odd = sorted(set(own) ^ set(named))
        what = f"{odd[0]!r} is a class of only one of them" if odd else "their order differs"
        raise ValueError(
            f"test {config.test} has {len(own)} classes and {owner} has {facts.num_classes}"
            f"{f' ({what})' if own != named else ''}: give both the same classes, or set --test null"
        )
    return dataset


def evaluate_classifier(config: ClassifierConfig) -> int:
    """Print top-1 and top-5 of the classifier file `config.evaluate` on the images of `config.test`; return 0.

    Where the file doesn't name its classes (weights from elsewhere), they must be those of the images, in their order.

    Raises:
        ValueError: if the file holds no classifier, or the images don't suit it.
    """
    assert config.evaluate is not None
    accelerator = start(config.run.threads)
    network = load_model(config.evaluate, accelerator.device, expect=MaxViT)
    facts = ImageFacts(network.resolution, network.channels, network.num_classes)
    test = open_test(config, facts, network.info.get("class_names"), f"the classifier {config.evaluate}")
    accelerator.print(test.describe())
    accelerator.print(measure_accuracy(network.fuse(), test, accelerator).describe(config.test))
    accelerator.end_training()
    return 0


def plot_confusion(confusion: Tensor, class_names: tuple[str, ...], path: Path, dpi: int = 110) -> None:
    """Write a PNG of a confusion matrix `(K, K)` of counts: true classes down, predicted ones across."""
    share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    labelled = len(class_names) <= LABELLED_CLASSES
    side = max(4.0, 0.45 * len(class_names)) if labelled else 8.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    correct = int(confusion.trace())
    axes.set_title(f"{correct:,} of {int(confusion.sum()):,} correct", fontsize=10)
    if labelled:
        axes.set_xticks(range(len(class_names)), class_names, rotation=0 if max(map(len, class_names)) < 4 else 90)
        axes.set_yticks(range(len(class_names)), class_names)
        for row, column in confusion.nonzero().tolist():
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=colour, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def train_classifier(config: ClassifierConfig, config_name: str | None = None, command: str = "") -> int:
    """Train a classifier in its run folder, or go on with it; return the process's exit code (see `session.execute`).

    Args:
        config: the settings.
        config_name: name of the config file, for the folder's name.
        command: the command line, noted in the exported file.
    """
    name = config_name or f"{source_name(config.data.source)}_classifier"
    return execute(
        config,
        name,
        lambda directory, accelerator: ClassifierRun(config, directory, accelerator, command),
        step_scheduler_with_optimizer=False,
    )
