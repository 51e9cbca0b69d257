import pytest
import torch
from torch import nn

from kinema.train.optim import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 5, 5)])
def test_singular_values_become_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ v.mT
    values = inner.diagonal(dim1=1, dim2=2)
    # The iteration does not converge, it comes near enough.
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_it_is_the_muon_of_pytorch() -> None:
    """But for bfloat16, in which that computes."""
    shapes = [(8, 24), (24, 8), (8, 24), (6, 6)]
    ours, theirs = (
        [
            nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(i)))
            for i, s in enumerate(shapes)
        ]
        for _ in range(2)
    )
    start = [p.detach().clone() for p in ours]
    one = Muon([{"params": ours, "use_muon": True}], lr=0.1, weight_decay=0.2)
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, its, first in zip(ours, theirs, start, strict=True):
        assert (mine - its).norm() < 0.02 * (its - first).norm()
    keys = [set(state) for optimizer in (one, other) for state in optimizer.state.values()]
    assert all(key == {"momentum_buffer"} for key in keys)
