"""The commands that look at a finished run: explore, report, posthoc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maxgan.config.checks import WIDEST, at_least
from maxgan.config.scores import ScoreConfig


@dataclass(frozen=True)
class ExploreConfig:
    """What all commands of `python -m maxgan.explore` share."""

    model: str | None = None
    """Generator: file, folder, or Hugging Face Hub repository; unset: runs/*/generator.safetensors written last."""
    output: str | None = None
    """The picture, which is replaced if it is there; unset: one named after the command beside the generator."""
    seed: int = 0
    """Seed of the first latent; the others follow one by one."""
    batch_size: int = 64
    """Images at once."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads; unset: the cores at hand."""

    def __post_init__(self) -> None:
        at_least(self, seed=0, batch_size=1)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        self._check_output(".png")

    def _check_output(self, *suffixes: str) -> None:
        if self.output is not None and not self.output.lower().endswith(suffixes):
            raise ValueError(f"output must be a {' or '.join(suffixes)} file, not {self.output}")


@dataclass(frozen=True)
class ClassSheetConfig(ExploreConfig):
    """A sheet with a row for each class: `python -m maxgan.explore classes`.

    A column has the same latent in every row.
    """

    classes: str | None = None
    """Classes to show, such as "3,5"; unset: all, at most 100."""
    columns: int = 10
    """Samples of each class."""
    truncation: float | None = None
    """Factor towards the mean latent with a mapping, else the value at which latents are cut; unset: neither."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, columns=1)


@dataclass(frozen=True)
class InterpolateConfig(ExploreConfig):
    """A closed path through latents, as an animation and as a strip: `python -m maxgan.explore interpolate`.

    Spherical, since latents are Gaussian: a straight line would lead through lengths that none of them has.
    """

    output: str | None = None
    """The animation, a .gif, or a .webp with all colours; the strip is a .png of the same name; both are replaced;
    unset: interpolation.gif beside the generator."""
    paths: int | None = None
    """Paths side by side, each through latents of its own; unset: one for each class, at most 10, or 4 without
    classes."""
    points: int = 4
    """Latents that a path leads through before it comes back to the first."""
    frames: int = 24
    """Frames from one latent to the next."""
    fps: int = 20
    """Frames a second, from 1 to 50; a GIF counts in hundredths of a second."""
    columns: int = 12
    """Images in a row of the strip, evenly along the path."""
    classes: str | None = None
    """Classes that the paths have in turn, such as "3,5"; unset: one after the other from 0."""
    truncation: float | None = None
    """Factor towards the mean latent with a mapping, else the value at which latents are cut; unset: neither."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, points=2, frames=1, columns=1, paths=1)
        if not 1 <= self.fps <= 50:
            raise ValueError(f"fps must be from 1 to 50, not {self.fps}")

    def _check_output(self, *suffixes: str) -> None:
        super()._check_output(".gif", ".webp")


@dataclass(frozen=True)
class FeatureConfig(ExploreConfig):
    """An extractor, in whose features images are compared."""

    extractor: str | None = None
    """`digits` or `cifar10` (embedded), the file of a classifier, or a published one; unset: that of the scores of the
    generator's run, else `digits` for the digits, none else."""
    weights: str | None = None
    """File of the weights of a published extractor; unset: where they are usually downloaded to."""
    trust_weights: bool = False
    """Take weights with another checksum than the published."""
    resize: Literal["clean", "tf1"] | None = None
    """How images are resized for the extractors of 2015, `inception-2015` and `inception-2015-torchscript`."""


@dataclass(frozen=True)
class NeighboursConfig(FeatureConfig):
    """The real images nearest to samples, as a picture: `python -m maxgan.explore neighbours`.

    Shows whether a generator has learned images by heart. A .json of the same name has the distances.
    """

    n: int = 256
    """Samples that are compared."""
    rows: int = 10
    """Samples that are shown: those nearest to a real image."""
    k: int = 8
    """Real images beside each."""
    reference: str | None = None
    """The real images, as data.source names them; unset: what the generator was trained on."""
    truncation: float | None = None
    """Factor towards the mean latent with a mapping, else the value at which latents are cut; unset: neither."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, n=1, rows=1, k=1)


@dataclass(frozen=True)
class InvertConfig(FeatureConfig):
    """Find the latent whose image is nearest to a given one: `python -m maxgan.explore invert IMAGE`.

    A .json of the same name has the latents and the errors.
    """

    image: str = ""
    """The image's file; its central square is brought to the generator's resolution."""
    label: int | None = None
    """Its class; unset: any, the starts are of those that come nearest."""
    candidates: int = 512
    """Random latents, of which the best are the starts."""
    starts: int = 4
    """Latents that are optimised, each on its own."""
    steps: int = 300
    """Steps of Adam."""
    lr: float = 0.1
    """Its learning rate at the start; it falls to 0 on a cosine."""
    feature_weight: float = 1.0
    """Weight of the squared distance of features, relative to their length, beside the mean squared error of the pixels
    in [-1, 1]; without an extractor there are pixels alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise ValueError("image is missing: name the file of the image to invert")
        at_least(self, candidates=1, starts=1, steps=1, label=0)
        if self.starts > self.candidates:
            raise ValueError(f"starts must be at most candidates, not {self.starts} of {self.candidates}")
        if not self.lr > 0 or not self.feature_weight >= 0:
            raise ValueError(
                f"lr must be above 0 and feature_weight 0 or more, not {self.lr} and {self.feature_weight}"
            )


@dataclass(frozen=True)
class ReportConfig:
    """Make one self-contained HTML page for a run: `python -m maxgan.report RUN`.

    It shows samples over time, curves, scores, settings and speed, and works on an unfinished run as well.
    """

    run: str | None = None
    """The run's folder; unset: the one in `runs` that was started last."""
    output: str | None = None
    """The page, an .html file, which is replaced if it is there; unset: report.html in the run's folder."""
    neighbours: bool = False
    """First find the training images nearest to 256 samples (`maxgan.explore neighbours`), which takes every training
    image through the extractor of the run's scores."""

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.lower().endswith((".html", ".htm")):
            raise ValueError(f"output must be an .html file, not {self.output}")


@dataclass(frozen=True)
class ReconstructConfig:
    """Make a power-function average of any width from the snapshots of a run: `python -m maxgan.training.posthoc
    reconstruct RUN --sigma_rel 0.07`."""

    run: str | None = None
    """The run's folder; unset: the newest in runs/."""
    sigma_rel: float = 0.1
    """Width of the average, as a fraction of the training up to it; above 0 and below 0.2887. The snapshots serve best
    from their narrowest width on."""
    images: int | None = None
    """Images seen at its end; unset: those of the last snapshot."""
    output: str | None = None
    """The generator's file; unset: averages/power-SIGMA_REL.safetensors in the run's folder."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel < WIDEST:
            raise ValueError(f"sigma_rel must be above 0 and below {WIDEST:.4f}, not {self.sigma_rel}")
        at_least(self, images=1)


@dataclass(frozen=True)
class BestAverageConfig(ScoreConfig):
    """Score all averages of a run and find the width of a power-function average with the least Fréchet distance:
    `python -m maxgan.training.posthoc best RUN`. What is unset of the settings of scores is as the run has it."""

    run: str | None = None
    """The run's folder; unset: the newest in runs/."""
    sigma_rels: tuple[float, ...] = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28)
    """Widths that are tried first; none, where the run has no snapshots. Those of seven checkpoints miss the profile of
    0.28 by 40 %: every miss is printed, and kept in the file as profile_mismatch."""
    refine: int = 2
    """How often a width between the best so far and each of its neighbours is tried then."""
    n: int | None = None
    """Number of samples; unset: the run's evaluation.images, else the protocol's, or as many as the reference has, at
    most 50,000."""
    seed: int = 0
    """Seed of the first sample, the same for all averages. Score the result again with another: the least of many
    scores flatters."""
    batch_size: int = 128
    """Images at once on each process."""
    output: str | None = None
    """File of the best generator, its scores inside; unset: averages/best.safetensors in the run's folder. All scores
    are written beside it, as .json."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < width < WIDEST for width in self.sigma_rels):
            raise ValueError(f"sigma_rels must be above 0 and below {WIDEST:.4f}, not {list(self.sigma_rels)}")
        if self.refine < 0 or self.batch_size < 1 or (self.n is not None and self.n < 2):
            raise ValueError(
                "refine must be at least 0, batch_size at least 1 and n at least 2, not "
                f"{self.refine}, {self.batch_size}, {self.n}"
            )
        if self.metrics is not None and "frechet" not in self.metrics:
            raise ValueError("the best average is that of the least Fréchet distance: add frechet to metrics")
