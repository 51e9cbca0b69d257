"""Every recipe: what it makes of a dataset, and the first updates of training with it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kinema.data import DataError, Dataset, DatasetWriter
from kinema.recipes import RECIPES, SIZES, Recipe, Schedule
from kinema.train import loop as loop_module
from kinema.train.command import TrainConfig, train

from ..worlds import CAMERA, PROPRIO, write_exact_world

NUM_UPDATES = 3
GOLDENS: dict[str, dict[str, list[tuple[float, float]]]] = {
    "mini": {
        "tokenizer": [(6.5093, 1.7369), (6.5104, 1.7386), (6.5078, 1.735)],
        "dynamics": [
            (1.6602, 0.30562),
            (1.448, 0.95984),
            (1.3143, 1.0334),
            (1.8236, 0.29237),
            (1.287, 0.79597),
            (1.2484, 0.51687),
            (1.2146, 0.9685),
            (1.2551, 0.21512),
            (1.4786, 1.7927),
        ],
    },
    "tiny": {
        "tokenizer": [(6.4619, 1.6751), (6.46, 1.6785), (6.4529, 1.679)],
        "manifold": [(0.67684, 2.1601), (0.66409, 1.7563), (0.66257, 1.7643)],
        "decoder": [(6.4502, 1.6905), (6.43, 1.6951), (6.4261, 1.6901)],
        "dynamics": [
            (1.9261, 0.44327),
            (1.3886, 1.0108),
            (1.662, 0.60874),
            (2.1985, 0.52224),
            (1.3341, 1.0272),
            (1.3951, 0.75996),
        ],
    },
    "pusht": {
        "tokenizer": [(6.4748, 2.1044), (6.4713, 2.1058), (6.4674, 2.1082)],
        "manifold": [(0.73388, 2.2837), (0.71321, 2.1279), (0.69696, 2.1493)],
        "decoder": [(6.4604, 2.1217), (6.4618, 2.1264), (6.4562, 2.1315)],
        "dynamics": [
            (1.7425, 0.55359),
            (1.822, 0.57236),
            (1.2427, 0.85364),
            (1.7917, 0.60869),
            (1.792, 0.60033),
            (1.1506, 1.1754),
        ],
    },
}
"""Loss and gradient norm of the first updates, in single precision, by recipe and stage. The dynamics goes
through the first three updates of each of its phases.

A change that means to alter training alters these: the test that fails prints the new ones, ready to paste.
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exact") / "data"
    return write_exact_world(root, lengths=(20,) * 4, has_proprio=True)


def shorten(schedule: Schedule) -> Schedule:
    phases = tuple(dataclasses.replace(phase, updates=NUM_UPDATES) for phase in schedule.phases)
    return dataclasses.replace(schedule, phases=phases)


@pytest.mark.parametrize("name", GOLDENS)
def test_first_updates(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RECIPES[name]

    def short(dataset: Dataset) -> Recipe:
        recipe = original(dataset)
        return dataclasses.replace(
            recipe,
            tokenizer_schedule=shorten(recipe.tokenizer_schedule),
            manifold_schedule=shorten(recipe.manifold_schedule) if recipe.manifold_schedule else None,
            decoder_schedule=shorten(recipe.decoder_schedule) if recipe.decoder_schedule else None,
            dynamics_schedule=shorten(recipe.dynamics_schedule),
        )

    monkeypatch.setitem(RECIPES, name, short)
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    assert train(TrainConfig(data=str(data), out=tmp_path, recipe=name, precision="float32")) == 0
    got: dict[str, list[tuple[float, float]]] = {}
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            pair = (float(f"{line['loss']:.5g}"), float(f"{line['gradient_norm']:.5g}"))
            got.setdefault(line["stage"], []).append(pair)
    golden = GOLDENS.get(name, {})
    assert got.keys() == golden.keys(), f"no goldens for {name!r}; got {got}"
    for stage, pairs in golden.items():
        # Other processors sum in another order, and latents are kept in half precision.
        np.testing.assert_allclose(got[stage], pairs, rtol=0.02, err_msg=f"{name}, {stage}: got {got[stage]}")


@pytest.mark.parametrize("name", [*SIZES, "pusht"])
def test_the_parts_of_a_recipe_fit_each_other(name: str, data: Path) -> None:
    recipe = RECIPES[name](Dataset.open(data))
    assert recipe.tokenizer is not None
    assert recipe.segments.cameras == (CAMERA,)
    size = (recipe.tokenizer.height, recipe.tokenizer.width)
    assert recipe.segments.sizes_of([CAMERA]) == {CAMERA: size}
    assert recipe.dynamics.grids == (recipe.tokenizer.grid,)
    assert recipe.dynamics.latent_dim == recipe.tokenizer.latent_dim
    assert recipe.dynamics.action_dim == 2
    assert recipe.dynamics.proprio_dim == (2 if recipe.segments.proprio else 0)
    assert 1 <= recipe.num_held_out < 4
    # Only a rollout of some frames can be its own context.
    for phase in recipe.dynamics_schedule.phases:
        assert phase.length > recipe.dynamics.window or not phase.own_context_share


def test_all_cameras_and_their_shape_are_taken(droid: Path) -> None:
    dataset = Dataset.open(droid)
    for name in ("base", "tiny"):
        recipe = RECIPES[name](dataset)
        assert recipe.segments.cameras == dataset.cameras
        assert recipe.segments.proprio == PROPRIO
        assert len(recipe.dynamics.grids) == 3
        assert recipe.tokenizer is not None
        height, width, _ = dataset.features[dataset.cameras[0]]["shape"]
        assert recipe.tokenizer.width / recipe.tokenizer.height == pytest.approx(width / height, rel=0.15)


def test_each_camera_is_learned_in_its_own_aspect(tmp_path: Path) -> None:
    shapes = {"wide": (48, 96), "portrait": (72, 40), "panorama": (16, 480)}
    with DatasetWriter(tmp_path / "d", fps=10, codec="image") as writer:
        writer.add(
            frames={
                f"observation.images.{key}": np.zeros((3, *shape, 3), np.uint8)
                for key, shape in shapes.items()
            },
            columns={"action": np.zeros((3, 2), np.float32)},
        )
    recipe = RECIPES["tiny"](Dataset.open(tmp_path / "d"))
    assert recipe.segments.sizes == ((32, 64), (32, 16), (16, 256))
    assert recipe.dynamics.grids == ((2, 4), (2, 1), (1, 16))
    assert recipe.dynamics.patch == 1
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.grid == (2, 4)


def write_columns(root: Path, *keys: str) -> Dataset:
    with DatasetWriter(root, fps=10) as writer:
        writer.add(frames={}, columns={key: np.zeros((20, 3), np.float32) for key in keys})
    return Dataset.open(root)


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_vectors_alone(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name](write_columns(tmp_path / "data", "action", PROPRIO))
    assert recipe.tokenizer is None
    assert recipe.dynamics.grids == ()
    assert (recipe.dynamics.action_dim, recipe.dynamics.proprio_dim) == (3, 3)


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    without_action = write_columns(tmp_path / "one", PROPRIO)
    assert RECIPES[name](without_action).dynamics.action_dim == 0
    without_state = write_columns(tmp_path / "two", "action", "effort")
    with pytest.raises(
        DataError, match=r"neither a camera .* nor 'observation\.state'; it has action, effort"
    ):
        RECIPES[name](without_state)


def test_the_recipe_of_a_kit_wants_its_kind_of_data(droid: Path) -> None:
    several = r"recipe 'pusht' learns one camera, this dataset has 3 .*; train without --recipe"
    with pytest.raises(DataError, match=several):
        RECIPES["pusht"](Dataset.open(droid))


def test_the_recipe_of_a_kit_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"learns one camera, this dataset has 0 \(none\)"):
        RECIPES["pusht"](write_columns(tmp_path / "vectors", "action", PROPRIO))
    blind = Dataset.open(write_exact_world(tmp_path / "blind", lengths=(20,)))
    with pytest.raises(DataError, match=r"learns 'observation\.state', which this dataset lacks"):
        RECIPES["pusht"](blind)
