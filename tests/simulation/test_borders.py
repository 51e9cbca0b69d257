"""Sessions are given arrays and numbers of every kind: each is taken, or refused in words of ours."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.simulation.session import Simulation
from kinema.simulation.world import World, load
from kinema.types import WorldError

from ..worlds import random_actions, random_frames, random_world


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(proprio_dim=2)


def state(sim: Simulation) -> list[Any]:
    return [sim.num_steps, sim.num_pictures, sim._batch.latents.tolist(), sim.look().outside]


PROPRIO = np.full((4, 2), 5.0, np.float32)


def turned(array: np.ndarray, axis: int) -> np.ndarray:
    """The same numbers, laid out backwards."""
    view = np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)
    assert min(view.strides) < 0
    return view


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_arrays_that_are_laid_out_backwards_are_taken(world: World, axis: int) -> None:
    frames, actions, goal = random_frames(4), random_actions(3), random_frames(2, seed=3)
    expected = world.start(frames, actions, proprio=PROPRIO).step(random_actions(seed=1)).frame
    sim = world.start(turned(frames, axis), turned(actions, axis % 2), proprio=turned(PROPRIO, axis % 2))
    assert np.array_equal(sim.step(turned(random_actions(seed=1)[None], 1)[0]).frame, expected)
    assert np.array_equal(world.infer(turned(frames, axis)), world.infer(frames))
    assert np.array_equal(world.encode(turned(goal, axis)), world.encode(goal))


@pytest.mark.parametrize("kind", [np.float64, np.float16, ">f4", np.int64, object, list, torch.float64])
def test_numbers_of_any_kind_are_taken(world: World, kind: Any) -> None:
    whole = np.array([3.0, 1.0], np.float32)
    if kind is list:
        action: Any = whole.tolist()
    elif isinstance(kind, torch.dtype):
        action = torch.tensor(whole, dtype=kind)
    else:
        action = whole.astype(kind)
    one, other = (world.start(random_frames(1), proprio=PROPRIO[:1]) for _ in range(2))
    assert np.array_equal(one.step(action).frame, other.step(whole).frame)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("left", "action: expected an array of numbers, got str"),
        ({"x": 1.0}, "action: expected an array of numbers, got dict"),
        ([[1.0], [1.0, 2.0]], "action: expected an array of numbers, got list"),
        (torch.zeros(2, requires_grad=True), "action: expected an array of numbers, got Tensor"),
        (None, r"action: expected shape \(2,\)"),
        (1, r"action: expected shape \(2,\) \(right, down last\), got \(\)"),
        ([1.0, 2.0, 3.0], r"expected shape \(2,\).*got \(3,\)"),
        ([np.nan, 0.0], "not finite"),
        ([np.inf, 0.0], "not finite"),
    ],
)
def test_other_actions_are_refused_and_change_nothing(world: World, action: Any, words: str) -> None:
    sim = world.start(random_frames(1), proprio=PROPRIO[:1])
    sim.step(random_actions())
    before = state(sim)
    with pytest.raises(WorldError, match=words):
        sim.step(action)
    assert state(sim) == before


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), max_size=4),
    kind=st.sampled_from(["f4", "f8", "i8", "?", "U3", "S2", "O", "M8[s]", "c8", "V4"]),
)
def test_an_array_of_any_shape_and_kind_is_taken_or_refused(shape: list[int], kind: str) -> None:
    sim = SESSION
    array, before = np.zeros(shape, kind), state(sim)
    try:
        sim.step(array)
        assert array.shape == (2,)
        sim.rewind(1)
    except WorldError:
        assert state(sim) == before


SESSION = random_world(depth=2).start(random_frames(1))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), "uint8.*got float32"),
        (np.zeros((2, 3, 32, 32), np.uint8), "uint8 of shape"),
        (np.zeros((32, 32, 3), np.uint8), "one picture is"),
        (np.zeros((0, 32, 32, 3), np.uint8), "T at least 1"),
    ],
)
def test_other_frames_are_refused(world: World, frames: Any, words: str) -> None:
    with pytest.raises(WorldError, match=words):
        world.start(frames)


def test_a_world_of_choices_takes_their_index() -> None:
    world = random_world()
    world.action_normalizer.fit(np.eye(2)[np.arange(100) % 2])
    one_hot = np.array([0.0, 1.0], np.float32)
    expected = world.start(random_frames(1)).step(one_hot).frame
    for choice in (1, np.int64(1), [1], 1.0, np.array(1)):
        assert np.array_equal(world.start(random_frames(1)).step(choice).frame, expected)
    batch = world.start_batch(random_frames(2, 1))
    assert np.array_equal(batch.step([1, 1]).frame[0], expected)
    sim = world.start(random_frames(1))
    for choice in (2, -1, 0.5, np.nan):
        with pytest.raises(WorldError, match="a choice is a whole number from 0 to 1, or one-hot; got"):
            sim.step(choice)
    assert sim.num_steps == 0


def test_what_type_checkers_refuse_is_an_error_of_ours() -> None:
    """In a process of its own, because types are checked at run time in the tests."""
    program = """
import numpy as np, torch
from tests.worlds import random_frames, random_world
from kinema import WorldError
world = random_world(depth=2)
sim = world.start(random_frames(1))
sim.step([0.0, 1.0])
batch = world.start_batch(random_frames(2, 1))
wrong = {
    "num_denoising_steps=2.5": lambda: sim.change(num_denoising_steps=2.5),
    "num_denoising_steps=True": lambda: world.start(random_frames(1), num_denoising_steps=True),
    "seed=1.5": lambda: sim.change(seed=1.5),
    "seed='a'": lambda: world.start_batch(random_frames(1, 1), seeds=["a"]),
    "num=1.0": lambda: sim.fork(1.0),
    "num='2'": lambda: sim.fork("2"),
    "num_steps=0.5": lambda: sim.rewind(0.5),
    "max_rewind=1.5": lambda: sim.fork(1, max_rewind=1.5),
    "frames: expected an array, got list": lambda: world.start([np.zeros((9, 9, 3)), np.zeros((8, 8, 3))]),
    "generator=0": lambda: world.start(random_frames(1), generator=0),
}
for words, call in wrong.items():
    try:
        call()
    except WorldError as error:
        assert words in str(error) and "expected" in str(error), error
    else:
        raise AssertionError(words)
assert sim.num_steps == 1 and sim.num_denoising_steps == 1 and sim.seed == 0
sim.rewind(np.int64(1))
assert len(sim.fork(np.int32(2))) == 2
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "cpu:3", "meta", "", "CPU"])
def test_a_device_that_is_not_there_is_an_error_that_lists_those_that_are(device: str) -> None:
    with pytest.raises(WorldError, match=r"device '.*': not on this machine; choose auto or .*cpu"):
        load("pusht", device=device)


def test_a_misspelt_world_is_corrected() -> None:
    for name in ("PushT", "push", "pushT"):
        with pytest.raises(WorldError, match=f"no world '{name}'.*did you mean 'pusht'"):
            load(name)
    with pytest.raises(WorldError, match="no world 'elephant'") as caught:
        load("elephant")
    assert "did you mean" not in str(caught.value)


def test_reprs_are_one_short_line(world: World) -> None:
    sim = world.start(random_frames(1), proprio=PROPRIO[:1])
    sim.step(random_actions())
    assert repr(world).startswith("World(random: top, actions right down, 10 fps, ")
    assert repr(sim) == "Simulation(random: 1 steps, seed 0)"
    assert repr(sim.fork(2)) == "SimulationBatch(random: 2 sessions, 1 steps)"
