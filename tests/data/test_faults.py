"""Random faults while recording, folding and reading: nothing that was finished is lost."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NUM_TRIALS = int(os.environ.get("KINEMA_FAULT_TRIALS", "24"))
"""KINEMA_FAULT_TRIALS=200 for the whole benchmark, three minutes."""


@pytest.mark.skipif(sys.platform == "win32", reason="forks and limits of processes are those of POSIX")
def test_no_trial_of_faults_loses_an_episode() -> None:
    program = Path(__file__).with_name("faulty_recording.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    # Not below pytest's folder, which is closed to the other user that some of the sessions become.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        command = [sys.executable, str(program), folder, str(NUM_TRIALS), "0"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == {}
    assert result["trials"] == NUM_TRIALS
    assert result["episodes"] > NUM_TRIALS
