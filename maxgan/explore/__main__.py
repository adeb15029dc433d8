"""`python -m maxgan.explore classes | interpolate | neighbours | invert IMAGE`: pictures of a latent space."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from maxgan.cli import fail, parse, plain_errors
from maxgan.config import ClassSheetConfig, InterpolateConfig, InvertConfig, NeighboursConfig

COMMANDS: dict[str, type[Any]] = {
    "classes": ClassSheetConfig,
    "interpolate": InterpolateConfig,
    "neighbours": NeighboursConfig,
    "invert": InvertConfig,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and make the picture; a user's mistake ends in one sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else ""
    if command not in COMMANDS:
        fail(f"usage: python -m maxgan.explore {'|'.join(COMMANDS)} [...]; COMMAND --help lists all")
    if command == "invert" and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--image")
    config, _ = parse(COMMANDS[command], arguments)
    with plain_errors():
        print(_function(command)(config))


def _function(command: str) -> Callable[[Any], str]:
    # torch takes seconds to import: not before the settings are known to be right.
    from maxgan.explore import classes, interpolate, invert, neighbours

    functions: dict[str, Callable[[Any], str]] = {
        "classes": classes.make_sheet,
        "interpolate": interpolate.make_interpolation,
        "neighbours": neighbours.show_neighbours,
        "invert": invert.invert_image,
    }
    return functions[command]


if __name__ == "__main__":
    main()
