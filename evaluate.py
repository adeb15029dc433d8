"""Score a generator, or images, against reference images: `evaluate.py --fakes FILE`; --help lists all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from maxgan.checkpoint import together
from maxgan.cli import parse, plain_errors
from maxgan.config import EvaluateConfig
from maxgan.data.sources import DIGITS
from maxgan.evaluation.comparison import Scores
from maxgan.evaluation.evaluate import is_generator, make_scorer, report
from maxgan.evaluation.reference import save_reference
from maxgan.files import refuse_existing
from maxgan.runtime import start
from maxgan.sampling import load_generator, newest_export


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and score; a user's mistake ends in one sentence."""
    config, _ = parse(EvaluateConfig, argv)
    accelerator = start(config.threads, cpu=config.cpu)
    with plain_errors():
        report(evaluate(config, accelerator), config.output, accelerator)
    accelerator.end_training()


def evaluate(config: EvaluateConfig, accelerator: Accelerator) -> Scores:
    """Return the scores that `config` asks for; every process must call this."""
    fakes = config.fakes if config.fakes is not None else str(newest_export())
    generator = load_generator(Path(fakes), accelerator.device) if is_generator(Path(fakes)) else None
    if generator is None and (config.n is not None or config.truncation is not None):
        raise ValueError(f"n and truncation are for a generator, and {fakes} is none: leave them out")
    if generator is not None:
        source = str(getattr(generator, "info", {}).get("source", ""))
    else:
        # What other images are compared by is their user's choice: FD-digits of photographs would mean nothing.
        source = "digits" if config.protocol is None and config.reference in (None, *DIGITS) else ""
    scorer = make_scorer(
        config, source, accelerator, fakes if generator is None else generator, batch_size=config.batch_size
    )
    with scorer.showing():
        if config.save_reference is not None:
            with together():
                if accelerator.is_main_process:
                    refuse_existing(Path(config.save_reference))
            real = scorer.real
            with together():
                if accelerator.is_main_process:
                    save_reference(config.save_reference, real, scorer.extractor.resize)
        accelerator.print(f"scoring {fakes}")
        if generator is None:
            return scorer.score_images(fakes)
        return scorer.score_generator(generator, fakes, config.n, config.seed, config.truncation)


if __name__ == "__main__":
    main()
