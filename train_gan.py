"""Train a MaxViT-GAN: `accelerate launch train_gan.py [--config FILE.yaml] [--optim.lr 2e-4 ...]`; --help lists all settings."""

import sys

from maxgan.cli import fail, parse
from maxgan.config import GanConfig


def main() -> int:
    config, name = parse(GanConfig)
    from maxgan.training.gan_run import train_gan  # torch takes seconds to import: not before the settings are known to be right

    try:
        return train_gan(config, name)
    except (ValueError, OSError) as error:
        fail(str(error), code=1)


if __name__ == "__main__":
    sys.exit(main())
