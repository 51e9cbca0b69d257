"""Benchmarks run: nothing else tells when what they call has changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("option", ["--decode", "--no-decode"])
def test_without_a_cache_the_same_comes_out(option: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "streaming.py")]
    options = ["--streams", "2", "--steps", "3", "--precision", "float32", option]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "no-cache" in line)
    assert re.search(r"kinema is \d+\.\dx as fast", line)
    found = re.search(r"differ by (\S+)", line)
    assert found is not None
    assert float(found[1]) < (0.05 if option == "--decode" else 1e-4)


def test_sampling_compares_its_objectives() -> None:
    command = [sys.executable, str(BENCHMARKS / "sampling.py"), "--updates", "5", "--batch", "16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.count("%") == 3]
    assert [row[:2] for row in rows] == [
        [objective, calls]
        for objective in ("distance", "mean", "shortcut", "score")
        for calls in ("1", "2", "4", "16")
    ]
    for row in rows:
        assert sum(float(share.rstrip("%")) for share in row[2:]) == pytest.approx(100.0, abs=0.2)


def test_an_accelerator_is_measured_against_the_cpu() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--widths", "64"]
    options = ["--heights", "32", "--sessions", "1", "2", "--batch", "2", "--repeats", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of the matrix rate" in done.stdout
    assert "32 pixels, 2 sessions" in done.stdout
    assert "at most 0 grey levels from the CPU" in done.stdout
