"""A sheet with a row for each class."""

from __future__ import annotations

import torch

from maxgan.config import ClassSheetConfig
from maxgan.explore.common import open_subject, sheet
from maxgan.sampling import latents_of, parse_classes
from maxgan.writers import save_picture

MOST_ROWS = 100


def make_sheet(config: ClassSheetConfig) -> str:
    """Write the sheet; return a sentence that says where it is.

    Raises:
        ValueError: if the generator has no classes, or not those that are named.
    """
    subject = open_subject(config, config.truncation)
    generator = subject.generator
    if not generator.num_classes:
        raise ValueError(f"{subject.name} has no classes to make rows of: draw a grid with sample.py --grid")
    classes = parse_classes(config.classes) or list(range(min(generator.num_classes, MOST_ROWS)))
    seeds = range(config.seed, config.seed + config.columns)
    rows = []
    for label in classes:
        # A seed's latent doesn't hang on its class, so a column shows one latent in all classes.
        z, labels = latents_of(seeds, generator.latent_dim, generator.num_classes, [label], truncation=subject.cut)
        rows.append(subject.draw(z, labels, config.batch_size))
    output = subject.output(config, "classes.png")
    save_picture(sheet([list(torch.unbind(row)) for row in rows], [subject.class_name(k) for k in classes]), output)
    rest = generator.num_classes - len(classes)
    left = f"; {rest} classes are left out, name them with --classes" if config.classes is None and rest else ""
    return f"{len(classes)} classes of {subject.name} are in {output}{left}"
