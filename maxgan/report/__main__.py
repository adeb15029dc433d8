"""`python -m maxgan.report RUN`: one self-contained HTML page for a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from maxgan.cli import parse, plain_errors
from maxgan.config import NeighboursConfig, ReportConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the page; a user's mistake ends in one sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--run")
    config, _ = parse(ReportConfig, arguments)
    with plain_errors():
        # torch takes seconds to import: not before the settings are known to be right.
        from maxgan.explore.neighbours import show_neighbours
        from maxgan.report.page import write_page
        from maxgan.report.record import newest_run, read_record
        from maxgan.sampling import EXPORT_NAME

        run = Path(config.run) if config.run is not None else newest_run()
        record = read_record(run)
        if config.neighbours:
            print(show_neighbours(NeighboursConfig(model=str(run / EXPORT_NAME))))
            record = read_record(run)
        output = Path(config.output) if config.output is not None else run / "report.html"
        write_page(record, output)
        print(f"the page of {run} is {output} ({output.stat().st_size / 1e6:.1f} MB): open it in a browser")


if __name__ == "__main__":
    main()
