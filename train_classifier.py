"""Train a classifier: `accelerate launch train_classifier.py [--config FILE.yaml] [--optim.lr 1e-3]`; --help: all.

`train_classifier.py --evaluate FILE --test SET` prints the accuracy of a trained one.
"""

import shlex
import sys
from pathlib import Path

from maxgan.cli import parse, plain_errors
from maxgan.config import ClassifierConfig


def main() -> int:
    """Parse, train or measure, and return the exit code."""
    config, name = parse(ClassifierConfig)
    with plain_errors(preemptible=True):
        # torch takes seconds to import: not before the settings are known to be right.
        from maxgan.training.classifier_run import evaluate_classifier, train_classifier

        if config.evaluate is not None:
            return evaluate_classifier(config)
        command = shlex.join(["accelerate", "launch", Path(sys.argv[0]).name, *sys.argv[1:]])
        return train_classifier(config, name, command)


if __name__ == "__main__":
    sys.exit(main())
