import numpy as np
import pytest

from kinema.evaluation.frame_distance import MAX_PSNR, Slices, frame_error, psnr, sliced_frechet, ssim

CAMERA = "camera"


def pictures(num: int, *, seed: int = 0, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def test_psnr_is_that_of_the_mean_square_over_all_cameras() -> None:
    real = pictures(2)
    off = np.clip(real.astype(int) + 10, 0, 255).astype(np.uint8)
    squares = frame_error({"a": real, "b": real}, {"a": real, "b": off}) ** 2
    expected = ((off.astype(float) - real) ** 2).mean(axis=(1, 2, 3)) / 2
    np.testing.assert_allclose(squares, expected, rtol=1e-5)
    assert (psnr(255.0), psnr(0.0)) == (0.0, MAX_PSNR)


def test_ssim_follows_its_formula() -> None:
    one, other = pictures(1, size=9), pictures(1, seed=1, size=9)
    values = []
    for channel in range(3):
        for row in range(3):
            for column in range(3):
                x, y = (
                    p[0, row : row + 7, column : column + 7, channel].astype(float).ravel()
                    for p in (one, other)
                )
                covariance = np.cov(x, y)
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                above = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
                below = (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
                values.append(above / below)
    assert ssim({CAMERA: one}, {CAMERA: other})[0] == pytest.approx(np.mean(values), abs=1e-4)
    assert ssim({CAMERA: one}, {CAMERA: one})[0] == pytest.approx(1.0, abs=1e-5)


def moments(features: np.ndarray, *, num_rollouts: int) -> np.ndarray:
    slices = Slices(1, num_rollouts)
    owners = np.arange(len(features)) % num_rollouts
    # In two parts: what is kept are sums.
    for part in np.array_split(np.arange(len(features)), 2):
        slices.add("kind", np.array([0]), owners[part], features[part])
    return slices.pairs("kind")[0]


def test_frechet_distance_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0.0, 1.0, (40_000, 4))
    other = rng.normal(np.array([3.0, 0.0, 0.0, 0.0]), 2.0, (40_000, 4))
    measured = sliced_frechet(moments(one, num_rollouts=4), moments(other, num_rollouts=4))
    # Along a direction the means differ by 3 times its first part, whose square is 1/4 on average.
    assert measured == pytest.approx(9 / 4 + 1.0, rel=0.2)


def test_a_rollout_is_not_compared_with_itself() -> None:
    features = np.random.default_rng(0).normal(size=(8, 4))
    together = moments(features, num_rollouts=2)
    assert sliced_frechet(together, together) > 0.01
    assert np.isnan(sliced_frechet(together[:0], together[:0]))
