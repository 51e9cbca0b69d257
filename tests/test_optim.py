"""Muon in single precision is PyTorch's own, but for the rounding of bfloat16."""

import pytest
import torch

from kinema.optim import SinglePrecisionMuon


def trained(kind: type[torch.optim.Muon], shape: tuple[int, int], num_updates: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = kind([parameter], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(num_updates):
        parameter.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_single_precision_is_as_pytorch_has_it(shape: tuple[int, int]) -> None:
    begun = trained(SinglePrecisionMuon, shape, 0)
    single, own = (trained(kind, shape) - begun for kind in (SinglePrecisionMuon, torch.optim.Muon))
    assert (single - own).norm() < 0.02 * own.norm()
    assert own.norm() > 0.1


def test_what_one_saves_the_other_loads() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 6))
    single = SinglePrecisionMuon([parameter])
    parameter.grad = torch.ones(4, 6)
    single.step()
    own = torch.optim.Muon([parameter])
    own.load_state_dict(single.state_dict())
    torch.testing.assert_close(
        own.state[parameter]["momentum_buffer"], single.state[parameter]["momentum_buffer"]
    )
