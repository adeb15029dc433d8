"""A headless browser for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless import BROWSERS, Browser, find_browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the path")
    with Browser(path, tmp_path / "profile") as opened:
        yield opened
