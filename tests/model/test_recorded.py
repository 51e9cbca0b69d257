import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.model.manifold import Manifold, ManifoldConfig
from kinema.model.recorded import NUM_CELLS, STEPS, RecordedCodes

EPISODES = 100
EXACT = "donot_use_mm_for_euclid_dist"


def ring(num: int, seed: int = 0) -> Tensor:
    """Codes on a ring in three dimensions, of a thing that turns."""
    angle = 2 * np.pi * torch.rand(num, generator=torch.Generator().manual_seed(seed))
    return 0.8 * torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=-1)


def fitted(code: Tensor, *, num: int = NUM_CELLS) -> RecordedCodes:
    recorded = RecordedCodes(num, code.shape[1])
    assert not recorded.is_fitted
    recorded.fit(code, np.arange(len(code)) % EPISODES)
    assert recorded.is_fitted
    return recorded


@pytest.mark.parametrize("num", [NUM_CELLS, 8 * NUM_CELLS])
def test_the_nearest_are_found(num: int) -> None:
    generator = torch.Generator().manual_seed(0)
    recorded = fitted(torch.rand(20_000, 3, generator=generator) * 2 - 1, num=num)
    asked = torch.rand(700, 3, generator=generator) * 2 - 1
    distance, code = recorded.nearest(asked, 4)
    assert code.shape == (700, 4, 3)
    torch.testing.assert_close((code - asked[:, None]).norm(dim=-1), distance, atol=1e-5, rtol=0)
    assert (distance.diff(dim=1) >= 0).all()
    true = torch.cdist(asked, recorded.codes).topk(4, largest=False)[0]
    assert (distance >= true - 1e-5).all()
    assert torch.isclose(distance[:, 0], true[:, 0], atol=1e-5).float().mean() > 0.98
    assert (distance / true).mean() < 1.02


def test_what_is_recorded_often_is_kept_no_more_often() -> None:
    code = torch.cat([torch.zeros(50_000, 3), ring(5000)])
    kept = fitted(code).codes
    assert len(kept) == NUM_CELLS
    assert (kept.norm(dim=1) < 0.1).float().mean() < 0.05
    angle = torch.atan2(kept[:, 1], kept[:, 0]).sort()[0]
    assert angle.diff().max() < 0.1


def test_few_are_kept_all() -> None:
    code = torch.linspace(-0.9, 0.9, 100)[:, None].expand(-1, 3)
    kept = fitted(code).codes
    assert len(kept) == NUM_CELLS
    nearest = torch.cdist(code, kept).min(1)[0]
    # One episode of twenty is left out.
    assert (nearest < 1 / STEPS).sum() == 95


def test_the_reach_is_that_of_episodes_left_out() -> None:
    recorded = fitted(ring(20_000))
    distance, _ = recorded.nearest(ring(2000, seed=1), 1)
    assert 0.7 < (distance[:, 0] <= recorded.reach).float().mean() < 0.9
    between, _ = recorded.nearest(0.7 * ring(2000, seed=1), 1)
    assert (between[:, 0] > recorded.reach).all()


def test_codes_of_one_episode_have_to_tell_the_reach_themselves() -> None:
    recorded = RecordedCodes(NUM_CELLS, 3)
    recorded.fit(ring(5000), np.zeros(5000, dtype=np.int64))
    assert 0 < recorded.reach < 0.1


def test_they_are_saved_and_read() -> None:
    recorded, read = fitted(ring(5000)), RecordedCodes(NUM_CELLS, 3)
    read.load_state_dict({key: value.float() for key, value in recorded.state_dict().items()})
    assert set(recorded.state_dict()) == {"kept", "reach"}
    asked = ring(100, seed=2) * 0.9
    for mine, its in zip(recorded.nearest(asked, 3), read.nearest(asked, 3), strict=True):
        assert torch.equal(mine, its)


@pytest.fixture(scope="module")
def manifold() -> Manifold:
    """Nobody trained it, so it shows something else for every code; those of a ring were recorded."""
    torch.manual_seed(0)
    config = ManifoldConfig(code_dim=3, width=64, depth=1, near_width=16, num_recorded=NUM_CELLS)
    manifold = Manifold(config, latents=(4, 3), proprio_dim=0)
    manifold.radius.fill_(1e-3)
    assert manifold.recorded is not None
    manifold.recorded.fit(ring(5000), np.arange(5000) % EPISODES)
    return manifold.requires_grad_(False)


def shown(manifold: Manifold, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nothing = torch.zeros(len(code), 0)
    return manifold.decode(code, nothing), nothing, code


def test_frames_near_recorded_ones_stay_and_those_between_become_recorded_ones(manifold: Manifold) -> None:
    assert manifold.recorded is not None
    near, between = manifold.recorded.codes[:300], ring(300, seed=1) * 0.6
    frames = shown(manifold, torch.cat([near, between]))
    recalled = manifold.recall(*frames)
    assert torch.equal(recalled[:300], frames[0][:300])
    every = manifold.decode(manifold.recorded.codes, torch.zeros(NUM_CELLS, 0)).flatten(1)
    away = torch.cdist(recalled[300:].flatten(1), every, compute_mode=EXACT).min(1)[0]
    torch.testing.assert_close(away / every.shape[1] ** 0.5, torch.full((300,), 1e-3), atol=1e-5, rtol=0.01)
    # The one that looks most like them of those with codes like theirs, not the one with the nearest code.
    first = manifold.decode(manifold.recorded.nearest(between, 1)[1][:, 0], torch.zeros(300, 0))

    def moved(to: Tensor) -> Tensor:
        return (to - frames[0][300:]).square().mean((1, 2))

    assert (moved(recalled[300:]) <= moved(first) + 1e-4).all()
    assert (moved(recalled[300:]) < 0.9 * moved(first)).any()


def test_before_codes_are_chosen_nothing_is_recalled(manifold: Manifold) -> None:
    fresh = Manifold(manifold.config, latents=(4, 3), proprio_dim=0).requires_grad_(False)
    frames = shown(fresh, ring(10) * 0.1)
    assert fresh.recall(*frames) is frames[0]


@pytest.mark.parametrize("num", [-NUM_CELLS, 1, NUM_CELLS + 1])
def test_their_number_is_checked(num: int) -> None:
    with pytest.raises(ValueError, match=f"num_recorded={num}: it must be 0 or a multiple of 1024"):
        ManifoldConfig(num_recorded=num)
