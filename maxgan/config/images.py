"""Facts of images, where they come from, and how they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageFacts:
    """What a network must know of its images; found in the data, never set by hand."""

    resolution: int
    """Side of the square images in pixels."""
    channels: int = 3
    """Number of image channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
    num_classes: int = 0
    """Number of classes; 0 means that there are no labels."""

    def __post_init__(self) -> None:
        if self.resolution < 8:
            raise ValueError(f"images must have at least 8 x 8 pixels, not {self.resolution}: set data.resolution")
        if not 1 <= self.channels <= 4:
            raise ValueError(f"images must have 1 to 4 channels, not {self.channels}: set data.channels")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, not {self.num_classes}")


def check_gan_resolution(resolution: int) -> None:
    """Raise ValueError unless a generator and a discriminator can have this resolution."""
    if not 8 <= resolution <= 1024 or resolution & (resolution - 1):
        raise ValueError(
            f"the resolution of a GAN must be a power of two from 8 to 1024, not {resolution}: set data.resolution"
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are cut to size."""

    source: str = "digits-train"
    """`digits`, `digits-train`, `digits-test` (embedded); a folder or zip of images; an .npz; tar shards or parquet
    files as a folder or a pattern such as `train-{000..099}.tar`; the address of one of those, or a pattern of shards'
    addresses, `https://host/train-{000..099}.tar`; or `hf:OWNER/NAME[@CONFIG][:SPLIT]`."""
    resolution: int | None = None
    """Side in pixels, for a GAN a power of two from 8 to 1024; unset: that of the images, if all are square and of one
    size, which reads all headers at the start."""
    channels: int | None = None
    """1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; unset: those of the first image."""
    labels: bool = True
    """Use the labels, if the source has any (dataset.json, class folders, .cls files, an array or a column); off
    trains without classes."""
    crop: Literal["center", "random", "resized", "whole"] = "center"
    """What is kept of the image: a central or random square; `resized`, a random rectangle of 8 to 100 % of its area
    (the Inception crop), and central in evaluation; or the `whole` of it, its sides made equal."""
    crop_fraction: float = 1.0
    """Side of a central or random square as a fraction of the shorter side, in (0, 1]."""
    flip: bool = False
    """Mirror images left to right at random."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a file that can't be read: stop and name it, or leave it out and say so, which reads every file
    at the start."""
    workers: int = 0
    """Decoding processes beside each training process; 0 decodes in it. Sets that fit in memory are decoded once, by as
    many threads."""
    streaming: bool = False
    """Read what lies at an address or on the Hugging Face Hub where it is, when it is needed; off downloads all of it
    at the first start and keeps it."""
    cache: str | None = None
    """Folder for what is kept of files at an address; unset: maxgan/downloads in the user's cache folder."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"data.crop_fraction must be in (0, 1], not {self.crop_fraction}")
        if self.workers < 0:
            raise ValueError(f"data.workers must be 0 or more, not {self.workers}")


@dataclass(frozen=True)
class PackConfig:
    """Decode, cut and resize images once: `python -m maxgan.data pack SOURCE DEST --resolution 128`.

    The same command again goes on where one was stopped.
    """

    source: str
    """The images, as data.source names them."""
    dest: str
    """A file that ends in .zip (StyleGAN's layout), or a folder of tar shards (WebDataset's)."""
    resolution: int
    """Side in pixels."""
    channels: int | None = None
    """1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; unset: those of the first image."""
    crop: Literal["center", "whole"] = "center"
    """Keep a central square, or the `whole` image, its sides made equal."""
    crop_fraction: float = 1.0
    """Side of a central square as a fraction of the shorter side, in (0, 1]."""
    labels: bool = True
    """Keep the labels, if the source has any."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a file that can't be read: stop and name it, or leave it out and report it."""
    compression: int = 0
    """Of the PNGs, 0 to 9: 0 decodes in less than half of the time, 1 takes about half of the space."""
    shard_images: int = 2048
    """Images in a tar shard, and in each of the parts that a pack is made of and a killed one keeps."""
    workers: int | None = None
    """Decoding processes; unset: one for each core."""
    streaming: bool = False
    """Read what lies at an address or on the Hugging Face Hub where it is; off downloads all of it before."""
    cache: str | None = None
    """Folder for what is kept of files at an address; unset: maxgan/downloads in the user's cache folder."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("resolution", 8, 1 << 14),
            ("channels", 1, 4),
            ("compression", 0, 9),
            ("shard_images", 1, 1 << 20),
            ("workers", 0, 1 << 10),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, not {value}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be in (0, 1], not {self.crop_fraction}")
