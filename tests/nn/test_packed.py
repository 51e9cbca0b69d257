import copy

import pytest
import torch
from torch import nn

from kinema.nn.blocks import Block
from kinema.nn.embeddings import rotary_table
from kinema.nn.packed import PackedLinear, can_pack, pack_linears

from ..worlds import randomize

needs_packing = pytest.mark.skipif(
    not can_pack(torch.float32, "cpu"), reason="PyTorch has no packed products"
)


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (38,), (300,), (2, 3, 5)])
def test_packed_is_plain(rows: tuple[int, ...], has_bias: bool) -> None:
    linear = nn.Linear(48, 80, bias=has_bias)
    x = torch.randn(*rows, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PackedLinear(linear.weight, linear.bias)(x), linear(x), atol=1e-5, rtol=1e-4)
    if can_pack(torch.bfloat16, "cpu"):
        half = copy.deepcopy(linear).to(torch.bfloat16)
        found, expected = PackedLinear(half.weight, half.bias)(x), half(x.bfloat16())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


@needs_packing
@torch.inference_mode()
def test_every_linear_map_of_a_network_is_packed_and_it_gives_the_same() -> None:
    block = Block(32, 2, 64, is_temporal=True)
    randomize(block)
    x = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(0))
    rotary, mask = rotary_table(torch.arange(3.0), 16), torch.ones(3, 3, dtype=torch.bool).tril()
    packed = copy.deepcopy(block)
    pack_linears(packed)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    expected, _ = block(x, rotary, mask)
    torch.testing.assert_close(packed(x, rotary, mask)[0], expected, atol=1e-4, rtol=1e-4)
    # Copied as sessions and worlds are.
    torch.testing.assert_close(copy.deepcopy(packed)(x, rotary, mask)[0], packed(x, rotary, mask)[0])


def test_what_cannot_be_packed_stays() -> None:
    assert not can_pack(torch.float32, "meta")
    network = nn.Sequential(nn.Linear(8, 8, device="meta"))
    pack_linears(network)
    assert isinstance(network[0], nn.Linear)
