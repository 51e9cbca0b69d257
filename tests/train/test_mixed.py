"""Worlds that learn from several robots side by side."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinema.data import DatasetWriter
from kinema.model.objective import DynamicsBatch, DynamicsObjective, DynamicsObjectiveConfig
from kinema.model.tokens import Values
from kinema.model.world import WEIGHTS_FILE
from kinema.simulation.world import load
from kinema.train.command import TrainConfig, train
from kinema.types import WorldError

from ..worlds import dynamics_config, random_dynamics, random_values

STATE, TOP, SIDE = "observation.state", "observation.images.top", "observation.images.side"


def write_robot(
    root: Path, robot: str, names: list[str], camera: str | None, *, has_action: bool = True, seed: int = 0
) -> Path:
    """A robot that goes where it is told."""
    rng = np.random.default_rng(seed)
    count = len(names)
    features: dict[str, Any] = {STATE: {"dtype": "float32", "shape": [count], "names": names}}
    if has_action:
        features["action"] = {"dtype": "float32", "shape": [count], "names": names}
    if camera:
        features[camera] = {"dtype": "video", "shape": [32, 32, 3]}
    with DatasetWriter(root, fps=10, robot_type=robot, features=features) as writer:
        for _ in range(5):
            asked = rng.uniform(0, 28, (24, count)).astype(np.float32)
            state = np.concatenate([asked[:1], asked[:-1]])
            frames = np.zeros((24, 32, 32, 3), np.uint8)
            for frame, place in zip(frames, state[:, 0].astype(int), strict=True):
                frame[:, place : place + 4] = 255
            writer.add(
                frames={camera: frames} if camera else {},
                columns={STATE: state} | ({"action": asked} if has_action else {}),
                task=f"move the {robot}",
            )
    return root


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("robots")
    return [
        write_robot(root / "arm", "arm", ["x", "y"], TOP),
        write_robot(root / "hand", "hand", ["x", "grip", "turn"], SIDE, seed=1),
        write_robot(root / "video", "arm", ["x"], TOP, has_action=False, seed=2),
    ]


def config_of(robots: list[Path], out: Path, **fields: Any) -> TrainConfig:
    also = (f"{robots[1]}:2", str(robots[2]))
    return TrainConfig(data=str(robots[0]), also=also, out=out, recipe="tiny", update_share=0.02, **fields)


@pytest.fixture(scope="module")
def mixed(robots: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "world"
    assert train(config_of(robots, out)) == 0
    return out


def test_a_world_has_what_all_robots_have(mixed: Path) -> None:
    world = load(mixed)
    assert world.config.action_names == ("x", "y", "grip", "turn")
    assert [each.name for each in world.config.proprio] == ["x", "y", "grip", "turn"]
    assert world.cameras == (TOP, SIDE)
    assert world.config.has_holes


def test_sessions_of_each_robot(mixed: Path) -> None:
    world = load(mixed)
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    arm = np.array([1.0, 2.0, np.nan, np.nan], np.float32)
    step = world.start({TOP: frames}, arm[None], proprio=np.stack([arm, arm])).step(arm)
    assert set(step.frame) == {TOP, SIDE}
    assert step.proprio is not None
    assert np.isfinite(step.proprio).all()
    hand = np.array([1.0, np.nan, 2.0, 3.0], np.float32)
    other = world.start({SIDE: frames}, hand[None], proprio=np.stack([hand, hand])).step(hand)
    assert not np.array_equal(other.frame[TOP], step.frame[TOP])
    blind = world.start(None, proprio=arm[None]).step(arm)
    assert blind.proprio is not None
    assert np.isfinite(blind.proprio).all()
    assert world.start({TOP: frames}).step(arm).frame[TOP].shape == (32, 32, 3)
    with pytest.raises(WorldError, match="not finite"):
        world.start({TOP: frames}).step([np.inf, 0, 0, 0])


def test_a_mixture_that_was_stopped_goes_on_to_the_bit(
    robots: list[Path], mixed: Path, tmp_path: Path
) -> None:
    out, calls = tmp_path / "world", 0
    while train(config_of(robots, out, max_minutes=1e-9)) == 130:
        calls += 1
    assert calls > 3
    one, other = load_file(mixed / WEIGHTS_FILE), load_file(out / WEIGHTS_FILE)
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_what_was_not_recorded_changes_no_gradient() -> None:
    """The values of missing cameras and numbers are never looked at, neither as input nor as target."""
    config = dynamics_config(num_cameras=2, proprio_dim=3)
    values, other = (random_values(config, 3, 5, seed=seed) for seed in (0, 1))
    recorded = values.map(torch.ones_like)
    half = config.num_latents // 2
    recorded.latents[1, :, :half] = 0.0
    recorded.proprio[1, :, 2] = 0.0
    recorded.proprio[2] = 0.0
    recorded = Values(recorded.latents[..., :1], recorded.proprio, recorded.action)
    changed = values.zip(other, recorded, lambda x, y, mask: torch.where(mask > 0, x, y))
    for mixed_share in (0.0, 1.0):
        objective = DynamicsObjective(
            random_dynamics(config), DynamicsObjectiveConfig(mixed_share=mixed_share)
        )
        losses = []
        for frames, mask in ((values, recorded), (changed, recorded), (changed, None)):
            batch = DynamicsBatch(frames, torch.ones(3, 5, dtype=torch.bool), 0.5, recorded=mask)
            loss, _ = objective(batch, generator=torch.Generator().manual_seed(0))
            losses.append(loss.item())
        assert losses[0] == losses[1] != losses[2]


def test_a_mixture_is_evaluated_in_training(mixed: Path) -> None:
    lines = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["held_out_psnr"])
    assert list((mixed / "progress").glob("*.png"))
