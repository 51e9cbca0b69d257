import math

import torch

from kinema.model import FourierFeatures, rotary_table, rotate


def test_fourier_features_are_the_value_and_its_waves() -> None:
    features = FourierFeatures(2, 2)
    value = torch.tensor([[0.3, -0.1]])
    expected = [0.3, -0.1]
    for wave in (math.sin, math.cos):
        for number in (0.3, -0.1):
            expected += [wave(math.pi * number), wave(2 * math.pi * number)]
    torch.testing.assert_close(features(value), torch.tensor([expected]))
    assert features(value).shape[-1] == features.size


def test_random_directions_are_the_same_in_every_process_and_no_faster_than_the_octaves() -> None:
    features, again = FourierFeatures(3, 4, 50), FourierFeatures(3, 4, 50)
    assert torch.equal(features.frequencies, again.frequencies)
    speeds = features.frequencies[:, 12:].norm(dim=0)
    assert speeds.shape == (50,)
    assert math.pi <= speeds.min() <= speeds.max() <= 8 * math.pi
    torch.testing.assert_close(features(torch.zeros(1, 3)), torch.tensor([[0.0] * (3 + 62) + [1.0] * 62]))


def test_rotation_keeps_lengths_and_leaves_position_zero_alone() -> None:
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *rotary_table(torch.tensor([0.0, 1.0, -2.0, 7.5]), 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1], x[:, 1])


def test_products_depend_on_the_difference_of_positions_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 8, generator=generator), torch.randn(1, 8, generator=generator)

    def product(at_query: float, at_key: float) -> float:
        turned_query = rotate(query, *rotary_table(torch.tensor([at_query]), 8))
        turned_key = rotate(key, *rotary_table(torch.tensor([at_key]), 8))
        return (turned_query * turned_key).sum().item()

    assert math.isclose(product(5.0, 2.0), product(0.0, -3.0), abs_tol=1e-5)
    assert math.isclose(product(105.0, 102.0), product(0.0, -3.0), abs_tol=1e-4)
    assert not math.isclose(product(5.0, 2.0), product(5.0, 1.0), abs_tol=1e-3)
