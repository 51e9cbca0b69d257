from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.tokenizers import ConvTokenizer, ConvTokenizerConfig

from ..worlds import randomize


def small(height: int = 32, width: int = 32, **fields: Any) -> ConvTokenizer:
    tokenizer = ConvTokenizer(
        ConvTokenizerConfig(
            height=height, width=width, encoder_widths=(16, 16, 32), decoder_widths=(16, 32, 16), **fields
        )
    )
    randomize(tokenizer)
    return tokenizer.eval()


def pixels(batch: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    latent_dim=st.integers(1, 5),
    blocks=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
)
def test_one_latent_for_each_square_of_sixteen_pixels(
    rows: int, columns: int, latent_dim: int, blocks: tuple[int, int, int]
) -> None:
    tokenizer = small(
        16 * rows, 16 * columns, latent_dim=latent_dim, encoder_blocks=blocks, decoder_blocks=blocks[::-1]
    )
    pictures = pixels(2, 16 * rows, 16 * columns)
    latents = tokenizer.encode(pictures)
    assert tokenizer.config.grid == (rows, columns)
    assert latents.shape == (2, rows * columns, latent_dim)
    assert tokenizer.decode(latents).shape == pictures.shape


@torch.no_grad()
def test_latents_are_in_the_order_of_the_picture() -> None:
    """Row by row: a change in a corner of the picture is seen by the latents of that corner alone."""
    tokenizer = small(64, 96, encoder_blocks=(0, 0, 0))
    black = torch.full((1, 3, 64, 96), -1.0)
    for row, column, expected in (
        (0, 0, [0, 1, 6, 7]),
        (0, 5, [4, 5, 10, 11]),
        (3, 0, [12, 13, 18, 19]),
        (3, 5, [16, 17, 22, 23]),
    ):
        spot = black.clone()
        spot[:, :, 16 * row + 6 : 16 * row + 10, 16 * column + 6 : 16 * column + 10] = 1.0
        reaction = (tokenizer.encode(spot) - tokenizer.encode(black)).abs().amax(-1)[0] > 1e-6
        assert reaction.nonzero().flatten().tolist() == expected


@torch.no_grad()
def test_statistics_bring_the_latents_to_unit_variance() -> None:
    tokenizer = small()
    pictures = pixels(64)
    raw = tokenizer.encode_raw(pictures)
    tokenizer.set_statistics(raw)
    latents = tokenizer.encode(pictures).flatten(0, 1)
    torch.testing.assert_close(latents.mean(0), torch.zeros(16), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(latents.std(0), torch.ones(16), atol=1e-3, rtol=0.0)
    # And back: decoding does not notice the change of units.
    torch.testing.assert_close(
        tokenizer.decode(tokenizer.encode(pictures)), tokenizer.decode_raw(raw), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_a_latent_that_never_changes_does_no_harm() -> None:
    tokenizer = small()
    tokenizer.set_statistics(torch.full((4, 16, 2, 2), 0.3))
    assert tokenizer.encode(pixels(2)).isfinite().all()


@torch.no_grad()
def test_a_batch_gives_what_each_gives_alone() -> None:
    tokenizer = small()
    pictures = pixels(3)
    latents = tokenizer.encode(pictures)
    decoded = tokenizer.decode(latents)
    for index in range(3):
        alone = tokenizer.encode(pictures[index : index + 1])
        torch.testing.assert_close(alone[0], latents[index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokenizer.decode(alone)[0], decoded[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["height", "width"])
@pytest.mark.parametrize("value", [0, 17, -16])
def test_a_wrong_size_names_the_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field}={value}: .* multiple of 16"):
        ConvTokenizerConfig(**{"height": 32, "width": 32, field: value})


@torch.no_grad()
def test_a_guide_is_ignored_until_it_is_learned() -> None:
    config = ConvTokenizerConfig(
        height=32, width=32, guide_dim=3, encoder_widths=(16, 16, 16), decoder_widths=(16, 16, 16)
    )
    tokenizer, latents = ConvTokenizer(config).eval(), torch.randn(2, 4, 16)
    guide = torch.randn(2, 4, 3)
    assert torch.equal(tokenizer.decode(latents, guide), tokenizer.decode(latents))
    randomize(tokenizer)
    assert not torch.allclose(tokenizer.decode(latents, guide), tokenizer.decode(latents), atol=1e-3)
    assert torch.equal(tokenizer.decode(latents, torch.zeros(2, 4, 3)), tokenizer.decode(latents))


@torch.no_grad()
def test_a_guide_stands_beside_its_latent() -> None:
    """Told of a corner of the picture, it changes that corner alone."""
    tokenizer = small(64, 96, guide_dim=2, decoder_blocks=(0, 0, 0))
    latents, guide = torch.zeros(1, 24, 16), torch.zeros(1, 24, 2)
    guide[0, 5] = 1.0
    change = (tokenizer.decode(latents, guide) - tokenizer.decode(latents)).abs().amax(1)[0]
    corner = torch.zeros(64, 96, dtype=torch.bool)
    corner[:20, 76:] = True
    assert change[corner].max() > 1e-3
    assert change[~corner].max() == 0.0
