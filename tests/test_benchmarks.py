"""The benchmarks run, at their smallest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_gan_step_is_measured_against_its_floor(tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gan_step.py"), "--narrow=8", "--resolutions=32", "--batch=8",
        "--rounds=2", "--seconds=0.01", "--threads=1", f"--output={output}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    rows = report["rows"]
    assert [row["recipe"] for row in rows] == ["imagenet128_paper", "imagenet128_hit"]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["recipe"] in result.stdout
        assert len(row["rounds"]) == 2
        assert 0 < row["bytes_fused"] < row["bytes"]
        # Both are lower bounds of the time, so shares of one; with a margin for a machine whose speed drifts.
        assert 0 < row["of_fused"] <= row["of_floor"] < 1.5
        floor = max(row["operations"] / report["matrix_product"], row["bytes"] / report["copy"])
        assert row["of_floor"] == pytest.approx(row["images_per_second"] * floor)
