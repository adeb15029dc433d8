"""Train a classifier: `accelerate launch train_classifier.py [--config FILE.yaml] [--optim.lr 1e-3]`; --help: all.

`train_classifier.py --evaluate FILE --test SET` prints the accuracy of a trained one.
"""

import shlex
import sys
from pathlib import Path

from maxgan.cli import fail, parse
from maxgan.config import ClassifierConfig


def main() -> int:
    """Parse, train or measure, and return the exit code."""
    config, name = parse(ClassifierConfig)
    # torch takes seconds to import: not before the settings are known to be right.
    from maxgan.training.classifier_run import evaluate_classifier, train_classifier

    try:
        if config.evaluate is not None:
            return evaluate_classifier(config)
        return train_classifier(
            config, name, shlex.join(["accelerate", "launch", Path(sys.argv[0]).name, *sys.argv[1:]])
        )
    except (ValueError, OSError) as error:
        fail(str(error), code=1)


if __name__ == "__main__":
    sys.exit(main())
