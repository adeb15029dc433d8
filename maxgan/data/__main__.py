"""`python -m maxgan.data pack SOURCE DEST --resolution 128 ...`: images cut to size once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from maxgan.cli import fail, parse, plain_errors
from maxgan.config import PackConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and pack; a user's mistake ends in one sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] != ["pack"]:
        fail("usage: python -m maxgan.data pack SOURCE DEST --resolution 128 [...]; pack --help lists all")
    config, _ = parse(PackConfig, _named(arguments[1:]))
    with plain_errors():
        # torch takes seconds to import: not before the settings are known to be right.
        from maxgan.data.pack import pack

        print(pack(config).describe(config.dest))


def _named(arguments: list[str]) -> list[str]:
    """The arguments with the first two as flags, where they are none."""
    named = []
    for flag in ("--source", "--dest"):
        if arguments and not arguments[0].startswith("-"):
            named += [flag, arguments.pop(0)]
    return named + arguments


if __name__ == "__main__":
    main()
