"""``kinema train --heads``, ``--clone`` and ``--act``: what recordings teach beside a world that stays as it
is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinema import cli
from kinema.data import DataError, Dataset
from kinema.data.segments import SegmentsConfig, load_segments
from kinema.model.acting import ActingConfig
from kinema.model.heads import HeadsConfig
from kinema.model.world import ACTING_FILE, HEADS_FILE, WEIGHTS_FILE, WorldError
from kinema.policies.cloned import CLONE_FILE, CloneConfig, ClonedPolicy, CloneProposer, load_clone
from kinema.simulation.world import World, load
from kinema.train import loop as loop_module
from kinema.train.checkpoint import read_state
from kinema.train.command import TrainConfig, train
from kinema.train.hindsight import Hindsight
from kinema.train.latents import encode_all
from kinema.types import CheckpointError, Seen

from ..worlds import CAMERA, PROPRIO, SIZE, draw, random_world, write_exact_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rewarded") / "data"
    return write_exact_world(root, lengths=(21, 18, 25, 16), has_proprio=True, has_reward=True)


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "world"
    random_world(proprio_dim=2).save(folder)
    return folder


@pytest.fixture(autouse=True)
def every_update_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)


def config_of(data: Path, out: Path, world: Path, **fields: Any) -> TrainConfig:
    """Three updates of the heads, four of the clone, and three of what the network needs to act."""
    named = {"heads": True, "clone": True, "act": True, "update_share": 0.0005, "from_": str(world), **fields}
    return TrainConfig(data=str(data), out=out, **named)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "LOG_EVERY", 1)
        assert train(config_of(data, out, world_folder)) == 0
    return out


def hindsight(data: Path, world: World) -> Hindsight:
    dataset = Dataset.open(data)
    config = SegmentsConfig(cameras=(CAMERA,), proprio=PROPRIO, height=SIZE, width=SIZE)
    segments = load_segments(dataset, config, data / "unused", progress=False)
    return Hindsight(world, dataset, segments, encode_all(world, segments, False, data / "unused"))


def test_the_world_stays_as_it_is(uninterrupted: Path, world_folder: Path) -> None:
    before, after = load_file(world_folder / WEIGHTS_FILE), load_file(uninterrupted / WEIGHTS_FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    world = load(uninterrupted)
    assert world.heads is not None
    # Rewards are the first number of the action, which lies between -2 and 6.
    assert world.heads.config.reward_range[0] < 0 < 4 < world.heads.config.reward_range[1]
    assert load_clone(world, uninterrupted).config == CloneConfig()
    assert world.require_acting().config == ActingConfig()


def test_what_is_logged(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["update"]) for line in lines] == [
        *(("heads", update) for update in (1, 2, 3, 3)),
        *(("clone", update) for update in (1, 2, 3, 4, 4)),
        *(("act", update) for update in (1, 2, 3, 3)),
    ]
    assert {"reward_error", "termination", "distance_error", "locate_error"} <= lines[0].keys()
    assert {"held_out_loss", "held_out_reward_error"} <= lines[3].keys()
    assert {"held_out_loss", "held_out_action_error"} <= lines[-1].keys()


def test_stopped_after_every_update_it_is_the_same_run(
    data: Path, world_folder: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, calls = tmp_path / "world", 0
    while train(config_of(data, out, world_folder, max_minutes=1e-9)) == 130:
        assert "stopped; the same command continues" in capsys.readouterr().out
        calls += 1
    assert calls == 2 + 3 + 2
    for name in (HEADS_FILE, CLONE_FILE, ACTING_FILE):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()


GOLDENS: dict[str, list[tuple[float, float]]] = {
    "heads": [(11.43, 99.434), (9.4663, 55.044), (8.2678, 9.4681)],
    "clone": [(1.0877, 1.2936), (0.93291, 1.1189), (0.83992, 1.9967), (0.78632, 1.6727)],
    "act": [(0.64822, 0.26374), (0.63196, 0.23928), (0.6135, 0.2237)],
}
"""Loss and gradient norm of the first updates, in single precision, by stage. A change that means to alter
training alters these: the test that fails prints the new ones."""


def test_first_updates(data: Path, world_folder: Path, tmp_path: Path) -> None:
    assert train(config_of(data, tmp_path, world_folder, precision="float32", device="cpu")) == 0
    got: dict[str, list[tuple[float, float]]] = {}
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            pair = (float(f"{line['loss']:.5g}"), float(f"{line['gradient_norm']:.5g}"))
            got.setdefault(line["stage"], []).append(pair)
    assert got.keys() == GOLDENS.keys(), f"got {got}"
    for stage, pairs in GOLDENS.items():
        np.testing.assert_allclose(got[stage], pairs, rtol=0.02, err_msg=f"{stage}: got {got[stage]}")


def test_it_can_be_added_where_the_world_is(
    data: Path, world_folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    random_world(proprio_dim=2).save(tmp_path / "world")
    words = ["train", str(data), "--out", str(tmp_path / "world"), "--heads", "--update-share", "0.0005"]
    assert cli.main(words) == 0
    assert (tmp_path / "world" / HEADS_FILE).read_bytes() == (uninterrupted / HEADS_FILE).read_bytes()
    assert read_state(tmp_path / "world" / "checkpoint" / "heads") == {"update": 3}
    with pytest.raises(WorldError, match=r"there is no cloned policy; .* --clone"):
        load_clone(load(tmp_path / "world"), tmp_path / "world")


def test_mistakes_are_explained(data: Path, world_folder: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="there is no finished world in it; train one first, or name one with"
    ):
        train(TrainConfig(data=str(data), out=tmp_path / "none", heads=True))
    with pytest.raises(ValueError, match="that is the world to go on from; name another folder"):
        train(TrainConfig(data=str(data), out=world_folder, from_=str(world_folder)))
    with pytest.raises(CheckpointError, match="it holds another run"):
        train(config_of(data, uninterrupted, world_folder, seed=1))
    bare = write_exact_world(tmp_path / "bare", lengths=(9, 9), has_proprio=True)
    with pytest.raises(DataError, match="rewards are needed to learn heads from"):
        train(config_of(bare, tmp_path / "world", world_folder))
    assert not (tmp_path / "world").exists()
    # Others need none.
    words = {"heads": False, "update_share": 0.0001}
    assert train(config_of(bare, tmp_path / "world", world_folder, **words)) == 0


# What is drawn.


def test_steps_have_the_reward_and_the_end_that_were_recorded(data: Path) -> None:
    world = random_world(proprio_dim=2)
    lessons = hindsight(data, world)
    assert lessons.num_terminations == 2
    batch = lessons.draw_heads(np.random.default_rng(0), 400, HeadsConfig())
    # In the exact world the reward is the action's first number, and the frame after shows the action.
    action = world.action_normalizer.restore(batch.action)
    torch.testing.assert_close(action[:, 0], batch.reward, rtol=1e-4, atol=1e-4)
    shown = world.proprio_normalizer.restore(batch.after[1])
    is_inner = ~batch.is_terminal
    torch.testing.assert_close(shown[is_inner], action[is_inner], rtol=1e-3, atol=1e-3)
    assert 1 <= int(batch.is_terminal.sum()) < 30


def test_what_a_last_step_led_to_is_the_worlds_guess(data: Path) -> None:
    world = random_world(proprio_dim=2)
    lessons = hindsight(data, world)
    episode = Dataset.open(data).episode(2)
    frames, actions = episode.frames[CAMERA], episode.columns["action"]
    session = world.start(frames, actions[:-1], proprio=episode.columns[PROPRIO], generator=None)
    session.step(actions[-1])
    # Two episodes ended for good; this is the second. Noise of its own makes a guess differ a little.
    guessed, expected = lessons.latents[-1:][0].float(), session._batch.latents[0]
    before = lessons.latents[np.array(lessons.segments.starts[2] + 24)].float()
    assert (guessed - expected).square().mean() < 0.5 * (guessed - before).square().mean()


def test_goals_were_reached_after_so_many_steps(data: Path) -> None:
    world = random_world(proprio_dim=2)
    lessons = hindsight(data, world)
    segments = lessons.segments
    rows, goals, steps = segments.draw_goals(np.random.default_rng(0), 500, 12)
    assert np.array_equal(goals - rows, steps)
    assert np.array_equal(segments.first_rows(rows), segments.first_rows(goals))
    assert steps.min() == 0
    assert steps.max() == 12
    batch = lessons.draw_heads(np.random.default_rng(0), 300, HeadsConfig(max_steps=12))
    is_there = batch.steps == 0
    assert torch.equal(batch.start[is_there], batch.goal[is_there])
    assert (batch.start[~is_there] != batch.goal[~is_there]).any(-1).all()


def test_clones_learn_what_was_done_next(data: Path) -> None:
    world = random_world(proprio_dim=2)
    lessons = hindsight(data, world)
    batch = lessons.draw_clone(np.random.default_rng(0), 300, CloneConfig(chunk=3))
    sizes = world.place_sizes
    # Where the goal is the next frame, the first action is what the goal shows.
    proprio = world.proprio_normalizer.restore(batch.goal[:, sizes.latents : sizes.latents + 2])
    action = world.action_normalizer.restore(batch.actions[:, 0])
    is_next = torch.isclose(proprio, action, atol=1e-3).all(-1)
    assert 0.1 < is_next.float().mean() < 0.9


def test_a_clone_does_what_the_goal_shows(tmp_path: Path) -> None:
    """In the exact world one action reaches any goal."""
    from kinema.policies.cloned import CloneObjective, new_clone

    data = write_exact_world(tmp_path / "data", lengths=(400,), has_proprio=True, has_reward=True)
    world = random_world(proprio_dim=2)
    lessons = hindsight(data, world)
    torch.manual_seed(0)
    config = CloneConfig(width=64, depth=1, chunk=1, num_modes=2, max_steps=1, goal_dropout=0.1)
    objective = CloneObjective(new_clone(world, config))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for _ in range(300):
        loss, _ = objective(lessons.draw_clone(rng, 128, config), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    world.heads = world.new_heads(HeadsConfig(width=16, depth=1)).eval()
    policy = ClonedPolicy(world, objective.clone.eval())
    asked = np.array([[4.5, 1.8], [-1.0, 1.2]], dtype=np.float32)
    done = []
    normalized = torch.zeros(1, 2)
    seen = Seen(frames={CAMERA: draw(np.array([[2.0, 1.5]]))[0]}, proprio=np.array([2.0, 1.5], np.float32))
    for place in asked:
        policy.set_goal(draw(place[None])[0])
        # These heads never learned to read proprioception from pictures.
        normalized = world.proprio_normalizer.normalize(torch.from_numpy(place))[None]
        assert policy._goal is not None
        sizes = world.place_sizes
        latents = policy._goal[:, : sizes.latents].unflatten(-1, (-1, world.config.dynamics.latent_dim))
        policy._goal = world.place(latents, normalized)
        policy.begin(np.random.default_rng(0))
        done.append(policy.choose(seen))
    scale = world.action_normalizer.scale.numpy()
    assert (np.abs(np.stack(done) - asked) / scale).mean() < 0.3
    # As a planner uses it, it draws what it would do: near that, and not twice the same.
    session = world.start(draw(np.array([[2.0, 1.5]])), proprio=np.array([[2.0, 1.5]], np.float32))
    goal = world.place(latents := world.encode(draw(asked[1:])), normalized.expand(len(latents), -1))
    drawn = CloneProposer(objective.clone).propose(session.fork(40), goal, np.random.default_rng(0))
    assert drawn.shape == (40, 1, 2)
    assert np.abs(np.median(drawn[:, 0], axis=0) - asked[1]).max() / scale.max() < 0.3
    assert (drawn.std(axis=0) > 0).all()
    # Without a goal, and with noise, it still acts within the range.
    policy.set_goal(None)
    noisy = ClonedPolicy(world, objective.clone, noise=0.5, is_greedy=False)
    noisy.begin(np.random.default_rng(1))
    actions = np.stack([noisy.choose(seen) for _ in range(20)])
    low, high = world.action_normalizer.restore(torch.tensor([[-1.0], [1.0]])).numpy()
    assert ((actions >= low - 1e-3) & (actions <= high + 1e-3)).all()
    assert actions.std(axis=0).min() > 0.05
    with pytest.raises(ValueError, match="needs the observation_space"):
        noisy.act({}, {})


@pytest.mark.parametrize("fields", [{"chunk": 0}, {"num_modes": 0}, {"goal_dropout": 1.5}])
def test_settings_are_checked(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        CloneConfig(**fields)
