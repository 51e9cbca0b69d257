"""From recordings to a simulator, in miniature: in a world whose answer is known, and in a real one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.model.objective import DynamicsObjectiveConfig
from kinema.recipes import RECIPES, Phase, Recipe, Schedule
from kinema.simulation.world import World, load
from kinema.train import loop as loop_module
from kinema.train.command import TrainConfig, train

from ..worlds import CAMERA, HIGH, LOW, read, write_exact_world

NUM_EPISODES = 60
CONTEXT, HORIZON = 3, 30


def exact_recipe(dataset: Dataset) -> Recipe:
    """The tiny recipe, with a schedule for a world in which there is only one thing to learn."""
    recipe = RECIPES["tiny"](dataset)
    return dataclasses.replace(
        recipe,
        num_held_out=4,
        # Registers see no farther than segments are long; one token holds all that there is to see.
        dynamics=dataclasses.replace(recipe.dynamics, memory=8, patch=2),
        tokenizer_schedule=Schedule(phases=(Phase(updates=200, batch=16),), learning_rate=4e-3, warmup=10),
        dynamics_schedule=Schedule(
            phases=(Phase(updates=300, batch=16, length=9),), learning_rate=4e-3, warmup=10
        ),
        dynamics_objective=DynamicsObjectiveConfig(mixed_share=1.0, infer_prob=0.3, action_weight=1.0),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("exact") / "data"
    return Dataset.open(write_exact_world(root, lengths=(40,) * NUM_EPISODES))


@pytest.fixture(scope="module")
def world(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> World:
    out = tmp_path_factory.mktemp("run") / "exact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "exact", exact_recipe)
        assert train(TrainConfig(data=str(data.root), out=out, recipe="exact", precision="float32")) == 0
    return load(out)


def error(shown: np.ndarray, actions: np.ndarray) -> float:
    """Median distance between what is shown and what was asked for, as a share of the range."""
    return float(np.median(np.abs(shown - actions) / (HIGH - LOW)))


def test_the_simulated_frame_shows_the_action_that_was_given(world: World, data: Dataset) -> None:
    """Known answer: after ``step(action)`` the frame shows ``action``, not the one before or after it."""
    asked, shown = [], []
    for index in range(NUM_EPISODES - 4, NUM_EPISODES):
        episode = data.episode(index)
        actions = episode.columns["action"]
        sim = world.start(episode.frames[CAMERA][:CONTEXT], actions[: CONTEXT - 1])
        given = actions[CONTEXT - 1 : CONTEXT - 1 + HORIZON]
        asked.append(given)
        shown.append(read(np.stack([sim.step(action).frame for action in given])))
    true = error(np.concatenate(shown), np.concatenate(asked))
    assert true < 0.06
    for shift in (-1, 1):
        wrong = [np.roll(given, shift, axis=0) for given in asked]
        assert error(np.concatenate(shown), np.concatenate(wrong)) > 4 * true


def test_one_frame_without_actions_is_enough_to_obey(world: World, data: Dataset) -> None:
    episode = data.episode(NUM_EPISODES - 1)
    batch = world.start_batch(episode.frames[CAMERA][None, :1].repeat(32, axis=0))
    actions = np.random.default_rng(5).uniform(LOW, HIGH, (3, 32, 2)).astype(np.float32)
    shown = [read(batch.step(given).frame) for given in actions]
    assert error(np.concatenate(shown), np.concatenate(list(actions))) < 0.06


def test_infer_reads_the_actions_off_the_frames(world: World, data: Dataset) -> None:
    """Known answer: the action that led to a frame is the one that the frame shows."""
    inferred, true = [], []
    for index in range(NUM_EPISODES - 4, NUM_EPISODES):
        episode = data.episode(index)
        inferred.append(world.infer(episode.frames[CAMERA]))
        true.append(episode.columns["action"][:-1])
    right = error(np.concatenate(inferred), np.concatenate(true))
    assert right < 0.08
    for shift in (-1, 1):
        wrong = [np.roll(given, shift, axis=0) for given in true]
        assert error(np.concatenate(inferred), np.concatenate(wrong)) > 3 * right


def test_droid_in_miniature(droid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real recordings: three cameras and proprioception, trained for some seconds, then simulated."""
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    out = tmp_path / "droid"
    assert train(TrainConfig(data=str(droid), out=out, recipe="tiny", update_share=0.5)) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # The error of the pictures begins at that of standing still, and some seconds do not get below it.
    for stage, name in (("tokenizer", "loss"), ("dynamics", "locate")):
        errors = [line[name] for line in lines if line["stage"] == stage and name in line]
        assert np.mean(errors[-10:]) < 0.95 * np.mean(errors[:10]), stage
    assert np.isfinite(lines[-1]["held_out_psnr"])
    assert list((out / "progress").glob("*.png"))

    world, dataset = load(out), Dataset.open(droid)
    assert world.cameras == dataset.cameras
    assert len(world.cameras) == 3
    episode = dataset.episode(dataset.num_episodes - 1)
    assert world.config.proprio_key is not None
    state = episode.columns[world.config.proprio_key]
    actions = episode.columns["action"]
    # Pictures as they were recorded: the world brings them to its own size.
    sim = world.start({key: f[:3] for key, f in episode.frames.items()}, actions[:2], proprio=state[:3])
    for action in actions[2:12]:
        step = sim.step(action)
        assert step.proprio is not None
        assert step.proprio.shape == state.shape[1:]
        assert list(step.frame) == list(dataset.cameras)
        for picture in step.frame.values():
            assert picture.dtype == np.uint8
            assert picture.shape == step.frame[dataset.cameras[0]].shape
    sim.save(out / "rollout.mp4")
    assert (out / "rollout.mp4").stat().st_size > 0
    assert world.infer({key: f[:6] for key, f in episode.frames.items()}).shape == (5, *actions.shape[1:])
