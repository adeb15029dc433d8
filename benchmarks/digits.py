"""Judge a digits generator by means that share nothing with its training or with FD-digits.

    python benchmarks/digits.py runs/*/generator.safetensors

Prints, for every generator: the share of class-conditional samples that a support vector machine of scikit-learn,
trained on the 1,437 training digits, recognises as their class; and the mean and median distance (Euclidean, pixels in
[0, 1]) from a sample to the nearest training digit, beside that of the 360 held-out digits: a generator that memorises
would be nearer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from maxgan.config import DataConfig
from maxgan.data.loader import ImageDataset
from maxgan.evaluation.neighbours import nearest_distances
from maxgan.sampling import generate, load_generator

SAMPLES = 1797


def pixels(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images of a source as `(N, 256)` in [0, 1], and their labels."""
    dataset = ImageDataset(DataConfig(source=source))
    images = np.stack([dataset.read(i) for i in range(len(dataset))])
    assert dataset.labels is not None
    return images.reshape(len(images), -1) / 255, dataset.labels


def judge(path: Path) -> dict[str, float]:
    """Return accuracy and distances of the first 1,797 samples of a generator, and those of the held-out digits."""
    train, train_labels = pixels("digits-train")
    test, test_labels = pixels("digits-test")
    machine = SVC(C=10).fit(train, train_labels)
    generator = load_generator(path)
    batches = list(generate(generator, range(SAMPLES), 256, "cpu"))
    samples = torch.cat([batch.images for batch in batches]).flatten(1).numpy() / 255
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None]).numpy()
    near = nearest_distances(samples, train).numpy()
    held_out = nearest_distances(test, train).numpy()
    return {
        "accuracy": float((machine.predict(samples) == labels).mean()),
        "accuracy_held_out": float((machine.predict(test) == test_labels).mean()),
        "nearest_mean": float(near.mean()),
        "nearest_mean_held_out": float(held_out.mean()),
        "nearest_median": float(np.median(near)),
        "nearest_median_held_out": float(np.median(held_out)),
    }


def main() -> None:
    """Judge every generator named on the command line."""
    for name in sys.argv[1:]:
        print(name)
        for key, value in judge(Path(name)).items():
            print(f"  {key:<24} {value:.4f}")


if __name__ == "__main__":
    main()
