"""Train a MaxViT-GAN: `accelerate launch train_gan.py [--config FILE.yaml] [--optim.lr 2e-4 ...]`; --help lists all."""

import sys

from maxgan.cli import parse, plain_errors
from maxgan.config import GanConfig


def main() -> int:
    """Parse, train, and return the exit code."""
    config, name = parse(GanConfig)
    with plain_errors(preemptible=True):
        # torch takes seconds to import: not before the settings are known to be right.
        from maxgan.training.gan_run import train_gan

        return train_gan(config, name)


if __name__ == "__main__":
    sys.exit(main())
