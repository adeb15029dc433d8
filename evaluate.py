"""Score a generator, or a folder or zip of images, against reference images: `evaluate.py --fakes FILE`; --help lists
all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from maxgan.cli import fail, parse
from maxgan.config import DataConfig, EvaluateConfig
from maxgan.evaluation.evaluate import is_generator, score_generator, score_images
from maxgan.evaluation.extractors import load_extractor
from maxgan.evaluation.protocols import Scores
from maxgan.files import atomic_path
from maxgan.runtime import start
from maxgan.sampling import load_generator, newest_export


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and score; a user's mistake ends in one sentence."""
    config, _ = parse(EvaluateConfig, argv)
    accelerator = start(config.threads, cpu=config.cpu)
    try:
        scores = evaluate(config, accelerator)
        accelerator.print(scores.table())
        if config.output is not None and accelerator.is_main_process:
            with atomic_path(config.output) as path:
                path.write_text(scores.to_json())
    except (ValueError, OSError) as error:
        fail(str(error), code=1)
    accelerator.end_training()


def evaluate(config: EvaluateConfig, accelerator: Accelerator) -> Scores:
    """Return the scores that `config` asks for; every process must call this."""
    extractor = load_extractor(config.extractor)
    fakes = Path(config.fakes) if config.fakes is not None else newest_export()
    with tqdm(unit=" images", leave=False, disable=not accelerator.is_main_process) as bar:
        if not is_generator(fakes):
            # Both are cut to what the extractor looks at, so that sets of mixed sizes can be compared.
            reals, images = (
                DataConfig(source=source, resolution=extractor.resolution, channels=extractor.channels)
                for source in (config.reference, str(fakes))
            )
            return score_images(images, reals, extractor, accelerator, bar.update)
        accelerator.print(f"scoring {fakes}")
        generator = load_generator(fakes, accelerator.device)
        reference = DataConfig(source=config.reference, resolution=generator.resolution, channels=generator.channels)
        name = str(fakes)
        return score_generator(
            generator, name, reference, extractor, accelerator, config.n, config.seed, bar.update, config.truncation
        )


if __name__ == "__main__":
    main()
