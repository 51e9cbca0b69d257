"""A recording of three cameras of different size, as an arm's: read, checked, cut into segments."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.data.check import draw_contact_sheet
from kinema.data.defects import find_defects, training_problems
from kinema.data.segments import load_segments
from kinema.recipes import RECIPES

from ..cameras import JOINTS, SIZES, write_arm


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write_arm(tmp_path_factory.mktemp("arm") / "data"))


def test_it_is_read_whole(arm: Dataset) -> None:
    assert (arm.num_episodes, arm.num_frames, set(arm.cameras)) == (3, 79, set(SIZES))
    assert find_defects(arm.root) == []
    for index, length in enumerate((22, 31, 26)):
        episode = arm.episode(index)
        assert {key: shown.shape for key, shown in episode.frames.items()} == {
            key: (length, *size, 3) for key, size in SIZES.items()
        }
        assert episode.columns["action"].shape == (length, len(JOINTS))
        assert episode.task == ("pick the red block", "push the red block")[index % 2]
    sheet = draw_contact_sheet(arm)
    assert sheet is not None
    assert sheet.std() > 10


def test_a_recipe_learns_each_camera_in_its_aspect(arm: Dataset, tmp_path: Path) -> None:
    recipe = RECIPES["tiny"](arm)
    by_camera = dict(zip(arm.cameras, recipe.segments.sizes or (), strict=True))
    for key, (height, width) in by_camera.items():
        assert width / height == pytest.approx(SIZES[key][1] / SIZES[key][0], rel=0.25)
    check = training_problems(arm, segment_length=17, columns=("action", "observation.state", *arm.cameras))
    assert (check.fatal, check.left_out, check.usable_episodes.tolist()) == ([], [], [0, 1, 2])
    segments = load_segments(arm, recipe.segments, tmp_path / "cache", progress=False)
    assert {key: frames.shape[1:3] for key, frames in segments.frames.items()} == by_camera
    batch = segments.draw_pairs(np.random.default_rng(0), 4)
    assert batch.pictures.shape[2:4] in by_camera.values()
