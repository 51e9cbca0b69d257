import pytest
import torch

from kinema.model import Block, LayerCache, norm, rotary_table
from kinema.model.attention import FEW_QUERIES, attend
from kinema.model.blocks import SpaceAttention, SwiGLU, TimeAttention

from ..worlds import randomize

WIDTH, HEADS = 16, 2


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal(time: int) -> torch.Tensor:
    return torch.ones(time, time, dtype=torch.bool).tril()


def test_norm_has_mean_zero_and_deviation_one() -> None:
    x = norm(5.0 + 3.0 * random(4, 64))
    torch.testing.assert_close(x.mean(-1), torch.zeros(4), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(x.square().mean(-1), torch.ones(4), atol=1e-4, rtol=0.0)


@torch.no_grad()
@pytest.mark.parametrize("rows", [(2,), (2, 3)])
@pytest.mark.parametrize("queries", [FEW_QUERIES, FEW_QUERIES + 1])
def test_attention_is_the_softmax_of_products(rows: tuple[int, ...], queries: int) -> None:
    q, k, v = (random(*rows, 1, length, 8, seed=seed) for seed, length in enumerate((queries, 5, 5)))
    mask = torch.tensor([[True, False, True, False, False]] * queries)
    scores = q @ k.transpose(-1, -2) / 8**0.5
    torch.testing.assert_close(attend(q, k, v), scores.softmax(-1) @ v)
    torch.testing.assert_close(attend(q, k, v, mask), scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v)


@pytest.mark.parametrize("is_temporal", [False, True])
def test_a_new_block_adds_nothing(is_temporal: bool) -> None:
    block = Block(WIDTH, HEADS, 32, is_temporal=is_temporal)
    x = random(2, 3, 4, WIDTH)
    rotary = rotary_table(torch.arange(3.0), WIDTH // HEADS)
    assert torch.equal(block(x, rotary, causal(3))[0], x)


def test_space_attention_stays_within_the_frame_and_does_not_care_for_order() -> None:
    attention = SpaceAttention(WIDTH, HEADS)
    randomize(attention)
    x = random(2, 3, 4, WIDTH)
    y = attention(x)
    changed = x.clone()
    changed[:, 1] += 1.0 + random(2, 4, WIDTH, seed=1)
    assert torch.equal(attention(changed)[:, [0, 2]], y[:, [0, 2]])
    assert not torch.allclose(attention(changed)[:, 1], y[:, 1])
    order = [2, 0, 3, 1]
    torch.testing.assert_close(attention(x[:, :, order]), y[:, :, order])


def test_time_attention_stays_within_the_token_and_the_mask() -> None:
    attention = TimeAttention(WIDTH, HEADS)
    randomize(attention)
    x, rotary = random(2, 5, 3, WIDTH), rotary_table(torch.arange(5.0), WIDTH // HEADS)
    y, _ = attention(x, rotary, causal(5))
    changed = x.clone()
    changed[:, 3, 1] += random(2, WIDTH, seed=1)
    different = (attention(changed, rotary, causal(5))[0] - y).abs().amax((0, 3)) > 1e-6
    expected = torch.zeros(5, 3, dtype=torch.bool)
    expected[3:, 1] = True
    assert torch.equal(different, expected)


def test_time_attention_does_not_care_for_the_clock() -> None:
    attention = TimeAttention(WIDTH, HEADS)
    randomize(attention)
    x = random(1, 4, 2, WIDTH)
    early, _ = attention(x, rotary_table(torch.arange(4.0), WIDTH // HEADS), causal(4))
    late, _ = attention(x, rotary_table(torch.arange(50.0, 54.0), WIDTH // HEADS), causal(4))
    torch.testing.assert_close(early, late, atol=1e-4, rtol=1e-4)


def test_frames_may_see_others_that_went_through_before() -> None:
    block = Block(WIDTH, HEADS, 32, is_temporal=True)
    randomize(block)
    x, rotary = random(2, 5, 3, WIDTH), rotary_table(torch.arange(5.0), WIDTH // HEADS)
    together, _ = block(x, rotary, causal(5))
    first, past = block(x[:, :3], (rotary[0][:3], rotary[1][:3]), causal(3))
    later, _ = block(x[:, 3:], (rotary[0][3:], rotary[1][3:]), causal(5)[3:], past)
    torch.testing.assert_close(torch.cat([first, later], dim=1), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_temporal", [False, True])
def test_streaming_a_block_gives_what_training_gives(is_temporal: bool) -> None:
    batch, time, tokens = 2, 6, 3
    block = Block(WIDTH, HEADS, 32, is_temporal=is_temporal)
    randomize(block)
    x = random(batch, time, tokens, WIDTH)
    together, _ = block(x, rotary_table(torch.arange(float(time)), WIDTH // HEADS), causal(time))
    cache = None
    if is_temporal:
        cache = LayerCache(
            batch=batch,
            tokens=tokens,
            num_heads=HEADS,
            head_dim=WIDTH // HEADS,
            window=time,
            max_rewind=0,
            like=x,
        )
    for t in range(time):
        streamed = block.step(x[:, t : t + 1], rotary_table(torch.tensor([t]), WIDTH // HEADS), cache)
        if cache is not None:
            cache.keep()
        torch.testing.assert_close(streamed, together[:, t : t + 1], atol=1e-5, rtol=1e-5)


def test_the_gated_mlp_sees_each_token_alone() -> None:
    mlp = SwiGLU(WIDTH, 32)
    randomize(mlp)
    x = random(2, 3, WIDTH)
    torch.testing.assert_close(mlp(x)[1, 2], mlp(x[1:, 2:])[0, 0])
