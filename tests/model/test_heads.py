from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.model.heads import (
    Heads,
    HeadsBatch,
    HeadsConfig,
    HeadsObjective,
    PlaceSizes,
    TwoHot,
    symexp,
    symlog,
)
from kinema.model.parts import PartError
from kinema.model.world import HEADS_FILE, WEIGHTS_FILE, WorldError
from kinema.simulation.world import load

from ..worlds import full_disk, random_actions, random_frames, random_heads, random_world


@settings(deadline=None)
@given(st.floats(-1e4, 1e4))
def test_symexp_undoes_symlog(value: float) -> None:
    x = torch.tensor([value], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(st.floats(-5.0, 40.0), st.integers(2, 60))
def test_two_hot_is_exact_at_the_number(value: float, num_bins: int) -> None:
    """The weights' mean after ``symlog`` is the number's, and only neighbours have any."""
    two_hot = TwoHot(-5.0, 40.0, num_bins)
    weights = two_hot.encode(torch.tensor([value]))
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close((weights @ two_hot.bins)[0], symlog(torch.tensor(value)), rtol=1e-4, atol=1e-4)
    places = weights[0].nonzero()[:, 0]
    assert places.max() - places.min() <= 1


def test_two_hot_holds_what_it_is_taught() -> None:
    two_hot = TwoHot(0.0, 100.0, 65)
    values = torch.tensor([0.0, 1.0, 7.0, 50.0, 100.0, 1e6])
    found = two_hot.decode((two_hot.encode(values) + 1e-12).log())
    torch.testing.assert_close(found, values.clamp(max=100.0), rtol=0.01, atol=0.01)
    # A reward that never changes is predicted as that.
    torch.testing.assert_close(
        TwoHot(2.0, 2.0, 9).decode(torch.zeros(1, 9)), torch.tensor([2.0]), rtol=1e-2, atol=0
    )


def known_batch(rng: np.random.Generator, num: int) -> HeadsBatch:
    """A world on a line whose answers are known: a step is worth how far it went, past 0.8 it is over, and a
    step goes 0.05 far."""
    place, after, goal = (torch.from_numpy(rng.uniform(-1, 1, (num, 1)).astype(np.float32)) for _ in range(3))

    def frame(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.unsqueeze(-1) * torch.tensor([1.0, -0.5]), torch.zeros(num, 0)

    return HeadsBatch(
        before=frame(place),
        after=frame(after),
        action=after - place,
        reward=(after - place)[:, 0],
        is_terminal=after[:, 0] > 0.8,
        start=frame(place)[0].flatten(1),
        goal=frame(goal)[0].flatten(1),
        steps=((goal - place).abs()[:, 0] / 0.05).round(),
    )


def test_heads_learn_answers_that_are_known() -> None:
    torch.manual_seed(0)
    config = HeadsConfig(width=64, depth=1, max_steps=40, reward_range=(-2.0, 2.0))
    heads = Heads(config, sizes=PlaceSizes(2, 0, 0), action_dim=1)
    objective = HeadsObjective(heads)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(400):
        loss, metrics = objective(known_batch(rng, 256), generator=generator)
        assert metrics.keys() == {"reward_error", "termination", "distance_error"}
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    batch = known_batch(rng, 512)
    with torch.no_grad():
        reward, termination = heads.judge(batch.before, batch.after, batch.action)
        distance = heads.distance(batch.start, batch.goal)
    assert (reward - batch.reward).abs().mean() < 0.1
    assert ((termination > 0.5) == batch.is_terminal).float().mean() > 0.95
    assert (distance - batch.steps).abs().mean() < 3.0


def test_a_session_tells_what_the_heads_say() -> None:
    world = random_heads(random_world(proprio_dim=3))
    plain = random_world(proprio_dim=3)
    frames, proprio = random_frames(3), np.zeros((3, 3))
    sim = world.start(frames, proprio=proprio)
    step = sim.step(random_actions())
    before = plain.start(frames, proprio=proprio)
    same = before.step(random_actions())
    assert np.array_equal(step.frame, same.frame)
    assert same.reward is None
    assert same.termination is None
    assert isinstance(step.reward, float)
    assert -1.0 <= step.reward <= 2.0
    assert 0.0 <= step.termination <= 1.0
    # It depends on the action and on where one was.
    assert world.start(frames, proprio=proprio).step(random_actions(seed=1)).reward != step.reward
    assert world.start(random_frames(3, seed=1), proprio=proprio).step(random_actions()).reward != step.reward
    batch = world.start_batch(np.stack([frames, frames]), proprio=np.stack([proprio, proprio]))
    rewards = batch.step(random_actions(2)).reward
    assert rewards.shape == (2,)
    alone = world.start(frames, proprio=proprio).step(random_actions(2)[0])
    assert rewards[0] == pytest.approx(alone.reward, abs=2e-3)


def test_heads_are_saved_beside_the_world(tmp_path: Path) -> None:
    world = random_world(proprio_dim=2)
    world.save(tmp_path)
    assert load(tmp_path).heads is None
    weights = (tmp_path / WEIGHTS_FILE).read_bytes()
    random_heads(world).save_parts(tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == weights
    again = load(tmp_path)
    assert again.heads is not None
    assert world.heads is not None
    assert again.heads.config == world.heads.config
    for key, value in world.heads.state_dict().items():
        assert torch.equal(value, again.heads.state_dict()[key]), key
    # Saved as a whole, the world's own file stays without them.
    again.save(tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == weights


def test_a_broken_file_of_heads_is_named(tmp_path: Path) -> None:
    random_heads(random_world(proprio_dim=2)).save(tmp_path)
    path = tmp_path / HEADS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(PartError, match=f"{path}: cannot be used .*; train it again, or remove it"):
        load(tmp_path)
    path.write_bytes(whole)
    # Heads of a world of another size.
    random_heads(random_world(proprio_dim=3)).save_parts(tmp_path)
    with pytest.raises(PartError, match="cannot be used"):
        load(tmp_path)
    path.write_bytes(whole)
    with full_disk(100), pytest.raises(PartError, match=r"could not be written .* make room"):
        random_heads(random_world(proprio_dim=2)).save_parts(tmp_path)
    assert path.read_bytes() == whole
    assert load(tmp_path).heads is not None


def test_a_world_without_heads_says_how_to_get_them() -> None:
    with pytest.raises(WorldError, match=r"has no heads, .* --heads"):
        random_world().require_heads()


@pytest.mark.parametrize(
    "fields", [{"width": 0}, {"num_bins": 1}, {"max_steps": 0}, {"reward_range": (1.0, 0.0)}]
)
def test_settings_are_checked(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        HeadsConfig(**fields)
