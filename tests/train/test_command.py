import contextlib
import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kinema.data import DataError, Dataset, DatasetWriter
from kinema.data.segments import Segments
from kinema.model.decoder_objective import DecoderObjective
from kinema.model.manifold import ManifoldObjective
from kinema.model.objective import DynamicsObjective
from kinema.model.world import CONFIG_FILE, WEIGHTS_FILE
from kinema.recipes import RECIPES, Phase, Recipe, Schedule
from kinema.recipes.added import GO_ON, Part
from kinema.simulation.world import load
from kinema.tokenizers import TokenizerObjective
from kinema.train import loop as loop_module
from kinema.train.checkpoint import read_state
from kinema.train.command import TrainConfig, train
from kinema.train.loader import Loader
from kinema.train.loop import Interrupt, LoopConfig, Run, Stage, Stopped, fit
from kinema.train.optim import build_optimizer
from kinema.train.progress import MetricsLog
from kinema.types import CheckpointError

from ..worlds import CAMERA, PROPRIO, full_disk, write_exact_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exact") / "data"
    return write_exact_world(root, lengths=(20, 18, 25, 17, 30), has_proprio=True)


@pytest.fixture(autouse=True)
def every_update_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)


def config_of(data: Path, out: Path, **fields: Any) -> TrainConfig:
    """Three updates of the tokenizer, of the manifold and of the dynamics (two plain, one with its own
    context)."""
    return TrainConfig(data=str(data), out=out, **{"recipe": "tiny", "update_share": 0.02, **fields})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / WEIGHTS_FILE)


def numbers(out: Path) -> list[dict[str, float]]:
    """What was logged, without the speed."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "frames_per_second"} for line in lines]


def assert_same_world(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "LOG_EVERY", 1)
        assert train(config_of(data, out)) == 0
    return out


def test_training_leaves_a_world(uninterrupted: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = load(uninterrupted)
    assert (world.name, world.fps, world.cameras, world.action_dim) == ("world", 10.0, (CAMERA,), 2)
    assert world.config.proprio_key == PROPRIO
    assert len(world.config.action_names) == 2
    episode = Dataset.open(data).episode(4)
    frames, actions = episode.frames[CAMERA], episode.columns["action"]
    sim = world.start(frames[:3], actions[:2], proprio=episode.columns[PROPRIO][:3])
    assert sim.step(actions[2]).frame.shape == (32, 32, 3)
    # The units of the dataset: the range of its actions is brought to [-1, 1].
    normalized = world.action_normalizer.normalize(torch.from_numpy(actions))
    assert 0.9 < normalized.abs().max() < 1.2
    sheets = list((uninterrupted / "progress").glob("*.png"))
    assert [sheet.name for sheet in sheets] == ["0000003.png"]


def test_what_is_logged(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    stages = [(line["stage"], line["update"]) for line in lines]
    once = [(stage, u) for stage in ("tokenizer", "manifold", "decoder", "dynamics") for u in (1, 2, 3)]
    assert stages == [*once, ("dynamics", 3)]
    assert all(line["gradient_norm"] > 0 and line["frames_per_second"] > 0 for line in lines[:-1])
    assert {"loss", "psnr", "psnr_moving"} <= lines[0].keys()
    assert {"loss", "latents", "codes"} <= lines[3].keys()
    assert {"loss", "psnr", "psnr_moving"} <= lines[6].keys()
    assert {"loss", "simulate_observations", "simulate_proprio", "act", "infer"} <= lines[9].keys()
    assert math.isfinite(lines[-1]["held_out_psnr"])


def test_stopped_after_every_update_it_is_the_same_run(
    data: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, calls = tmp_path / "world", 0
    while train(config_of(data, out, max_minutes=1e-9)) == 130:
        assert "stopped; the same command continues" in capsys.readouterr().out
        calls += 1
    # After the last update of a stage there is nothing to stop.
    assert calls == 8
    assert_same_world(out, uninterrupted)
    assert numbers(out) == numbers(uninterrupted)


def going_on(
    data: Path, world: Path, out: Path, num_updates: int, part: Part = "dynamics", **fields: Any
) -> TrainConfig:
    share = num_updates / GO_ON[part][0]
    return config_of(data, out, from_=str(world), update_share=share, parts=(part,), **fields)


def test_a_finished_world_goes_on_learning(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Its dynamics does, and nothing else changes."""
    out = tmp_path / "world"
    assert train(going_on(data, uninterrupted, out, 1)) == 0
    before, after = weights(uninterrupted), weights(out)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all(key.startswith("dynamics.") for key in changed)
    assert after.keys() == before.keys()
    assert [sheet.name for sheet in (out / "progress").iterdir()] == ["0000001.png"]


@pytest.mark.parametrize(("part", "changes"), [("manifold", "manifold."), ("decoder", "tokenizer.decoder.")])
def test_other_parts_of_it_go_on_learning(
    data: Path, uninterrupted: Path, tmp_path: Path, part: Part, changes: str, capsys: pytest.CaptureFixture
) -> None:
    """Only the named one; what reads codes has to be learned anew where they are others."""
    out = tmp_path / "world"
    assert train(going_on(data, uninterrupted, out, 2, part, also=(str(data),))) == 0
    before, after = weights(uninterrupted), weights(out)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all(key.startswith(changes) for key in changed)
    assert not any(key.startswith("manifold.to_robot") for key in changed)
    assert ("learned anew" in capsys.readouterr().out) == (part == "manifold")


def test_worlds_keep_codes_of_what_they_learn_from(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that had none, too, once they go on; what is there stays until the manifold is another."""
    tiny = RECIPES["tiny"]

    def keeping(dataset: Dataset) -> Recipe:
        recipe = tiny(dataset)
        assert recipe.manifold is not None
        return dataclasses.replace(recipe, manifold=dataclasses.replace(recipe.manifold, num_recorded=1024))

    def codes(out: Path) -> torch.Tensor:
        manifold = load(out).manifold
        assert manifold is not None
        assert manifold.recorded is not None
        assert manifold.recorded.is_fitted
        return manifold.recorded.codes

    monkeypatch.setitem(RECIPES, "tiny", keeping)
    assert train(config_of(data, tmp_path / "new")) == 0
    assert len(codes(tmp_path / "new")) == 1024
    assert train(going_on(data, uninterrupted, tmp_path / "first", 1)) == 0
    first = codes(tmp_path / "first")
    moved = load(tmp_path / "first")
    assert moved.manifold is not None
    assert moved.manifold.recorded is not None
    moved.manifold.recorded.kept.neg_()
    moved.save(tmp_path / "moved")
    assert train(going_on(data, tmp_path / "moved", tmp_path / "second", 1)) == 0
    assert torch.equal(codes(tmp_path / "second"), -first)
    assert train(going_on(data, tmp_path / "moved", tmp_path / "third", 1, "manifold")) == 0
    assert torch.cdist(-first, codes(tmp_path / "third")).min(1)[0].max() > 0.2


def test_only_parts_that_a_finished_world_has_go_on(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--parts is for a finished world"):
        train(config_of(data, tmp_path / "new", parts=("manifold",)))
    with pytest.raises(ValueError, match="--parts manifold: the recipe 'base'"):
        train(going_on(data, uninterrupted, tmp_path / "world", 1, "manifold", recipe="base"))


def test_it_goes_on_with_the_episodes_of_several_datasets(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the others', and those of the first that are not held out; never across an end."""
    lengths: list[np.ndarray] = []
    draw_rows = Segments.draw_rows

    def spy(self: Segments, *arguments: Any, **named: Any) -> np.ndarray:
        lengths.append(self.lengths)
        assert (self.lengths.sum(), len(self.lengths)) == (len(self.actions), (~self.has_action).sum())
        return draw_rows(self, *arguments, **named)

    monkeypatch.setattr(Segments, "draw_rows", spy)
    out = tmp_path / "world"
    assert train(going_on(data, uninterrupted, out, 1, also=(str(data),))) == 0
    every = Dataset.open(data).lengths()
    first = lengths[-1][: -len(every)]
    assert 0 < len(first) < len(every)
    assert lengths[-1].tolist() == [*every[: len(first)], *every]


def test_stopped_it_goes_on_as_if_it_had_not_been(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(going_on(data, uninterrupted, whole, 2)) == 0
    assert train(going_on(data, uninterrupted, parts, 2, max_minutes=1e-9)) == 130
    assert train(going_on(data, uninterrupted, parts, 2, max_minutes=1e-9)) == 0
    assert_same_world(whole, parts)


def test_evaluating_and_saving_do_not_change_the_run(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "world"
    assert train(config_of(data, out, evaluate_minutes=0.0, checkpoint_minutes=0.0)) == 0
    assert_same_world(out, uninterrupted)
    assert sorted(path.name for path in (out / "progress").iterdir()) == [
        "0000001.png",
        "0000002.png",
        "0000003.png",
    ]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: str, call: int, times: int) -> None:
    """Ctrl-C, really: the signal, in the midst of an update."""
    objective = OBJECTIVES[stage]
    original, calls = objective.forward, 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(*arguments, **named)

    monkeypatch.setattr(objective, "forward", interrupted)


OBJECTIVES: dict[str, type[nn.Module]] = {
    "tokenizer": TokenizerObjective,
    "manifold": ManifoldObjective,
    "decoder": DecoderObjective,
    "dynamics": DynamicsObjective,
}


@pytest.mark.parametrize("stage", OBJECTIVES)
def test_after_ctrl_c_the_same_command_goes_on(
    data: Path, uninterrupted: Path, tmp_path: Path, stage: str
) -> None:
    out, handler = tmp_path / "world", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, stage, call=2, times=1)
        assert train(config_of(data, out)) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    # The update that was under way was brought to its end.
    assert read_state(out / "checkpoint" / stage) == {"update": 2}
    assert not (out / CONFIG_FILE).exists()
    assert train(config_of(data, out)) == 0
    assert_same_world(out, uninterrupted)


def test_a_second_ctrl_c_gives_up_what_is_not_saved(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out, handler = tmp_path / "world", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, "dynamics", call=2, times=2)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(data, out))
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_state(out / "checkpoint" / "manifold") == {"update": 3}
    assert read_state(out / "checkpoint" / "dynamics") is None
    assert train(config_of(data, out)) == 0
    assert_same_world(out, uninterrupted)


def test_a_full_disk_keeps_the_checkpoint(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "world"
    assert train(config_of(data, out, max_minutes=1e-9)) == 130
    with full_disk(30_000), pytest.raises(CheckpointError, match=r"could not be written .* make room"):
        train(config_of(data, out))
    assert read_state(out / "checkpoint" / "tokenizer") == {"update": 1}
    assert train(config_of(data, out)) == 0
    assert_same_world(out, uninterrupted)


@pytest.mark.parametrize(
    "fields",
    [{"recipe": "base"}, {"seed": 1}, {"update_share": 0.04}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_folder_holds_one_run(data: Path, uninterrupted: Path, fields: dict[str, Any]) -> None:
    before = weights(uninterrupted)
    with pytest.raises(CheckpointError, match=r"it holds another run .*; choose another --out"):
        train(config_of(data, uninterrupted, **fields))
    assert all(torch.equal(value, before[key]) for key, value in weights(uninterrupted).items())


def test_other_data_needs_another_folder(uninterrupted: Path, tmp_path: Path) -> None:
    other = write_exact_world(tmp_path / "other", lengths=(20, 20), has_proprio=True)
    with pytest.raises(CheckpointError, match="it holds another run"):
        train(config_of(other, uninterrupted))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_corrupt_checkpoint_is_named(data: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "world"
    assert train(config_of(data, out, max_minutes=1e-9)) == 130
    path = out / "checkpoint" / "tokenizer" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        CheckpointError, match=f"{path}: cannot be used .*; remove {path.parent} to begin anew"
    ):
        train(config_of(data, out))


def test_another_seed_gives_another_world(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert train(config_of(data, tmp_path / "world", seed=1)) == 0
    first, second = weights(uninterrupted), weights(tmp_path / "world")
    assert not torch.equal(first["dynamics.token_bias"], second["dynamics.token_bias"])


def test_a_loss_that_is_no_number_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explosive(dataset: Dataset) -> Recipe:
        recipe = RECIPES["tiny"](dataset)
        schedule = Schedule(phases=(Phase(updates=9, batch=2),), learning_rate=1e30, warmup=1)
        return dataclasses.replace(recipe, tokenizer_schedule=schedule)

    monkeypatch.setitem(RECIPES, "explosive", explosive)
    out = tmp_path / "world"
    config = config_of(data, out, recipe="explosive", update_share=1.0, checkpoint_minutes=0.0)
    with pytest.raises(FloatingPointError) as error:
        train(config)
    state = read_state(out / "checkpoint" / "tokenizer")
    assert state is not None
    expected = f"tokenizer, update {state['update']}: the loss is not finite; the last good checkpoint is in "
    assert error.match(expected + f"{out / 'checkpoint' / 'tokenizer'}: lower the learning rate")


def test_an_unknown_recipe_is_told_those_that_there_are(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe 'huge': choose one of tiny, mini, "):
        train(config_of(data, tmp_path, recipe="huge"))


def test_a_dataset_with_none_of_the_keys_is_refused(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "strange", fps=10) as writer:
        columns = {"action": np.zeros((20, 2), np.float32), "effort": np.zeros((20, 2), np.float32)}
        writer.add(frames={}, columns=columns)
    with pytest.raises(
        DataError, match=r"neither a camera .* nor 'observation.state'; it has action, effort"
    ):
        train(config_of(tmp_path / "strange", tmp_path / "world"))
    assert not (tmp_path / "world").exists()


def test_a_world_of_vectors_trains(tmp_path: Path) -> None:
    root = write_exact_world(tmp_path / "data", lengths=(20, 20), has_camera=False, has_proprio=True)
    assert train(config_of(root, tmp_path / "world")) == 0
    world = load(tmp_path / "world")
    assert world.cameras == ()
    step = world.start(None, proprio=np.zeros((1, 2), np.float32)).step([0.0, 1.5])
    assert step.proprio is not None
    assert np.isfinite(step.proprio).all()
    last = numbers(tmp_path / "world")[-1]
    assert math.isfinite(last["held_out_error"])


# The loop by itself.


class Slope(nn.Module):
    """A loss whose gradient is always one, so that each update of AdamW goes down by the learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor([5.0]))
        self.heights: list[float] = []

    def forward(
        self, batch: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.heights.append(self.height.item())
        return self.height.sum(), {"noise": torch.rand((), generator=generator)}


def run_of(out: Path, **fields: Any) -> Run:
    config = LoopConfig(out=out, **fields)
    deadline = 0.0 if config.max_minutes else math.inf
    return Run(config=config, log=MetricsLog(out), device=torch.device("cpu"), deadline=deadline)


def fit_slope(slope: nn.Module, schedule: Schedule, run: Run, draw: Any = None) -> None:
    loader = Loader(draw or (lambda rng, phase: torch.zeros(1)), schedule, stage="tokenizer", seed=0)
    with contextlib.closing(run.log):
        optimizer = build_optimizer(slope, schedule)
        stage = Stage(name="tokenizer", module=slope, loader=loader, optimizer=optimizer, schedule=schedule)
        fit(stage, run)


def test_the_loop_follows_the_schedule_and_keeps_the_moving_average(tmp_path: Path) -> None:
    schedule = Schedule(phases=(Phase(updates=12, batch=1),), learning_rate=0.1, warmup=4, weight_decay=0.0)
    slope = Slope()
    fit_slope(slope, schedule, run_of(tmp_path))
    expected = 5.0 - np.cumsum([0.0] + [schedule.rate_at(u) for u in range(12)])
    np.testing.assert_allclose(slope.heights, expected[:12], rtol=1e-4)
    average = 5.0
    for update, height in enumerate(expected[1:]):
        decay = min(schedule.ema, (update + 1) / (update + 10))
        average = decay * average + (1 - decay) * height
    assert slope.height.item() == pytest.approx(average, rel=1e-4)
    # Every update has randomness of its own.
    noises = [line["noise"] for line in numbers(tmp_path)]
    assert len(set(noises)) == 12


def test_an_update_that_fails_leaves_the_signal_alone(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def draw(rng: np.random.Generator, phase: Phase) -> torch.Tensor:
        raise DataError("a defect")

    schedule = Schedule(phases=(Phase(updates=1, batch=1),), learning_rate=0.1)
    with pytest.raises(DataError, match="a defect"):
        fit_slope(Slope(), schedule, run_of(tmp_path), draw)
    assert signal.getsignal(signal.SIGINT) is handler


def test_stopped_is_told_from_an_error(tmp_path: Path) -> None:
    schedule = Schedule(phases=(Phase(updates=2, batch=1),), learning_rate=0.1)
    with pytest.raises(Stopped):
        fit_slope(Slope(), schedule, run_of(tmp_path, max_minutes=1e-9))
    assert read_state(tmp_path / "checkpoint" / "tokenizer") == {"update": 1}


def test_a_line_of_the_log_alone_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are read from tensors as often as lines are written, not with each update."""
    monkeypatch.setattr(loop_module, "LOG_EVERY", 10)
    reads = 0
    item = torch.Tensor.item

    def counting(self: torch.Tensor) -> Any:
        nonlocal reads
        reads += 1
        return item(self)

    class Quiet(Slope):
        def forward(self, batch: torch.Tensor, generator: torch.Generator) -> Any:
            return self.height.sum(), {}

    schedule = Schedule(phases=(Phase(updates=40, batch=1),), learning_rate=0.1)
    monkeypatch.setattr(torch.Tensor, "item", counting)
    fit_slope(Quiet(), schedule, run_of(tmp_path))
    # Loss and norm, in four lines.
    assert reads == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_an_order(number: int) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.was_asked
        signal.raise_signal(number)
        assert interrupt.was_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
