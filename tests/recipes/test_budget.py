import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data import Dataset, DatasetWriter
from kinema.recipes import SIZES, Scale, sized
from kinema.recipes.budget import (
    ENOUGH,
    LADDER,
    LARGEST_BATCH,
    PREPARING_SHARE,
    Plan,
    Rates,
    choose_plan,
    parse_budget,
)

SHAPES = {
    "vectors": [],
    "one": [(96, 96)],
    "small": [(32, 32)],
    "three": [(180, 320), (180, 320), (180, 320)],
    "mixed": [(48, 64), (480, 640), (16, 480)],
    "many": [(120, 160)] * 8,
}


def write(root: Path, shapes: list[tuple[int, int]], length: int = 20) -> Dataset:
    with DatasetWriter(root, fps=10, codec="image") as writer:
        frames = {
            f"observation.images.camera_{index}": np.zeros((length, *shape, 3), np.uint8)
            for index, shape in enumerate(shapes)
        }
        columns = {key: np.zeros((length, 3), np.float32) for key in ("action", "observation.state")}
        writer.add(frames=frames, columns=columns)
    return Dataset.open(root)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = tmp_path_factory.mktemp("shapes")
    return {name: write(root / name, shapes) for name, shapes in SHAPES.items()}


class Machine:
    """A machine that computes so many operations a second, and takes a while for each update."""

    def __init__(self, dataset: Dataset, rate: float, frame: float = 1e-3, start: float = 5e-3):
        self.dataset, self.rate, self.frame, self.start = dataset, rate, frame, start
        self.measured: list[Scale] = []

    def rates(self, scale: Scale) -> Rates:
        self.measured.append(scale)
        recipe = sized(self.dataset, scale)
        pixels = sum(height * width for height, width in recipe.segments.sizes or ())
        return Rates(
            frame=self.frame,
            tokenizer=self.start + 64 * 50 * pixels * scale.size.channels**2 / self.rate if pixels else 0.0,
            phases=tuple(self._phase(scale, index) for index in range(3)),
            overhead=0.01,
            once=1.0,
        )

    def first_phase(self, scale: Scale) -> float:
        return self._phase(scale, 0)

    def _phase(self, scale: Scale, index: int) -> float:
        recipe = sized(self.dataset, scale)
        phase, network = recipe.dynamics_schedule.phases[index], recipe.dynamics
        tokens = 2 * phase.batch * phase.length * network.num_tokens
        return self.start + 6 * 12 * network.depth * network.width**2 * tokens / self.rate


def plan(machine: Machine, seconds: float, num_frames: int = 20_000, size: str | None = None) -> Plan:
    return choose_plan(machine, seconds, num_frames=num_frames, num_episodes=200, size=size)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400.0), ("6h", 21600.0), ("2d", 172800.0), ("1h30m", 5400.0), ("45s", 45.0), ("0.5h", 1800.0)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "h", "-1h", "1 h", "1h ", "1w", "1e3s", "0m", "nanh", "1h,", "9" * 400 + "d"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--budget .*: it must be a time, such as 90m, 6h, 1h30m or 2d"):
        parse_budget(text)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("minutes", [10, 60, 360, 2880])
def test_a_plan_fills_its_time_and_keeps_to_the_limits(
    datasets: dict[str, Dataset], shapes: str, minutes: int
) -> None:
    machine, seconds = Machine(datasets[shapes], rate=5e10), 60.0 * minutes
    made = plan(machine, seconds)
    assert 0.95 * seconds < made.seconds <= seconds
    assert made.name in LADDER
    recipe = sized(datasets[shapes], made.scale)
    assert recipe.dynamics.num_patches <= made.scale.size.max_tokens * (1 + len(SHAPES[shapes])) // 2
    assert recipe.manifold is None
    assert recipe.still_change == 0.0
    assert (made.tokenizer > 0.0) == bool(SHAPES[shapes])
    if SHAPES[shapes]:
        assert made.tokenizer / (made.tokenizer + sum(made.phases)) == pytest.approx(0.3, abs=0.01)
    lengths = [phase.length for phase in recipe.dynamics_schedule.phases]
    assert lengths == sorted(lengths)
    updates = [phase.updates for phase in recipe.dynamics_schedule.phases]
    assert updates[0] == max(updates)
    assert recipe.dynamics_schedule.phases[-1].own_context_share > 0.0


def test_three_cameras_fit_an_hour_of_two_cores(datasets: dict[str, Dataset]) -> None:
    """A core multiplies at 95 GFLOP/s, and training reaches a good third of that."""
    made = plan(Machine(datasets["three"], rate=7e10), 3600.0)
    assert made.is_enough
    sizes = sized(datasets["three"], made.scale).segments.sizes
    assert sizes is not None
    for height, width in sizes:
        assert height == 64
        assert width / height == pytest.approx(320 / 180, rel=0.15)


@settings(deadline=None, max_examples=30)
@given(rate=st.floats(1e9, 1e14), hours=st.floats(0.1, 50.0), shapes=st.sampled_from(sorted(SHAPES)))
def test_more_time_never_means_a_smaller_network(
    datasets: dict[str, Dataset], rate: float, hours: float, shapes: str
) -> None:
    machine = Machine(datasets[shapes], rate)
    one, two = (plan(machine, 3600.0 * each) for each in (hours, 2.0 * hours))
    assert LADDER.index(two.name) >= LADDER.index(one.name)
    # All chosen sizes but the smallest get the updates that make them worth their cost.
    for made in (one, two):
        assert made.is_enough or made.name == LADDER[0]
        assert made.is_enough == (sum(made.scale.phase_updates) >= ENOUGH * SIZES[made.name].dynamics_updates)


def test_sizes_that_are_too_large_are_not_even_measured(datasets: dict[str, Dataset]) -> None:
    machine = Machine(datasets["one"], rate=1e10)
    assert not plan(machine, 60.0).is_enough
    assert {scale.size for scale in machine.measured} == {SIZES["mini"]}


def test_a_named_size_gets_all_the_time(datasets: dict[str, Dataset]) -> None:
    made = plan(Machine(datasets["one"], rate=1e11), 3600.0, size="base")
    assert made.name == "base"
    assert made.scale.size == SIZES["base"]
    assert 0.95 * 3600.0 < made.seconds <= 3600.0


def test_the_batch_grows_as_long_as_that_is_nearly_free(datasets: dict[str, Dataset]) -> None:
    slow, fast = (Machine(datasets["one"], rate, start=0.02) for rate in (1e10, 1e14))
    assert plan(slow, 3600.0, size="small").scale.batch == 16
    assert plan(fast, 3600.0, size="small").scale.batch == LARGEST_BATCH


def test_of_a_dataset_that_takes_too_long_to_decode_a_part_is_used(datasets: dict[str, Dataset]) -> None:
    machine = Machine(datasets["one"], rate=1e11, frame=0.05)
    assert plan(machine, 3600.0, num_frames=5_000).scale.num_episodes is None
    made = plan(machine, 3600.0, num_frames=100_000)
    assert made.scale.num_episodes == 21  # of 200, in 15% of the time
    assert made.preparing <= PREPARING_SHARE * 3600.0
    assert made.seconds <= 3600.0


def test_a_plan_is_the_same_after_it_was_written(datasets: dict[str, Dataset]) -> None:
    made = plan(Machine(datasets["one"], rate=1e11), 3600.0)
    assert Plan.from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize(("length", "longest"), [(4, 4), (10, 10), (60, 40)])
def test_segments_are_not_longer_than_episodes(tmp_path: Path, length: int, longest: int) -> None:
    recipe = sized(write(tmp_path / "data", [], length), Scale.of("small"))
    assert max(phase.length for phase in recipe.dynamics_schedule.phases) == longest
