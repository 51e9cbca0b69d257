"""Numbers on episodes that the world was trained on say so."""

import json
from pathlib import Path

from kinema.evaluation.rollout import TRAINING_FILE, note_on_training

from .drawn import Recording


def trained(folder: Path, data: str, num_held_out: int) -> str:
    path = folder / TRAINING_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"data": data, "num_held_out": num_held_out}))
    return str(folder)


def test_episodes_that_were_trained_on_are_counted(recording: Recording, tmp_path: Path) -> None:
    dataset = recording.dataset
    world = trained(tmp_path, str(dataset.root), 1)
    (note,) = note_on_training(world, dataset, [0, 3, 3])
    assert "trained on 1 of the 2 episodes" in note
    assert "only the last 1 of the dataset" in note
    assert note_on_training(world, dataset, [3]) == []


def test_a_dataset_of_one_episode_holds_nothing_out(recording: Recording, tmp_path: Path) -> None:
    dataset = recording.dataset
    world = trained(tmp_path, str(dataset.root), 0)
    assert "none of the dataset was held out" in note_on_training(world, dataset, [3])[0]


def test_other_recordings_and_worlds_without_a_record_get_no_note(
    recording: Recording, tmp_path: Path
) -> None:
    dataset = recording.dataset
    assert note_on_training(trained(tmp_path / "a", "elsewhere", 1), dataset, [0]) == []
    assert note_on_training("pusht", dataset, [0]) == []
    (tmp_path / "b" / TRAINING_FILE).parent.mkdir(parents=True)
    (tmp_path / "b" / TRAINING_FILE).write_text("{")
    assert note_on_training(str(tmp_path / "b"), dataset, [0]) == []
