"""Score a generator, or images, against reference images: `evaluate.py --fakes FILE`; --help lists all."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

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
    fakes = Path(config.fakes) if config.fakes is not None else newest_export()
    generator = load_generator(fakes, accelerator.device) if is_generator(fakes) else None
    if generator is None and not fakes.is_dir() and not zipfile.is_zipfile(fakes) and str(fakes) not in DIGITS:
        raise ValueError(f"fakes {fakes} is neither a generator (.safetensors), nor a folder, zip or npz of images")
    # Images are taken for digits, unless a published protocol says that they are others.
    source = "" if config.protocol is not None else "digits"
    if generator is not None:
        source = str(getattr(generator, "info", {}).get("source", ""))
    with tqdm(unit=" images", leave=False, disable=not accelerator.is_main_process) as bar:
        scorer = make_scorer(
            config,
            source,
            accelerator,
            str(fakes) if generator is None else generator,
            progress=bar.update,
            batch_size=config.batch_size,
        )
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
            return scorer.score_images(str(fakes))
        return scorer.score_generator(generator, str(fakes), config.n, config.seed, config.truncation)


if __name__ == "__main__":
    main()
