"""Train a MaxViT-GAN: `accelerate launch train_gan.py [--config FILE.yaml] [--optim.lr 2e-4 ...]`; --help lists all."""

import sys

from maxgan.cli import fail, parse
from maxgan.config import GanConfig


def main() -> int:
    """Parse, train, and return the exit code."""
    config, name = parse(GanConfig)
    # torch takes seconds to import: not before the settings are known to be right.
    from maxgan.training.gan_run import train_gan

    try:
        return train_gan(config, name)
    except (ValueError, OSError) as error:
        fail(str(error), code=1)


if __name__ == "__main__":
    sys.exit(main())
