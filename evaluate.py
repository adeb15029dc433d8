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
    if config.output is not None and Path(config.output).is_dir():
        raise ValueError(f"output {config.output} is a folder: name a .json file in it")
    fakes = config.fakes if config.fakes is not None else str(newest_export())
    generator = load_generator(Path(fakes), accelerator.device) if is_generator(Path(fakes)) else None
    drawn = (config.n, config.truncation, config.seed, config.labels)
    if generator is None and drawn != (None, None, 0, "reference"):
        raise ValueError(
            f"n, truncation, seed and labels say how to draw from a generator, and {fakes} is none: leave them out"
        )
    if generator is not None:
        source = str(getattr(generator, "info", {}).get("source", ""))
    else:
        # What other images are compared by is their user's choice: FD-digits of photographs would mean nothing.
        ours = config.protocol is None and config.extractor in (None, "digits")
        source = "digits" if ours and config.reference in (None, *DIGITS) else ""
    scorer = make_scorer(
        config, source, accelerator, fakes if generator is None else generator, batch_size=config.batch_size
    )
    accelerator.print(f"scoring {fakes}")
    with scorer.showing():
        if config.save_reference is not None:
            with together():
                if accelerator.is_main_process and Path(config.save_reference).exists():
                    raise ValueError(
                        f"save_reference {config.save_reference} exists: name another file, or remove that one"
                    )
            real = scorer.real
            with together():
                if accelerator.is_main_process:
                    save_reference(config.save_reference, real, scorer.extractor.resize)
        if generator is None:
            return scorer.score_images(fakes)
        return scorer.score_generator(generator, fakes, config.n, config.seed, config.truncation)


if __name__ == "__main__":
    main()
