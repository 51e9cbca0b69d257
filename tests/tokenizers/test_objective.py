import pytest
import torch

from kinema.model import decoder_objective as objective_module
from kinema.model.decoder_objective import DecoderBatch, DecoderObjective
from kinema.model.manifold import Manifold, ManifoldConfig
from kinema.tokenizers import (
    ConvTokenizer,
    ConvTokenizerConfig,
    TokenizerObjective,
    TokenizerObjectiveConfig,
)
from kinema.tokenizers.objective import motion_mask

from ..worlds import randomize


def make_objective(**fields: float) -> TokenizerObjective:
    tokenizer = ConvTokenizer(
        ConvTokenizerConfig(height=32, width=32, encoder_widths=(16, 16, 16), decoder_widths=(16, 16, 16))
    )
    randomize(tokenizer)
    return TokenizerObjective(tokenizer, TokenizerObjectiveConfig(**fields))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pairs(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 2, 32, 32, 3), dtype=torch.uint8, generator=seeded())


def grey(value: int) -> torch.Tensor:
    return torch.full((32, 32, 3), value, dtype=torch.uint8)


def test_motion_is_where_two_pictures_differ_and_a_pixel_around() -> None:
    first, second = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    second[0, 1, 4, 2] = 0.2
    second[0, 2, 0, 7] = 0.05
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, 3:6, 1:4] = 1.0
    assert torch.equal(motion_mask(first, second, 0.1), expected)
    assert torch.equal(motion_mask(second, first, 0.1), expected)


def test_loss_and_metrics() -> None:
    loss, metrics = make_objective()(random_pairs(), seeded())
    assert loss.shape == ()
    assert loss.requires_grad
    assert set(metrics) == {"psnr", "psnr_moving", "coherent_error", "latent_rms"}
    for value in metrics.values():
        assert value.shape == ()
        assert value.isfinite()
        assert not value.requires_grad


def test_the_gradient_reaches_every_parameter() -> None:
    objective = make_objective()
    objective(random_pairs(), seeded())[0].backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_loss_comes_from_the_generator_alone() -> None:
    objective, pairs = make_objective(), random_pairs()
    first, _ = objective(pairs, seeded(1))
    torch.manual_seed(99)
    assert torch.equal(first, objective(pairs, seeded(1))[0])
    assert not torch.equal(first, objective(pairs, seeded(2))[0])


def blind_objective(output: float, **fields: float) -> TokenizerObjective:
    """Its decoder gives the same grey whatever it is given."""
    objective = make_objective(latent_penalty=0.0, **fields)
    last = objective.tokenizer.decoder[-2]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, output)
    return objective


def test_a_perfect_picture_costs_nothing() -> None:
    pairs = torch.stack([grey(255), grey(255)]).unsqueeze(0)
    loss, metrics = blind_objective(1.0)(pairs, seeded())
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert metrics["psnr"] > 60


def test_an_even_error_is_measured_as_it_is() -> None:
    pairs = torch.stack([grey(255), grey(255)]).unsqueeze(0)
    loss, metrics = blind_objective(0.5, coherent_weight=10.0)(pairs, seeded())
    # An error of 0.5 of a range of 2 everywhere: 0.5 + 0.25, and coherent: the root of the mean fourth power.
    assert metrics["psnr"].item() == pytest.approx(-10 * torch.log10(torch.tensor(0.25 / 4)).item())
    assert metrics["coherent_error"].item() == pytest.approx(0.25)
    assert loss.item() == pytest.approx(0.75 + 10 * 0.25)


def test_an_error_costs_more_where_something_moves() -> None:
    """The same blind decoder misses a small spot: dearer when the spot is in one moment only."""
    spot = grey(0)
    spot[8:12, 8:12] = 255
    still, moving = torch.stack([spot, spot]).unsqueeze(0), torch.stack([spot, grey(0)]).unsqueeze(0)
    objective = blind_objective(-1.0, coherent_weight=0.0, motion_weight=16.0)
    loss_still, loss_moving = objective(still, seeded())[0].item(), objective(moving, seeded())[0].item()
    # Of the moving pair only one picture holds the spot, yet it costs several times more.
    assert loss_moving > 4 * loss_still
    indifferent = blind_objective(-1.0, coherent_weight=0.0, motion_weight=0.0)
    loss_still, loss_moving = indifferent(still, seeded())[0].item(), indifferent(moving, seeded())[0].item()
    assert loss_moving == pytest.approx(loss_still / 2)


def test_coherent_error_counts_what_neighbours_share() -> None:
    """A spot that is missing against the same energy of error scattered as a checkerboard."""
    spot, checks = grey(128), grey(128)
    spot[8:16, 8:16] = 255
    checks[0:16:2, 0:32:2] = 255 - 63
    checks[1:17:2, 1:32:2] = 128 - 64
    objective = blind_objective(128 / 127.5 - 1)

    def coherent(picture: torch.Tensor) -> float:
        return objective(torch.stack([picture, picture]).unsqueeze(0), seeded())[1]["coherent_error"].item()

    assert coherent(spot) > 4 * coherent(checks)


def test_an_error_costs_more_where_the_colour_is_rare() -> None:
    """A decoder that sees neither of two spots of one size, one common and one rare."""
    pictures = torch.stack([grey(0)] * 16)
    pictures[:, 8:12, 8:12] = torch.tensor([200, 0, 0], dtype=torch.uint8)
    pictures[0, 20:24, 20:24] = torch.tensor([0, 200, 0], dtype=torch.uint8)
    common, rare = pictures[1], pictures[0].clone()
    rare[8:12, 8:12] = 0

    def loss(picture: torch.Tensor, power: float) -> float:
        objective = blind_objective(-1.0, rarity_power=power)
        objective.loss.fit_rarity(pictures)
        return objective(torch.stack([picture, picture]).unsqueeze(0), seeded())[0].item()

    assert loss(rare, 0.0) == pytest.approx(loss(common, 0.0))
    assert loss(rare, 0.5) > 2 * loss(common, 0.5)


def test_neighbouring_colours_are_counted_together() -> None:
    objective = make_objective(rarity_power=1.0)
    objective.loss.fit_rarity(grey(100).unsqueeze(0))
    weights = objective.loss.rarity.view(16, 16, 16)
    assert weights[6, 6, 6] == weights.min()
    assert weights[5, 6, 7] == weights[6, 6, 6]
    assert weights[8, 6, 6] == weights.max() > 1000 * weights.min()


def test_only_the_hardest_pairs_are_learned_from() -> None:
    spot = grey(0)
    spot[8:16, 8:16] = 255
    easy, hard = torch.stack([grey(0), grey(0)]), torch.stack([grey(0), spot])
    some = blind_objective(-1.0, hard_share=0.5)(torch.stack([easy, hard]), seeded())[0]
    alone = blind_objective(-1.0)(hard.unsqueeze(0), seeded())[0]
    assert some.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_wrong_share_is_named(share: float) -> None:
    with pytest.raises(ValueError, match=f"hard_share={share}"):
        TokenizerObjectiveConfig(hard_share=share)


def make_decoder_objective(**fields: float) -> tuple[DecoderObjective, ConvTokenizer, Manifold]:
    """For two cameras."""
    tokenizer = ConvTokenizer(
        ConvTokenizerConfig(
            height=32,
            width=32,
            latent_dim=4,
            guide_dim=4,
            encoder_widths=(16, 16, 16),
            decoder_widths=(16, 16, 16),
        )
    )
    config = ManifoldConfig(code_dim=2, width=16, depth=1, near_width=16)
    manifold = Manifold(config, latents=(8, 4), proprio_dim=2)
    randomize(tokenizer)
    randomize(manifold)
    objective = DecoderObjective(tokenizer, manifold, TokenizerObjectiveConfig(**fields), ((2, 2), (2, 2)))
    return objective, tokenizer, manifold


def decoder_batch(batch: int = 3) -> DecoderBatch:
    generator = seeded()
    latents = torch.randn(batch, 2, 8, 4, generator=generator)
    proprio = 2 * torch.rand(batch, 2, 2, generator=generator) - 1
    return DecoderBatch(random_pairs(batch), latents, proprio, torch.arange(batch) % 2)


def test_the_decoder_alone_is_trained() -> None:
    objective, tokenizer, manifold = make_decoder_objective()
    loss, metrics = objective(decoder_batch(), seeded())
    loss.backward()
    assert set(metrics) == {"psnr", "psnr_moving", "coherent_error"}
    names = {name for name, _ in objective.named_parameters()}
    assert names == {f"decoder.{name}" for name, _ in tokenizer.decoder.named_parameters()}
    for name, parameter in tokenizer.decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for p in [*tokenizer.encoder.parameters(), *manifold.parameters()])


def test_the_decoder_learns_from_the_latents_of_the_right_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    # The manifold knows of all cameras, so what is drawn to it is of all.
    monkeypatch.setattr(objective_module, "DRAWN_SHARE", 0.0)
    objective, _, _ = make_decoder_objective()
    pairs, latents, proprio, _ = decoder_batch(2)

    def loss(latents: torch.Tensor, camera: int) -> float:
        return objective(DecoderBatch(pairs, latents, proprio, torch.full((2,), camera)), seeded())[0].item()

    other = latents.clone()
    other[:, :, 4:] += 1.0
    assert loss(other, 0) == loss(latents, 0)
    assert loss(other, 1) != loss(latents, 1)


def test_frames_of_each_camera_may_have_another_size() -> None:
    _, tokenizer, _ = make_decoder_objective()
    manifold = Manifold(
        ManifoldConfig(code_dim=2, width=16, depth=1, near_width=16), latents=(6, 4), proprio_dim=2
    )
    objective = DecoderObjective(tokenizer, manifold, TokenizerObjectiveConfig(), ((2, 1), (1, 4)))
    seen: list[torch.Tensor] = []

    def spy(
        latents: torch.Tensor, guide: torch.Tensor | None = None, *, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        seen.append(latents)
        return tokenizer.decode(latents, guide, grid=grid)

    objective._decode = spy
    latents, proprio = torch.arange(6.0).view(1, 1, 6, 1).expand(3, 2, 6, 4) * 100, torch.zeros(3, 2, 2)
    for camera, (height, width), expected in ((0, (32, 16), [0, 100]), (1, (16, 64), [200, 300, 400, 500])):
        pairs = torch.randint(0, 256, (3, 2, height, width, 3), dtype=torch.uint8, generator=seeded())
        loss, _ = objective(DecoderBatch(pairs, latents, proprio, torch.full((3,), camera)), seeded())
        assert torch.isfinite(loss)
        assert seen[-1].shape == (6, len(expected), 4)


def test_the_decoder_learns_from_latents_that_are_drawn_to_the_manifold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where all are, what of them lies off the manifold is lost in part."""
    objective, tokenizer, manifold = make_decoder_objective()
    pairs, latents, proprio, cameras = decoder_batch()
    given: list[torch.Tensor] = []

    def spy(
        latents: torch.Tensor, guide: torch.Tensor | None = None, *, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        given.append(latents)
        return tokenizer.decode(latents, guide, grid=grid)

    objective._decode = spy
    monkeypatch.setattr(objective_module, "DECODER_NOISE", 0.0)
    off = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(objective_module, "DRAWN_SHARE", share)
        objective(DecoderBatch(pairs, latents, proprio, torch.zeros_like(cameras)), seeded())
        # The first four latents are of the first camera.
        nearest = manifold.distance(latents.flatten(0, 1), proprio.flatten(0, 1))[1][:, :4]
        off.append(
            (given[-1] - nearest).square().mean((1, 2))
            / (latents.flatten(0, 1)[:, :4] - nearest).square().mean((1, 2))
        )
    assert torch.allclose(off[0], torch.ones(6), atol=1e-5)
    # The square of one minus what is evenly drawn from 0 to 1.
    assert ((off[1] > 0.0) & (off[1] < 1.0)).all()
    assert off[1].max() - off[1].min() > 0.1


def test_the_loss_of_the_decoder_comes_from_the_generator_alone() -> None:
    objective, _, _ = make_decoder_objective(hard_share=0.5)
    batch = decoder_batch()
    first, _ = objective(batch, seeded(1))
    torch.manual_seed(99)
    assert torch.equal(first, objective(batch, seeded(1))[0])
    assert not torch.equal(first, objective(batch, seeded(2))[0])
