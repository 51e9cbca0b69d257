import dataclasses
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kinema.data import DataError, Dataset, DatasetWriter
from kinema.data.segments import Segments, SegmentsConfig, load_segments
from kinema.model.tokens import Values
from kinema.model.world import CONFIG_FILE, WEIGHTS_FILE
from kinema.recipes import RECIPES, Phase, Recipe, Schedule
from kinema.simulation.session import load
from kinema.train import loop as loop_module
from kinema.train.checkpoint import CheckpointError, read_state
from kinema.train.command import GO_ON, Part, TrainConfig, train
from kinema.train.latents import encode_all
from kinema.train.loop import Interrupt, Loop, Stage, Stopped
from kinema.train.progress import MetricsLog

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
    assert {"loss", "observation", "proprio", "action"} <= lines[9].keys()
    assert math.isfinite(lines[-1]["held_out_psnr"])


def test_stopped_after_every_update_it_is_the_same_run(
    data: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, calls = tmp_path / "world", 0
    while train(config_of(data, out, max_minutes=0.0)) == 130:
        assert "stopped; the same command continues" in capsys.readouterr().out
        calls += 1
    # After the last update of a stage there is nothing to stop.
    assert calls == 8
    assert_same_world(out, uninterrupted)
    assert numbers(out) == numbers(uninterrupted)


def test_what_was_encoded_is_not_encoded_again(
    data: Path, uninterrupted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world, dataset = load(uninterrupted), Dataset.open(data)
    config = SegmentsConfig(cameras=world.cameras, proprio=PROPRIO, height=32, width=32)
    segments = load_segments(dataset, config, tmp_path / "unused", progress=False)

    def encoded() -> tuple[Values, bool]:
        capfd.readouterr()
        values = encode_all(world, segments, False, tmp_path / "latents")
        return values, "encoding" in capfd.readouterr().err

    first, was_encoded = encoded()
    assert was_encoded
    again, was_encoded = encoded()
    assert not was_encoded
    assert torch.equal(first.latents, again.latents)
    (kept,) = (tmp_path / "latents").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    again, was_encoded = encoded()
    assert was_encoded
    assert torch.equal(first.latents, again.latents)
    # Other pictures and another tokenizer are other latents.
    segments.frames[CAMERA][0] += 1
    assert encoded()[1]
    assert world.tokenizer is not None
    world.tokenizer.latent_mean += 0.1
    assert encoded()[1]
    # Where they cannot be kept, training goes on all the same.
    (tmp_path / "taken").write_text("")
    found = encode_all(world, segments, False, tmp_path / "taken")
    assert "latents are not kept" in capfd.readouterr().out
    assert torch.equal(found.latents, encode_all(world, segments, False).latents)


def going_on(
    data: Path, world: Path, out: Path, num_updates: int, part: Part = "dynamics", **fields: Any
) -> TrainConfig:
    share = num_updates / GO_ON[part][0]
    return config_of(data, out, world=str(world), update_share=share, parts=(part,), **fields)


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
    with pytest.raises(ValueError, match="--parts are those of a finished world"):
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
    with pytest.raises(ValueError, match="--also is for a finished world"):
        train(config_of(data, tmp_path / "new", also=(str(data),)))


def test_stopped_it_goes_on_as_if_it_had_not_been(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(going_on(data, uninterrupted, whole, 2)) == 0
    assert train(going_on(data, uninterrupted, parts, 2, max_minutes=0.0)) == 130
    assert train(going_on(data, uninterrupted, parts, 2, max_minutes=0.0)) == 0
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


def interrupt_at(monkeypatch: pytest.MonkeyPatch, method: str, call: int, times: int) -> None:
    """Ctrl-C, really: the signal, while the batch of an update is drawn."""
    original, calls = getattr(Segments, method), 0

    def drawing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(*arguments, **named)

    monkeypatch.setattr(Segments, method, drawing)


@pytest.mark.parametrize(
    ("stage", "method", "call"),
    [
        ("tokenizer", "draw_pairs", 3),
        ("manifold", "draw_rows", 2),
        ("decoder", "draw_pairs", 8),
        ("dynamics", "draw_rows", 5),
    ],
)
def test_after_ctrl_c_the_same_command_goes_on(
    data: Path, uninterrupted: Path, tmp_path: Path, stage: str, method: str, call: int
) -> None:
    out, handler = tmp_path / "world", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, method, call=call, times=1)
        assert train(config_of(data, out)) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    # The update that was under way was brought to its end.
    assert read_state(out / "checkpoints" / stage) == {"update": 2}
    assert not (out / CONFIG_FILE).exists()
    assert train(config_of(data, out)) == 0
    assert_same_world(out, uninterrupted)


def test_a_second_ctrl_c_gives_up_what_is_not_saved(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out, handler = tmp_path / "world", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, "draw_rows", call=5, times=2)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(data, out))
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_state(out / "checkpoints" / "manifold") == {"update": 3}
    assert read_state(out / "checkpoints" / "dynamics") is None
    assert train(config_of(data, out)) == 0
    assert_same_world(out, uninterrupted)


def test_a_full_disk_keeps_the_checkpoint(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "world"
    assert train(config_of(data, out, max_minutes=0.0)) == 130
    with full_disk(30_000), pytest.raises(CheckpointError, match=r"could not be written .* make room"):
        train(config_of(data, out))
    assert read_state(out / "checkpoints" / "tokenizer") == {"update": 1}
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
    assert train(config_of(data, out, max_minutes=0.0)) == 130
    path = out / "checkpoints" / "tokenizer" / name
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
    state = read_state(out / "checkpoints" / "tokenizer")
    assert state is not None
    expected = f"tokenizer, update {state['update']}: the loss is (nan|inf); the last good checkpoint is in "
    assert error.match(expected + f"{out / 'checkpoints' / 'tokenizer'}: lower the learning rate")


def test_an_unknown_recipe_is_told_those_that_there_are(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe 'huge': choose one of base, tiny, pusht"):
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

    def forward(self, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.height.sum(), {"noise": torch.rand((), generator=generator)}


def test_the_loop_follows_the_schedule_and_keeps_the_moving_average(tmp_path: Path) -> None:
    schedule = Schedule(phases=(Phase(updates=12, batch=1),), learning_rate=0.1, warmup=4, weight_decay=0.0)
    slope, heights = Slope(), []

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[()]:
        heights.append(slope.height.item())
        return ()

    log = MetricsLog(tmp_path)
    loop = Loop(TrainConfig(data="none", out=tmp_path), log, time.monotonic())
    loop.run(Stage(name="tokenizer", objective=slope, schedule=schedule, draw=draw))
    log.close()
    expected = 5.0 - np.cumsum([0.0] + [schedule.rate_at(u) for u in range(12)])
    np.testing.assert_allclose(heights, expected[:12], rtol=1e-4)
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

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[()]:
        raise DataError("a defect")

    log = MetricsLog(tmp_path)
    schedule = Schedule(phases=(Phase(updates=1, batch=1),), learning_rate=0.1)
    with pytest.raises(DataError, match="a defect"):
        Loop(TrainConfig(data="none", out=tmp_path), log, 0.0).run(
            Stage(name="tokenizer", objective=Slope(), schedule=schedule, draw=draw)
        )
    log.close()
    assert signal.getsignal(signal.SIGINT) is handler


def test_stopped_is_told_from_an_error(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    schedule = Schedule(phases=(Phase(updates=2, batch=1),), learning_rate=0.1)
    stage = Stage(name="tokenizer", objective=Slope(), schedule=schedule, draw=lambda rng, phase: ())
    config = TrainConfig(data="none", out=tmp_path, max_minutes=0.0)
    with pytest.raises(Stopped):
        Loop(config, log, time.monotonic()).run(stage)
    log.close()
    assert read_state(tmp_path / "checkpoints" / "tokenizer") == {"update": 1}


def test_the_first_signal_is_a_wish_and_the_second_an_order() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.was_asked
        signal.raise_signal(signal.SIGINT)
        assert interrupt.was_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
