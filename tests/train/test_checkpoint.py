import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kinema.recipes import Phase, Schedule
from kinema.train.checkpoint import load_checkpoint, read_state, save_checkpoint
from kinema.train.optim import MovingAverage, build_optimizer
from kinema.types import CheckpointError

from ..worlds import full_disk

SCHEDULE = Schedule(phases=(Phase(updates=10, batch=1),), learning_rate=0.1)


class Run:
    """A module with its optimizer and moving average, as training has them; convolutions channels last."""

    def __init__(self, seed: int, width: int = 3):
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Conv2d(2, width, 3), nn.Flatten(), nn.Linear(width * 4, 1))
        self.module.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.module, SCHEDULE)
        self.average = MovingAverage(self.module, 0.9)

    def update(self, seed: int) -> None:
        x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad()
        self.module(x).square().mean().backward()
        self.optimizer.step()
        self.average.follow(1000)

    def save(self, folder: Path, update: int) -> None:
        save_checkpoint(
            folder,
            state={"update": update},
            module=self.module,
            average=self.average,
            optimizer=self.optimizer,
        )

    def load(self, folder: Path) -> None:
        load_checkpoint(folder, module=self.module, average=self.average, optimizer=self.optimizer)

    def tensors(self) -> dict[str, Tensor]:
        averages = {f"ema.{key}": value for key, value in self.average.tensors.items()}
        return {**self.module.state_dict(), **averages}


@pytest.fixture
def run() -> Run:
    run = Run(seed=0)
    for seed in range(3):
        run.update(seed)
    return run


def test_there_is_no_state_before_the_first_checkpoint(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none") is None


def test_a_loaded_run_goes_on_as_the_saved_one(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "checkpoint", 3)
    assert read_state(tmp_path / "checkpoint") == {"update": 3}
    other = Run(seed=99)
    other.load(tmp_path / "checkpoint")
    for seed in range(3, 6):
        run.update(seed)
        other.update(seed)
        for key, value in run.tensors().items():
            assert torch.equal(other.tensors()[key], value), key


def test_the_new_one_replaces_the_old_one(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "checkpoint", 3)
    run.update(3)
    run.save(tmp_path / "checkpoint", 4)
    assert read_state(tmp_path / "checkpoint") == {"update": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_run_killed_between_the_two_renames_has_the_old_one(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    run.save(folder, 3)
    folder.rename(tmp_path / "checkpoint.previous")
    (tmp_path / ".checkpoint.part").mkdir()
    assert read_state(folder) == {"update": 3}
    other = Run(seed=99)
    other.load(folder)
    assert torch.equal(other.module[0].weight, run.module[0].weight)
    run.save(folder, 4)
    assert read_state(folder) == {"update": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def damage_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text()[:-4])


def forget_update(folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({"updates": 3}))


def no_object(folder: Path) -> None:
    (folder / "state.json").write_text("3")


def remove_state(folder: Path) -> None:
    (folder / "state.json").unlink()


@pytest.mark.parametrize("damage", [damage_state, forget_update, no_object, remove_state])
def test_a_damaged_state_is_named(run: Run, tmp_path: Path, damage: object) -> None:
    folder = tmp_path / "checkpoint"
    run.save(folder, 3)
    assert callable(damage)
    damage(folder)
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be used .*; remove .* to begin anew"):
        read_state(folder)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_damaged_tensors_are_named(run: Run, tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "checkpoint"
    run.save(folder, 3)
    path = folder / "tensors.safetensors"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content or path.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"tensors\.safetensors: cannot be used .*; remove .*checkpoint"
    ):
        Run(seed=0).load(folder)


def test_a_checkpoint_of_another_network_is_refused(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "checkpoint", 3)
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors: cannot be used (?s:.*)size mismatch"):
        Run(seed=0, width=4).load(tmp_path / "checkpoint")


def test_what_cannot_be_written_leaves_the_old_one(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    run.save(folder, 3)
    with (
        full_disk(1000),
        pytest.raises(
            CheckpointError, match=r"could not be written .* make room .* checkpoint before is kept"
        ),
    ):
        run.save(folder, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert read_state(folder) == {"update": 3}
    Run(seed=0).load(folder)
    run.save(folder, 4)
    assert read_state(folder) == {"update": 4}
