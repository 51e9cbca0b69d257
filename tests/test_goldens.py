"""The bundled world stays what it is: changes of structure that touch a number are noticed here."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kinema
from kinema.data import Dataset
from kinema.evaluation import demo

GOLDENS = json.loads(Path(__file__).with_name("goldens.json").read_text())
CONTEXT = 4
WORLD = Path(kinema.__file__).parent / "worlds" / "pusht"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Frames of 2,000 simulated steps in single precision, ``T H W C``, computed on one thread."""
    world = kinema.load("pusht", device="cpu", precision="float32")
    episode = Dataset.open(WORLD / "recording").episode(0)
    actions, given = episode.columns["action"], episode.frames[world.cameras[0]][:CONTEXT]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sim = world.start(given, actions[: CONTEXT - 1])
        return np.stack([sim.step(action).frame for action in actions[CONTEXT - 1 : CONTEXT + 1999]])
    finally:
        torch.set_num_threads(num_threads)


def test_the_weights_are_the_shipped_ones() -> None:
    weights = WORLD / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == GOLDENS["weights_sha256"]


def test_a_rollout_is_the_same_to_the_bit(frames: np.ndarray) -> None:
    """Processors round differently: where the hash is another one, the first frames must be close."""
    digest = hashlib.sha256(np.ascontiguousarray(frames[:60]).tobytes()).hexdigest()
    if digest in GOLDENS["rollout_sha256"]:
        return
    means = frames[:20].astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(means, np.asarray(GOLDENS["rollout_mean_rgb"]), atol=0.02)


def test_errors_and_validity_stay_within_their_bands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.demo(demo.DemoConfig(out=tmp_path, steps=2000))
    rows = {
        line.split()[0]: line.split()[1:]
        for line in capsys.readouterr().out.splitlines()
        if line[:1].isdigit()
    }
    for step, most in GOLDENS["largest_errors"].items():
        agent, block = float(rows[step][0]), float(rows[step][2])
        assert agent <= most["agent"], f"agent at step {step}: {agent} px"
        assert block <= most["block"], f"block at step {step}: {block} px"
    valid = float(rows["2,000"][-1].rstrip("%"))
    assert valid >= GOLDENS["least_valid_percent"], f"valid up to step 2,000: {valid}%"
