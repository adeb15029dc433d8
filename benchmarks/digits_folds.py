"""Five-fold cross-validation of the backbone on scikit-learn's 1,797 digits: `python benchmarks/digits_folds.py`.

Each fold trains on four fifths with the settings of `train_classifier.py` but for the number of images, and is measured
on the fifth that it has not seen, by the same code. Prints every fold's accuracy and their mean, writes
FOLDER/folds.json, and goes on where it was stopped. The folds are stratified by class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from maxgan.config import ClassifierConfig, DataConfig, RunConfig, TrainingConfig
from maxgan.data.sources import open_source
from maxgan.files import atomic_path
from maxgan.training.classifier_run import train_classifier
from maxgan.training.run import SCORES

FOLDS = 5


def write_images(indices: np.ndarray, folder: Path) -> None:
    """Write some of the digits as class folders of PNGs of 16 px."""
    digits = open_source("digits")
    assert digits.labels is not None
    for index in indices.tolist():
        file = folder / str(digits.labels[index]) / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(file)


def main() -> int:
    """Train and measure all folds; return the exit code of a training that a signal stopped, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60_000, help="images seen in the training of one fold")
    parser.add_argument("--folder", type=Path, default=Path("runs/digits_folds"), help="where images and runs go")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; unset: all cores")
    arguments = parser.parse_args()
    labels = open_source("digits").labels
    assert labels is not None
    accuracies: list[float] = []
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels)
    for fold, parts in enumerate(splits):
        folder: Path = arguments.folder / f"fold-{fold}"
        for name, indices in zip(("train", "test"), parts, strict=True):
            write_images(indices, folder / name)
        config = ClassifierConfig(
            data=DataConfig(source=str(folder / "train")),
            test=str(folder / "test"),
            training=TrainingConfig(images=arguments.images, batch_size=64),
            run=RunConfig(
                directory=str(folder / f"run-{arguments.images}"),
                sample_every=0,
                checkpoint_every=16_000,
                tracker="none",
                threads=arguments.threads,
            ),
        )
        if code := train_classifier(config):
            return code
        scores = json.loads((folder / f"run-{arguments.images}" / SCORES).read_text())
        accuracies.append(scores["top1"])
        print(f"fold {fold}: {100 * scores['top1']:.2f} % of {scores['images']} digits")
    mean, spread = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    print(f"mean of {FOLDS} folds: {100 * mean:.2f} %, standard deviation {100 * spread:.2f}")
    with atomic_path(arguments.folder / "folds.json") as path:
        path.write_text(json.dumps({"images": arguments.images, "top1": accuracies, "mean": mean}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
