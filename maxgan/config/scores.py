"""What images are scored by, and the commands that draw and score them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Metric = Literal[
    "frechet",
    "spatial_frechet",
    "half_split",
    "inception_score",
    "kernel",
    "precision_recall",
    "density_coverage",
    "class_frechet",
    "accuracy",
]


@dataclass(frozen=True)
class ScoreConfig:
    """What images are scored by."""

    protocol: str | None = None
    """`fid50k-train-2015-clean`, `fid50k-train-2015-tf1`, `adm-train-npz`, `hit-val50k`, or `fd-NAME` of a classifier;
    unset: that of the extractor."""
    extractor: str | None = None
    """`digits` or `cifar10` (embedded), the file of a classifier exported by train_classifier.py, `dinov2` with
    weights, or `inception-2015-torchscript` beside a protocol of the Inception of 2015; unset: the protocol's, else
    `digits` for the digits, none else."""
    weights: str | None = None
    """File of the weights of a published extractor, such as Inception; unset: where they are usually downloaded to."""
    trust_weights: bool = False
    """Take weights with another checksum than the published, which a score then names; a TorchScript archive is code,
    and must be your own."""
    reference: str | None = None
    """Images to compare with: `digits`, whatever data.source takes (a folder, zip, npz, shards), or an npz of their
    statistics; unset: all digits for the digits, else what was trained on, unless the protocol says otherwise."""
    metrics: tuple[Metric, ...] | None = None
    """What is computed; unset: what the protocol names. Besides, `class_frechet` gives the distance within each
    class."""
    labels: Literal["reference", "uniform"] = "reference"
    """Classes of a generator's samples: as often as the reference shows them, or drawn uniformly."""
    resamples: int = 0
    """Resamplings of the fakes for the deviation of the Fréchet distance; 0 for none."""
    extrapolation_points: int = 0
    """Numbers of fakes from which the Fréchet distance is extrapolated to infinitely many (15 in arXiv 1911.07023); 0
    for none."""
    cache: str | None = None
    """Folder of the references' statistics; unset: maxgan in the user's cache folder; `off` keeps none."""
    refresh: bool = False
    """Compute the reference's statistics anew, and keep those."""

    def __post_init__(self) -> None:
        if self.resamples < 0 or self.extrapolation_points < 0:
            raise ValueError(
                "resamples and extrapolation_points must be 0 or more, not "
                f"{self.resamples} and {self.extrapolation_points}"
            )
        if self.metrics is not None and not self.metrics:
            raise ValueError("metrics must name at least one, or be unset for those of the protocol")


@dataclass(frozen=True)
class EvaluationConfig(ScoreConfig):
    """Scores along a training and at its end."""

    enabled: bool = True
    """Score the result at the end."""
    images: int | None = None
    """Number of samples; unset: the protocol's, or as many as the reference has, at most 50,000."""
    every: int = 0
    """Images from one score to the next along the training, of which the best generator is kept; 0 scores the result
    alone."""
    held_out: str | None = None
    """Images that are not trained on, whatever data.source takes, with the same classes: at each score D tells them and
    as many training images from samples, and where it has learned by heart it does worse on them; unset: `digits-test`
    for `digits-train`, none else."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out is not None and not self.enabled:
            raise ValueError(
                f"evaluation.held_out {self.held_out} is looked at with the scores: set evaluation.enabled, or leave "
                "it out"
            )
        if self.every < 0 or (self.every and not self.enabled):
            raise ValueError(f"evaluation.every must be 0 or more, and 0 without evaluation.enabled, not {self.every}")
        if self.every and self.metrics is not None and "frechet" not in self.metrics:
            raise ValueError(
                "evaluation.every keeps the generator of the least Fréchet distance: add frechet to metrics"
            )
        if self.images is not None and self.images < 2:
            raise ValueError(f"evaluation.images must be at least 2, not {self.images}")


@dataclass(frozen=True)
class SampleConfig(ScoreConfig):
    """Draw images from a trained generator, without any argument from that of the newest run; and score them, if a
    reference is named."""

    n: int = 64
    """Number of images."""
    model: str | None = None
    """Generator: file, folder, or Hugging Face Hub repository; unset: runs/*/generator.safetensors written last."""
    output: str | None = None
    """Where the images go: a folder of PNGs, a .zip or an .npz; unset: samples/<run name>."""
    seed: int = 0
    """Seed of the first image; the others follow one by one. A seed always gives the same image."""
    classes: str | None = None
    """Classes to draw in turn, such as "3,5"; unset: all at random."""
    truncation: float | None = None
    """Fewer oddities, less variety: of a generator with a mapping, the factor by which its latents differ from their
    mean, such as 0.7; of others, the value at which the normal distribution of latents is cut; unset: neither."""
    batch_size: int = 64
    """Images at once on each process."""
    grid: str | None = None
    """PNG file for one picture of the first images."""
    grid_columns: int = 8
    """Columns, and at most as many rows, of that picture."""
    scores: str | None = None
    """JSON file for the scores; unset: only the table is printed."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""
    overwrite: bool = False
    """Replace the samples that are there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is None:
            given = [field.name for field in fields(ScoreConfig) if getattr(self, field.name) != field.default]
            if given := [*given, *(["scores"] if self.scores else [])]:
                raise ValueError(f"scores need images to compare with: set reference, or leave {', '.join(given)} out")
        for name, least in (("n", 1), ("seed", 0), ("batch_size", 1), ("grid_columns", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.grid is not None and not self.grid.lower().endswith(".png"):
            raise ValueError(f"grid must be a .png file, not {self.grid}")


@dataclass(frozen=True)
class EvaluateConfig(ScoreConfig):
    """Score a generator, or images, against reference images."""

    fakes: str | None = None
    """What is scored: a generator file, or images as data.source takes them (a folder, zip, npz, tar shards, parquet,
    `hf:OWNER/NAME`); unset: the newest run's generator."""
    n: int | None = None
    """Number of samples of a generator; unset: the protocol's, or as many as the reference has, at most 50,000."""
    seed: int = 0
    """Seed of the first sample."""
    truncation: float | None = None
    """Factor towards the mean latent with a mapping, else the value at which latents are cut; unset: neither."""
    batch_size: int = 128
    """Images at once on each process."""
    output: str | None = None
    """JSON file for the scores with their protocol; unset: only the table is printed."""
    save_reference: str | None = None
    """npz file for the reference's statistics, in the layout of ADM and clean-fid (mu, sigma, feats)."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is not None and self.n < 2:
            raise ValueError(f"n must be at least 2, not {self.n}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.save_reference is not None and not self.save_reference.endswith(".npz"):
            raise ValueError(f"save_reference must be an .npz file, not {self.save_reference}")
