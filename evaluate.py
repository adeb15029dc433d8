"""Score a generator, or images, against reference images: `evaluate.py --fakes FILE`; --help lists all."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from maxgan.cli import parse, plain_errors
from maxgan.config import DataConfig, EvaluateConfig
from maxgan.evaluation.evaluate import (
    default_extractor,
    default_reference,
    is_generator,
    score_generator,
    score_images,
)
from maxgan.evaluation.extractors import load_extractor
from maxgan.evaluation.protocols import Scores
from maxgan.files import atomic_path
from maxgan.runtime import start
from maxgan.sampling import load_generator, newest_export


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and score; a user's mistake ends in one sentence."""
    config, _ = parse(EvaluateConfig, argv)
    accelerator = start(config.threads, cpu=config.cpu)
    with plain_errors():
        scores = evaluate(config, accelerator)
        accelerator.print(scores.table())
        if config.output is not None and accelerator.is_main_process:
            with atomic_path(config.output) as path:
                path.write_text(scores.to_json())
    accelerator.end_training()


def evaluate(config: EvaluateConfig, accelerator: Accelerator) -> Scores:
    """Return the scores that `config` asks for; every process must call this."""
    fakes = Path(config.fakes) if config.fakes is not None else newest_export()
    generator = load_generator(fakes, accelerator.device) if is_generator(fakes) else None
    if generator is None and not fakes.is_dir() and not zipfile.is_zipfile(fakes):
        raise ValueError(f"fakes {fakes} is neither a generator (.safetensors), nor a folder or a zip of images")
    source = str(getattr(generator, "info", {}).get("source", "")) if generator is not None else "digits"
    name, reference = config.extractor or default_extractor(source), config.reference or default_reference(source)
    if name is None or not reference:
        raise ValueError(
            f"{fakes} was trained on {source or 'unknown images'}, for which there is no embedded extractor: name a "
            "classifier of yours with --extractor, and the images to compare with with --reference"
        )
    extractor = load_extractor(name)
    with tqdm(unit=" images", leave=False, disable=not accelerator.is_main_process) as bar:
        if generator is None:
            # Both are cut to what the extractor looks at, so that sets of mixed sizes can be compared.
            reals, images = (
                DataConfig(source=source, resolution=extractor.resolution, channels=extractor.channels)
                for source in (reference, str(fakes))
            )
            return score_images(images, reals, extractor, accelerator, bar.update)
        accelerator.print(f"scoring {fakes}")
        data = DataConfig(source=reference, resolution=generator.resolution, channels=generator.channels)
        name = str(fakes)
        return score_generator(
            generator, name, data, extractor, accelerator, config.n, config.seed, bar.update, config.truncation
        )


if __name__ == "__main__":
    main()
