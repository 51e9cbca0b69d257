import math

import pytest
import torch
from torch import Tensor

from kinema.model.manifold import Manifold, ManifoldBatch, ManifoldConfig, ManifoldObjective

LATENTS = (6, 4)
CONFIG = ManifoldConfig(code_dim=3, width=64, depth=1, near_width=32, radius_quantile=0.5)


def frames(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """A thing that turns (one degree of freedom) and a robot that slides (another), in 24 numbers."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(num, 1, generator=generator)
    proprio = 2 * torch.rand(num, 1, generator=generator) - 1
    at = torch.arange(24) / 24
    latents = torch.sin(angle + 2 * math.pi * at) * torch.cos(3 * angle + 5 * at) + proprio * (at - 0.5)
    return latents.unflatten(1, LATENTS), proprio


@pytest.fixture(scope="module")
def manifold() -> Manifold:
    torch.manual_seed(0)
    manifold = Manifold(CONFIG, latents=LATENTS, proprio_dim=1)
    latents, proprio = frames(2000, 0)
    manifold.fit_robot(latents, proprio)
    optimizer = torch.optim.AdamW(manifold.parameters(), lr=3e-3)
    objective = ManifoldObjective(manifold)
    for update in range(300):
        rows = torch.randint(0, 2000, (128,), generator=torch.Generator().manual_seed(update))
        loss, _ = objective(
            ManifoldBatch(latents[rows], latents[rows.flip(0)], proprio[rows], proprio[rows.flip(0)])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    manifold.fit_radius(latents, proprio)
    return manifold.eval()


def rms(x: Tensor) -> Tensor:
    return x.square().mean((1, 2)).sqrt()


@torch.no_grad()
def test_frames_are_found_again_from_their_codes(manifold: Manifold) -> None:
    latents, proprio = frames(200, 1)
    code = manifold.encode(latents, proprio)
    assert code.shape == (200, 3)
    assert code.abs().max() < 1
    error = rms(manifold.decode(code, proprio) - latents)
    assert error.median() < 0.25 * rms(latents).median()


@torch.no_grad()
def test_what_could_have_been_recorded_stays(manifold: Manifold) -> None:
    latents, proprio = frames(200, 1)
    distance, _ = manifold.distance(latents, proprio)
    inside = distance <= manifold.radius
    assert 40 < inside.sum() < 160
    assert torch.equal(manifold.project(latents, proprio)[inside], latents[inside])


@torch.no_grad()
def test_what_could_not_is_drawn_to_the_manifold(manifold: Manifold) -> None:
    latents, proprio = frames(200, 1)
    wrong = latents.clone()
    wrong[:, 3:] = latents.roll(1, 0)[:, 3:] * 0.7
    distance, nearest = manifold.distance(wrong, proprio)
    outside = distance > manifold.radius
    assert outside.sum() > 150
    projected = manifold.project(wrong, proprio)
    torch.testing.assert_close(rms(projected - nearest)[outside], manifold.radius.expand(int(outside.sum())))
    assert distance.median() > 2 * manifold.distance(latents, proprio)[0].median()


def test_before_it_is_trained_nothing_is_drawn() -> None:
    manifold = Manifold(CONFIG, latents=LATENTS, proprio_dim=1)
    latents, proprio = frames(10, 0)
    assert torch.equal(manifold.project(latents, proprio), latents)


def test_a_world_without_proprioception() -> None:
    manifold = Manifold(CONFIG, latents=LATENTS, proprio_dim=0)
    latents, nothing = frames(10, 0)[0], torch.zeros(10, 0)
    manifold.fit_robot(latents, nothing)
    loss, metrics = ManifoldObjective(manifold)(ManifoldBatch(latents, latents.flip(0), nothing, nothing))
    loss.backward()
    assert torch.isfinite(loss)
    assert set(metrics) == {"latents", "codes"}
    manifold.fit_radius(latents, nothing)
    assert torch.isfinite(manifold.radius)


def test_the_decoder_learns_from_clean_frames_alone() -> None:
    """What is mixed in reaches the encoder and nothing else."""
    torch.manual_seed(0)
    manifold = Manifold(CONFIG, latents=LATENTS, proprio_dim=1)
    latents, proprio = frames(16, 0)
    gradients = []
    for other in (latents, latents.flip(0)):
        manifold.zero_grad()
        generator = torch.Generator().manual_seed(0)
        loss, _ = ManifoldObjective(manifold)(ManifoldBatch(latents, other, proprio, proprio), generator)
        loss.backward()
        gradients.append(
            {key: p.grad.clone() for key, p in manifold.named_parameters() if p.grad is not None}
        )
    for key, first in gradients[0].items():
        assert torch.equal(first, gradients[1][key]) == (not key.startswith("encoder")), key


@pytest.mark.parametrize("field", ["code_dim", "width", "depth", "near_width"])
def test_sizes_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0: at least 1"):
        ManifoldConfig(**{field: 0})


@pytest.mark.parametrize("quantile", [0.0, 1.1])
def test_the_quantile_is_checked(quantile: float) -> None:
    with pytest.raises(ValueError, match="radius_quantile="):
        ManifoldConfig(radius_quantile=quantile)
