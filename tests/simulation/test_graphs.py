"""Compiled steps are the steps that they were compiled from."""

import numpy as np
import pytest
import torch

from kinema import load
from kinema.simulation.batching import step_together
from kinema.simulation.graphs import MOST_STEPPED, CompiledSteps
from kinema.simulation.session import Simulation
from kinema.simulation.step import Step
from kinema.simulation.world import World

from ..worlds import random_actions, random_frames, random_world

NUM_STEPS = 8
"""More than the windows hold."""


def uncompiled(world: World) -> World:
    world.uses_graphs = False
    return world


def make_world(kind: str) -> World:
    if kind == "bundled":
        return uncompiled(load("pusht", precision="float32"))
    if kind == "camera":
        return random_world(num_denoising_steps=2, memory=6)
    world = random_world(num_cameras=2 * (kind != "vectors"), proprio_dim=3)
    assert world.dynamics.response is not None
    # Exact once two frames are known, or never.
    world.dynamics.response.proprio_error.fill_(1e-6 if kind == "exact proprioception" else 0.1)
    return world


KINDS = ("bundled", "camera", "exact proprioception", "proprioception", "vectors")


@pytest.fixture(scope="module", params=KINDS)
def worlds(request: pytest.FixtureRequest) -> tuple[World, World]:
    """The same world, as it is and compiled."""
    plain, compiled = make_world(request.param), make_world(request.param)
    compiled.uses_graphs = True
    assert isinstance(compiled.compiled, CompiledSteps)
    return plain, compiled


def start(world: World, num: int, seed: int = 0) -> Simulation:
    """A session that was shown so many frames."""
    rng, more = np.random.default_rng(seed), {}
    if world.proprio_dim:
        more["proprio"] = rng.uniform(100, 400, (num, world.proprio_dim)).astype(np.float32)
    size = world.config.tokenizer.height if world.config.tokenizer else 0
    frames = {key: random_frames(num, size=size, seed=seed) for key in world.cameras}
    generator = torch.Generator().manual_seed(seed)
    return world.start(frames or None, actions(world, num - 1, seed=seed), generator=generator, **more)


def actions(world: World, *shape: int, seed: int = 0) -> np.ndarray:
    return 100.0 * random_actions(*shape, seed=seed)[..., : world.action_dim]


def assert_same(got: Step, expected: Step) -> None:
    if isinstance(expected.frame, dict):
        for key, pictures in expected.frame.items():
            assert np.abs(got.frame[key].astype(int) - pictures).max() <= 1
    elif expected.frame is not None:
        assert np.abs(got.frame.astype(int) - expected.frame).max() <= 1
    for part in ("proprio", "trust"):
        of_expected = getattr(expected, part)
        if of_expected is None:
            assert getattr(got, part) is None
        else:
            np.testing.assert_allclose(getattr(got, part), of_expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_given", [1, 3, 12])
def test_the_same_steps_whatever_was_shown(worlds: tuple[World, World], num_given: int) -> None:
    plain, compiled = (start(world, num_given) for world in worlds)
    for action in actions(worlds[0], NUM_STEPS, seed=1):
        assert_same(compiled.step(action), plain.step(action))


def test_it_is_the_compiled_steps_that_are_made(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = start(worlds[1], 3)
    batch = sim._batch
    monkeypatch.setattr(type(batch._networks.dynamics), "step", None)
    if worlds[1].cameras:
        monkeypatch.setattr(type(batch._networks), "decode", None)
    first = sim.step(actions(worlds[1], 1)[0])
    assert (first.frame is not None) == bool(worlds[1].cameras)


def test_forks_and_what_is_gone_back_to(worlds: tuple[World, World]) -> None:
    ahead, more = actions(worlds[0], 2, 6, seed=2), actions(worlds[0], 6, 3, seed=3)
    found = []
    for world in worlds:
        sim = start(world, 2)
        before = [sim.step(action) for action in ahead[0]]
        sim.rewind(4)
        again = [sim.step(action) for action in ahead[0, 2:]]
        for one, other in zip(again, before[2:], strict=True):
            assert_same(one, other)
        forks = sim.fork(3)
        found.append([forks.step(action) for action in more])
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_sessions_of_any_age_together(worlds: tuple[World, World]) -> None:
    plain, compiled = ([start(world, num, seed=num) for num in (1, 2, 5)] for world in worlds)
    for step in range(NUM_STEPS):
        chosen = actions(worlds[0], 3, seed=step)
        steps = [step_together(sessions, chosen) for sessions in (compiled, plain)]
        for one, other in zip(*steps, strict=True):
            assert_same(one, other)


def test_other_weights_are_compiled_anew() -> None:
    plain, compiled = (random_world(num_denoising_steps=1) for _ in range(2))
    compiled.uses_graphs = True
    before = compiled.compiled
    assert compiled.compiled is before
    for world in (plain, compiled):
        with torch.no_grad():
            world.dynamics.latents_out.bias.add_(0.5)
    assert compiled.compiled is not before
    one, other = (start(world, 3).step(actions(world, 1)[0]) for world in (compiled, plain))
    assert_same(one, other)


def test_other_numbers_of_calls_and_many_sessions_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    world = random_world(num_denoising_steps=1)
    world.uses_graphs = True
    sim = start(world, 3)
    monkeypatch.setattr(CompiledSteps, "next_frame", None)
    with pytest.raises(TypeError):
        sim.step(actions(world, 1)[0])
    sim.change(num_denoising_steps=3)
    sim.step(actions(world, 1)[0])
    num = MOST_STEPPED + 1
    many = start(world, 3).fork(num)
    many.step(actions(world, num), decode=False)


def test_loading() -> None:
    world = load("pusht")
    assert world.uses_graphs
    assert isinstance(world.compiled, CompiledSteps)
    assert world.compiled is world.compiled


@pytest.mark.parametrize("num", [1, 4])
def test_in_bfloat16_a_graph_changes_nothing(num: int) -> None:
    """Nothing but what is rounded elsewhere, which is less than bfloat16 itself changes."""
    compiled, plain = (load("pusht", precision="bfloat16") for _ in range(2))
    plain.uses_graphs = False
    assert isinstance(compiled.compiled, CompiledSteps)
    chosen = actions(plain, NUM_STEPS, num, seed=1)

    def pictures(world: World) -> np.ndarray:
        sessions = start(world, 3).fork(num)
        return np.stack([sessions.step(action).frame for action in chosen]).astype(float)

    of_graph, of_steps, exact = (pictures(world) for world in (compiled, plain, make_world("bundled")))
    assert np.abs(of_graph - of_steps).mean() < np.abs(of_steps - exact).mean()


def test_where_nothing_can_be_traced_sessions_step_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no rule for it")

    world, plain = load("pusht", precision="float32"), make_world("bundled")
    monkeypatch.setattr(torch.jit, "trace", fail)
    with pytest.warns(UserWarning, match=r"cannot trace the world 'pusht'.*no rule.*without a graph"):
        sim = start(world, 3)
    action = actions(world, 1)[0]
    assert_same(sim.step(action), start(plain, 3).step(action))
