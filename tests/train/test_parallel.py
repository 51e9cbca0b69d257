"""Two processes that train together, against one."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from kinema.model.world import WEIGHTS_FILE

from ..worlds import write_exact_world


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The whole command: batches of two processes are those of one that averages over two."""
    data = write_exact_world(tmp_path / "data", lengths=(20, 18, 25, 17, 30), has_proprio=True)
    words = ["-m", "kinema", "train", str(data), "--recipe", "tiny", "--update-share", "0.02"]
    words += ["--device", "cpu", "--precision", "float32", "--name", "same"]
    one = [sys.executable, *words, "--accumulate", "2", "--out", str(tmp_path / "one")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [*launcher, *words, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (one, two):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("one", "two"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    # One process wrote the log, and what it wrote is whole.
    assert (tmp_path / "two" / "progress").is_dir()
    assert not list((tmp_path / "two" / "checkpoint").glob("frames*"))
