import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data import DataError, Dataset, DatasetWriter
from kinema.data import segments as segments_module
from kinema.data.frames import resize
from kinema.data.segments import Segments, SegmentsConfig, load_segments

from ..worlds import CAMERA, HIGH, LOW, PROPRIO, SIZE, full_disk, read, write_exact_world
from .conftest import DATA, put

LENGTHS = (5, 9, 2, 12)
HALF_A_PIXEL = 0.5 / 20 * (HIGH - LOW) + 1e-6


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A world whose frame shows the action that led to it."""
    root = tmp_path_factory.mktemp("exact") / "data"
    return Dataset.open(write_exact_world(root, lengths=LENGTHS, has_proprio=True))


def load(dataset: Dataset, cache: Path, **fields: object) -> Segments:
    config = SegmentsConfig(**{"height": SIZE, "width": SIZE, "proprio": PROPRIO, **fields})
    return load_segments(dataset, config, cache, progress=False)


def make_segments(lengths: list[int]) -> Segments:
    """Rows whose picture, action and proprioception say which row they are."""
    rows = np.arange(sum(lengths))
    return Segments(
        frames={CAMERA: np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 3))},
        actions=rows[:, None].astype(np.float32),
        proprio=rows[:, None].astype(np.float32),
        lengths=np.array(lengths, dtype=np.int64),
        native_sizes={CAMERA: (2, 2)},
    )


@pytest.mark.parametrize("length", [2, 5, 9])
def test_prev_action_is_what_the_frame_shows(exact: Dataset, tmp_path: Path, length: int) -> None:
    segments = load(exact, tmp_path)
    rows = segments.draw_rows(np.random.default_rng(0), 50, length)
    frames = segments.frames[CAMERA][rows]
    shown = read(frames.reshape(-1, *frames.shape[2:])).reshape(50, length, 2)
    known = segments.has_action[rows]
    assert (np.abs(segments.prev_action[rows] - shown)[known] <= HALF_A_PIXEL).all()
    assert segments.proprio is not None
    assert (np.abs(segments.proprio[rows] - shown) <= HALF_A_PIXEL).all()
    # The test would see a shift by one: the action of the same row is another one.
    assert not (np.abs(segments.actions[rows] - shown)[known] <= HALF_A_PIXEL).all()


def test_the_action_is_unknown_only_where_an_episode_begins(exact: Dataset, tmp_path: Path) -> None:
    segments = load(exact, tmp_path)
    first = np.cumsum([0, *LENGTHS[:-1]])
    assert np.flatnonzero(~segments.has_action).tolist() == first.tolist()
    assert (segments.prev_action[first] == 0).all()


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), length=st.integers(1, 9), seed=st.integers(0)
)
def test_segments_stay_within_their_episode(lengths: list[int], length: int, seed: int) -> None:
    segments = make_segments(lengths)
    if max(lengths) < length:
        with pytest.raises(DataError, match=f"segments of {length} steps: the longest episode has"):
            segments.draw_rows(np.random.default_rng(seed), 4, length)
        return
    rows = segments.draw_rows(np.random.default_rng(seed), 20, length)
    assert rows.shape == (20, length)
    assert (np.diff(rows, axis=1) == 1).all()
    episodes = np.repeat(np.arange(len(lengths)), lengths)[rows]
    assert (episodes == episodes[:, :1]).all()
    assert np.array_equal(segments.frames[CAMERA][rows][:, :, 0, 0, 0], rows.astype(np.uint8))
    known = segments.has_action[rows]
    assert np.array_equal(segments.prev_action[rows][..., 0][known], (rows - 1)[known])
    assert np.array_equal(known, np.isin(rows, segments.starts, invert=True))


def test_every_segment_is_drawn_equally_often() -> None:
    segments = make_segments([3, 1, 7, 4])
    rows = segments.draw_rows(np.random.default_rng(0), 20_000, 3)
    first, counts = np.unique(rows[:, 0], return_counts=True)
    assert first.tolist() == [0, 4, 5, 6, 7, 8, 11, 12]
    assert np.abs(counts / 20_000 - 1 / 8).max() < 0.01


def test_a_share_of_the_segments_holds_rows_drawn_by_weight() -> None:
    lengths = [4, 30, 2, 12]
    segments = make_segments(lengths)
    weights = np.zeros(segments.num_rows)
    weights[[10, 33, 35, 47]] = [1.0, 0.0, 5.0, 2.0]  # Row 35 is in the episode that is too short.
    rows = segments.draw_rows(np.random.default_rng(0), 9000, 3, weights=weights, weighted_share=0.5)
    holds = [float((rows == row).any(axis=1).mean()) for row in (10, 47)]
    by_chance = 3 / 40  # Of all segments of 3 rows, those that hold a row in the middle of an episode.
    assert holds[0] == pytest.approx(0.5 * 1 / 3 + 0.5 * by_chance, abs=0.02)
    # The last row of an episode is in one segment alone.
    assert holds[1] == pytest.approx(0.5 * 2 / 3 + 0.5 * by_chance / 3, abs=0.02)
    places = np.bincount(np.nonzero(rows == 10)[1], minlength=3) / (rows == 10).sum()
    assert places == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    first = np.searchsorted(segments.starts, rows[:, 0], side="right")
    assert (first == np.searchsorted(segments.starts, rows[:, -1], side="right")).all()


def test_without_any_weight_segments_are_drawn_uniformly() -> None:
    segments = make_segments([5, 6])
    draws = [
        segments.draw_rows(np.random.default_rng(0), 9, 3, weights=weights, weighted_share=0.9)
        for weights in (np.zeros(segments.num_rows), None)
    ]
    assert draws[0].min() >= 0
    assert draws[0].max() < segments.num_rows


def test_rows_are_drawn_by_the_weights_given_and_not_by_those_before() -> None:
    lengths = [4, 30, 2, 12]
    segments = make_segments(lengths)
    rng = np.random.default_rng(0)
    several = [rng.random(segments.num_rows) for _ in range(2)]
    for index, length in ((0, 3), (0, 3), (0, 5), (1, 5), (0, 5)):
        asked = {"weights": several[index], "weighted_share": 0.9}
        drawn = segments.draw_rows(np.random.default_rng(1), 50, length, **asked)
        fresh = make_segments(lengths).draw_rows(np.random.default_rng(1), 50, length, **asked)
        assert np.array_equal(drawn, fresh)


def test_pairs_are_of_one_episode(exact: Dataset) -> None:
    segments = make_segments([3, 1, 7, 4])
    drawn = segments.draw_pairs(np.random.default_rng(0), 2000)
    pairs = drawn.pictures[:, :, 0, 0, 0].numpy()
    assert np.array_equal(pairs, drawn.rows)
    episodes = np.repeat(np.arange(4), [3, 1, 7, 4])[pairs]
    assert (episodes[:, 0] == episodes[:, 1]).all()
    assert set(pairs[:, 0]) == set(pairs[:, 1]) == set(range(15))


def test_pairs_are_of_every_camera() -> None:
    segments = make_segments([3, 4])
    segments.frames = {"one": np.full((7, 2, 2, 3), 1, np.uint8), "two": np.full((7, 2, 2, 3), 2, np.uint8)}
    drawn = segments.draw_pairs(np.random.default_rng(0), 200)
    pairs = drawn.pictures
    assert (pairs[:, 0, 0, 0, 0].numpy() == drawn.cameras + 1).all()
    assert (pairs.amax((1, 2, 3, 4)) == pairs.amin((1, 2, 3, 4))).all()
    share = (pairs[:, 0, 0, 0, 0] == 1).float().mean().item()
    assert 0.35 < share < 0.65


def test_cameras_keep_their_sizes_and_pairs_are_of_one_size(tmp_path: Path) -> None:
    shapes = {"a": (48, 96), "b": (72, 40), "c": (24, 48)}
    with DatasetWriter(tmp_path / "d", fps=10) as writer:
        for value in (10, 200):
            writer.add(
                frames={
                    f"observation.images.{key}": np.full((6, *shape, 3), value + index, np.uint8)
                    for index, (key, shape) in enumerate(shapes.items())
                },
                columns={"action": np.zeros((6, 2), np.float32)},
            )
    sizes = ((16, 32), (32, 16), (16, 32))
    segments = load(Dataset.open(tmp_path / "d"), tmp_path / "cache", proprio=None, sizes=sizes)
    assert [frames.shape[1:3] for frames in segments.frames.values()] == list(sizes)
    assert list(segments.native_sizes.values()) == list(shapes.values())
    assert segments.cameras_by_size == [[0, 2], [1]]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        pairs = segments.draw_pairs(rng, 5)
        values = pairs.pictures[:, :, 0, 0, 0].numpy()
        assert np.array_equal(values, np.where(pairs.rows < 6, 10, 200) + pairs.cameras[:, None])
        assert {sizes[camera] for camera in pairs.cameras} == {pairs.pictures.shape[2:4]}
        seen |= set(pairs.cameras.tolist())
    assert seen == {0, 1, 2}
    with pytest.raises(ValueError, match="one for each"):
        load(Dataset.open(tmp_path / "d"), tmp_path / "cache", proprio=None, sizes=sizes[:2])


def test_draws_come_from_the_generator_alone() -> None:
    segments = make_segments([3, 9, 4])
    for draw in (
        lambda rng: segments.draw_rows(rng, 5, 2),
        lambda rng: segments.draw_pairs(rng, 5).pictures.numpy(),
    ):
        assert np.array_equal(draw(np.random.default_rng(3)), draw(np.random.default_rng(3)))


def test_only_the_chosen_episodes_are_read(exact: Dataset, tmp_path: Path) -> None:
    everything, some = load(exact, tmp_path), load(exact, tmp_path, episodes=(1, 3))
    assert some.lengths.tolist() == [9, 2]
    assert np.array_equal(some.frames[CAMERA], everything.frames[CAMERA][5:16])
    assert np.array_equal(some.actions, everything.actions[5:16])


def test_frames_are_memory_mapped_and_used_again(exact: Dataset, tmp_path: Path) -> None:
    path = tmp_path / f"{CAMERA}.npy"
    first = load(exact, tmp_path)
    assert isinstance(first.frames[CAMERA], np.memmap)
    whole = np.concatenate([exact.episode(index).frames[CAMERA] for index in range(exact.num_episodes)])
    assert np.array_equal(first.frames[CAMERA], whole)
    written = path.stat().st_mtime_ns
    again = load(exact, tmp_path)
    assert path.stat().st_mtime_ns == written
    assert np.array_equal(first.frames[CAMERA], again.frames[CAMERA])
    assert np.array_equal(first.actions, again.actions)
    smaller = load(exact, tmp_path, height=16, width=16)
    assert smaller.frames[CAMERA].shape == (sum(LENGTHS), 16, 16, 3)
    # A file that is damaged is made anew.
    path.write_bytes(b"half a file")
    assert np.array_equal(load(exact, tmp_path).frames[CAMERA], whole)


def test_decoding_that_was_stopped_goes_on(
    exact: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(exact, tmp_path / "whole").frames[CAMERA]
    monkeypatch.setattr(segments_module._FrameStore, "MARK_SECONDS", 0.0)
    decoded: list[int] = []
    pictures = Dataset.pictures

    def stopping(self: Dataset, index: int, camera: str) -> np.ndarray:
        decoded.append(index)
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return pictures(self, index, camera)

    monkeypatch.setattr(Dataset, "pictures", stopping)
    with pytest.raises(KeyboardInterrupt):
        load(exact, tmp_path / "parts")
    assert np.array_equal(load(exact, tmp_path / "parts").frames[CAMERA], whole)
    assert decoded == [0, 1, 2, *range(2, exact.num_episodes)]


def test_a_full_disk_is_said(exact: Dataset, tmp_path: Path) -> None:
    with full_disk(20_000), pytest.raises(DataError, match=r"cannot be written .* make room on the disk"):
        load(exact, tmp_path)


def test_pictures_are_brought_to_the_size_asked_for() -> None:
    halves = np.zeros((2, 4, 6, 3), np.uint8)
    halves[:, :, 3:] = 200
    assert np.array_equal(resize(halves, 4, 6), halves)
    small = resize(halves, 2, 2)
    assert small.shape == (2, 2, 2, 3)
    assert (small[:, :, 0] == 0).all()
    assert (small[:, :, 1] == 200).all()
    # Antialiased: a fine pattern becomes its mean.
    checks = (np.indices((8, 8)).sum(0) % 2 * 200).astype(np.uint8)[None, :, :, None].repeat(3, -1)
    assert (np.abs(resize(checks, 4, 4).astype(int) - 100) <= 1).all()
    assert resize(np.zeros((0, 4, 6, 3), np.uint8), 2, 2).shape == (0, 2, 2, 3)


def test_sizes_as_recorded_are_remembered(exact: Dataset, tmp_path: Path) -> None:
    assert load(exact, tmp_path, height=16, width=48).native_sizes == {CAMERA: (SIZE, SIZE)}


def test_proprioception_alone_is_enough(exact: Dataset, tmp_path: Path) -> None:
    segments = load(exact, tmp_path, cameras=())
    assert segments.frames == {}
    assert segments.num_rows == sum(LENGTHS)
    assert segments.frames == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"cameras": ("observation.images.wrist",)},
            "no feature observation.images.wrist; it has action, .*top",
        ),
        ({"proprio": "observation.effort"}, "no feature observation.effort; it has action, "),
        ({"cameras": (), "proprio": None}, "neither a camera nor proprioception"),
        ({"episodes": (2, 9)}, "episodes 2:9 asked, but it holds 4"),
        ({"episodes": (2, 2)}, "episodes 2:2 asked, but it holds 4"),
    ],
)
def test_what_is_not_there_is_named(
    exact: Dataset, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(exact, tmp_path, **fields)
    assert str(exact.root) in str(error.value)


def test_a_dataset_without_episodes_is_refused(tmp_path: Path) -> None:
    features = {"action": {"dtype": "float32", "shape": [2]}, PROPRIO: {"dtype": "float32", "shape": [2]}}
    with DatasetWriter(tmp_path / "empty", fps=10, features=features):
        pass
    with pytest.raises(DataError, match="episodes 0:0 asked, but it holds 0"):
        load(Dataset.open(tmp_path / "empty"), tmp_path)


def test_an_action_that_is_not_finite_is_named(exact: Dataset, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exact.root, tmp_path / "d"))
    put(root / DATA, "action", (int(exact.lengths()[0]) + 3, 0), np.nan)
    with pytest.raises(DataError, match="episode 1, action: dimension 0 is nan in row 3; correct it"):
        load(Dataset.open(root), tmp_path / "cache")


def test_a_last_action_that_is_not_finite_changes_nothing(exact: Dataset, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exact.root, tmp_path / "d"))
    put(root / DATA, "action", np.cumsum(exact.lengths()) - 1, np.nan)
    expected, found = load(exact, tmp_path / "a"), load(Dataset.open(root), tmp_path / "b")
    assert np.isfinite(found.actions).all()
    assert np.array_equal(found.prev_action, expected.prev_action)


def test_episodes_that_are_left_out_are_not_read(exact: Dataset, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exact.root, tmp_path / "d"))
    put(root / DATA, "action", 1, np.nan)
    found = load(Dataset.open(root), tmp_path / "cache", left_out=(0,))
    assert found.episodes.tolist() == list(range(1, exact.num_episodes))
    assert found.lengths.tolist() == exact.lengths()[1:].tolist()
    with pytest.raises(DataError, match="left out"):
        load(exact, tmp_path / "cache", left_out=tuple(range(exact.num_episodes)))


def test_everything_is_recorded_but_actions_before_an_episode(exact: Dataset, tmp_path: Path) -> None:
    segments = load(exact, tmp_path)
    rows = np.array([[0, 1], [5, 6]])
    masks = segments.masks(rows)
    assert masks.action.tolist() == [[False, True], [False, True]]
    assert masks.proprio.all()
    assert masks.cameras.shape == (2, 2, 1)
    assert masks.action_numbers.shape == masks.proprio_numbers.shape == (2, 2, 2)
    for part in (masks.cameras, masks.action_numbers, masks.proprio_numbers):
        assert part.all()


def test_what_was_recorded_stays_with_its_episodes() -> None:
    one, other = make_segments([3, 2]), make_segments([4])
    other.recorded.action[:] = False
    other.recorded.proprio_numbers[:] = False
    both = one.followed_by(Segments(**parts_of(other)))
    assert both.masks(np.arange(9)).action.tolist() == [False, True, True, False, True] + [False] * 4
    assert both.masks(np.arange(9)).proprio_numbers[:, 0].tolist() == [True] * 5 + [False] * 4
    assert both.masks(np.arange(9)).proprio.all()


def parts_of(segments: Segments) -> dict[str, Any]:
    names = ("frames", "actions", "proprio", "lengths", "native_sizes", "episodes", "tasks", "recorded")
    return {name: getattr(segments, name) for name in names}


def test_task_texts_stay_with_their_episodes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with DatasetWriter(root, fps=10) as writer:
        for task in ("push", None, "pull"):
            columns = {"action": np.zeros((3, 1), np.float32), PROPRIO: np.ones((3, 1), np.float32)}
            writer.add(frames={}, columns=columns, **({"task": task} if task else {}))
    segments = load(Dataset.open(root), tmp_path / "cache", cameras=(), left_out=(1,))
    assert segments.tasks == ["push", "pull"]
    assert segments.followed_by(segments).tasks == ["push", "pull"] * 2


def test_actions_that_are_not_recorded_have_no_numbers(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with DatasetWriter(root, fps=10) as writer:
        writer.add(frames={}, columns={PROPRIO: np.ones((3, 1), np.float32)})
    segments = load(Dataset.open(root), tmp_path / "cache", cameras=())
    assert segments.actions.shape == segments.prev_action.shape == (3, 0)
    assert segments.has_action.tolist() == [False, True, True]
