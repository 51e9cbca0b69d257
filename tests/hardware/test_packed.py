import copy

import pytest
import torch
from torch import nn

from kinema.hardware import packed
from kinema.hardware.packed import PackedConv2d, PackedLinear, can_halve, can_pack, pack, pack_convolutions
from kinema.model.blocks import Block
from kinema.model.embeddings import rotary_table
from kinema.tokenizers.convolutional import ConvTokenizer, ConvTokenizerConfig

from ..worlds import randomize

needs_packing = pytest.mark.skipif(
    not can_pack(torch.float32, "cpu"), reason="PyTorch has no packed products"
)


@pytest.fixture(params=[False, True])
def prefers_packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on processors of both kinds."""
    monkeypatch.setattr("kinema.hardware.packed.prefers_packed", lambda device: request.param)
    return request.param


@needs_packing
@torch.inference_mode()
@pytest.mark.usefixtures("prefers_packed")
@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (38,), (300,), (2, 3, 5)])
def test_packed_is_plain(rows: tuple[int, ...], has_bias: bool, is_exact: bool) -> None:
    linear = nn.Linear(48, 80, bias=has_bias)
    if is_exact:
        linear.weight.copy_(linear.weight.half())
    x = torch.randn(*rows, 48, generator=torch.Generator().manual_seed(0))
    found = PackedLinear(linear.weight, linear.bias, torch.float32)
    assert (found._half is not None) == (is_exact and can_halve("cpu"))
    torch.testing.assert_close(found(x), linear(x), atol=1e-5, rtol=1e-4)
    if can_pack(torch.bfloat16, "cpu"):
        found = PackedLinear(linear.weight, linear.bias, torch.bfloat16)
        torch.testing.assert_close(found(x).float(), linear(x), atol=0.03, rtol=0.02)


@needs_packing
@torch.inference_mode()
@pytest.mark.skipif(not can_halve("cpu"), reason="PyTorch has no products with weights in half precision")
@pytest.mark.skipif(not can_pack(torch.bfloat16, "cpu"), reason="PyTorch has no packed products in bfloat16")
def test_few_rows_are_multiplied_in_single_precision_in_a_map_of_bfloat16_too() -> None:
    linear = nn.Linear(64, 96)
    linear.weight.copy_(linear.weight.half())
    found = PackedLinear(linear.weight, linear.bias, torch.bfloat16)
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    few, many = found(x[:4]), found(x)
    assert (few.dtype, many.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(few, linear(x[:4]), atol=1e-5, rtol=1e-4)
    assert (many[:4].float() - few).abs().max() > 1e-3


@needs_packing
@torch.inference_mode()
@pytest.mark.usefixtures("prefers_packed")
def test_every_linear_map_of_a_network_is_packed_and_it_gives_the_same() -> None:
    block = Block(32, 2, 64, is_temporal=True)
    randomize(block)
    x = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(0))
    rotary, mask = rotary_table(torch.arange(3.0), 16), torch.ones(3, 3, dtype=torch.bool).tril()
    found = copy.deepcopy(block)
    pack(found, torch.float32)
    assert not any(isinstance(module, nn.Linear) for module in found.modules())
    expected, _ = block(x, rotary, mask)
    torch.testing.assert_close(found(x, rotary, mask)[0], expected, atol=1e-4, rtol=1e-4)
    # Copied as sessions and worlds are.
    torch.testing.assert_close(copy.deepcopy(found)(x, rotary, mask)[0], found(x, rotary, mask)[0])


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("num", [1, 3])
def test_a_decoder_with_packed_convolutions_draws_the_same(num: int) -> None:
    tokenizer = ConvTokenizer(ConvTokenizerConfig(height=32, width=48, guide_dim=4))
    randomize(tokenizer)
    latents = torch.randn(num, 6, 16, generator=torch.Generator().manual_seed(0))
    expected = tokenizer.decode(latents)
    found = copy.deepcopy(tokenizer)
    found.pack(torch.float32)
    assert not any(isinstance(module, nn.Conv2d) for module in found.decoder.modules())
    torch.testing.assert_close(found.decode(latents), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(copy.deepcopy(found).decode(latents), found.decode(latents))
    if can_pack(torch.bfloat16, "cpu"):
        found = copy.deepcopy(tokenizer)
        found.pack(torch.bfloat16)
        error = found.decode(latents).float() - expected
        assert error.abs().mean() < 0.02 * expected.std()


@needs_packing
@torch.inference_mode()
def test_a_packed_convolution_takes_pictures_of_another_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    found = copy.deepcopy(network)
    pack_convolutions(found, lambda: found(torch.zeros(1, 3, 8, 8)), torch.float32)
    assert isinstance(found[0], PackedConv2d)
    pictures = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(pictures), network(pictures), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_packed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(torch.float32, "meta")
    assert not can_halve("meta")
    network = nn.Sequential(nn.Linear(8, 8, device="meta"), nn.Conv2d(3, 8, 3, device="meta"))
    pack(network, torch.float32)
    assert isinstance(network[0], nn.Linear)
    monkeypatch.setattr(packed, "can_pack", lambda dtype, device: False)
    network = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 8, 3))
    pack(network, torch.bfloat16)
    assert [type(module) for module in network] == [nn.Linear, nn.Conv2d]
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
