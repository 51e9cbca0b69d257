import copy
import gc
import resource
import types
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

from kinema.hardware.packed import PackedLinear, can_pack
from kinema.model.world import WorldError
from kinema.simulation import session as simulation
from kinema.simulation.session import MAX_REWIND, Simulation, SimulationBatch, moment_bytes
from kinema.simulation.world import World

from ..worlds import (
    CAMERA,
    FPS,
    SECOND_CAMERA,
    SIZE,
    random_actions,
    random_frames,
    random_world,
)


@pytest.fixture(scope="module")
def world() -> World:
    return random_world()


@pytest.fixture(scope="module")
def arm() -> World:
    """Two cameras, proprioception, two network calls a frame."""
    return random_world(num_cameras=2, proprio_dim=3, num_denoising_steps=2, memory=5)


@pytest.fixture(scope="module")
def vectors() -> World:
    return random_world(num_cameras=0, proprio_dim=3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rollout(sim: Simulation | SimulationBatch, actions: np.ndarray) -> np.ndarray:
    return np.stack([sim.step(action).frame for action in actions])


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """The same but for the order of sums, which may round a colour to its neighbour."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= 1


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other).max() > 3)


def test_one_frame_is_enough(world: World) -> None:
    sim = world.start(random_frames(1))
    step = sim.step(random_actions())
    assert step.frame.shape == (SIZE, SIZE, 3)
    assert step.frame.dtype == np.uint8
    assert step.proprio is None
    assert sim.num_steps == 1
    assert sim.world is world


def test_every_frame_and_action_of_the_context_matters(world: World) -> None:
    frames, actions, then = random_frames(3), random_actions(2), random_actions(2, seed=1)
    expected = rollout(world.start(frames, actions), then)
    for t in range(3):
        other = frames.copy()
        other[t] = 255 - other[t]
        assert differ(rollout(world.start(other, actions), then), expected)
    for t in range(2):
        other = actions.copy()
        other[t] += 3.0
        assert differ(rollout(world.start(frames, other), then), expected)
    assert differ(rollout(world.start(frames), then), expected)


def test_every_action_matters_from_its_step_on(world: World) -> None:
    frames, actions = random_frames(2), random_actions(4)
    expected = rollout(world.start(frames), actions)
    for t in range(4):
        other = actions.copy()
        other[t] += 3.0
        got = rollout(world.start(frames), other)
        assert np.array_equal(got[:t], expected[:t])
        assert all(differ(one, two) for one, two in zip(got[t:], expected[t:], strict=True))


def test_frames_beyond_the_reach_change_nothing(world: World) -> None:
    reach, then = world.config.dynamics.reach, random_actions(2, seed=1)
    frames, actions = random_frames(reach + 12), random_actions(reach + 11)
    whole = rollout(world.start(frames, actions), then)
    cut = rollout(world.start(frames[6:], actions[6:]), then)
    assert_same(whole, cut)


def test_going_on_in_the_recording_is_starting_later(world: World) -> None:
    """Kept context is what ``start`` shows: no trace of how the session was begun is left."""
    frames, actions = random_frames(20), random_actions(19)
    sims = [world.start(frames[:c], actions[: c - 1]) for c in (20, 18)]
    batch = world.start_batch(frames[None], actions[None])
    first = rollout(sims[0], random_actions(2, seed=1))
    assert_same(rollout(batch[0], random_actions(2, seed=1)), first)
    assert differ(rollout(sims[1], random_actions(2, seed=1)), first)


@pytest.mark.parametrize("num_denoising_steps", [1, 3])
def test_the_same_seed_gives_the_same_rollout(world: World, num_denoising_steps: int) -> None:
    frames, actions = random_frames(2), random_actions(5)

    def run(seed: int) -> np.ndarray:
        sim = world.start(frames, generator=seeded(seed), num_denoising_steps=num_denoising_steps)
        return rollout(sim, actions)

    first = run(1)
    torch.manual_seed(99)
    assert np.array_equal(run(1), first)
    assert differ(run(2), first)


def test_the_number_of_network_calls_matters(world: World) -> None:
    frames, actions = random_frames(2), random_actions(2)
    one, two = (rollout(world.start(frames, num_denoising_steps=n), actions) for n in (1, 2))
    assert differ(one, two)
    assert np.array_equal(rollout(world.start(frames), actions), one)
    with pytest.raises(WorldError, match="num_denoising_steps=0: expected a whole number from 1"):
        world.start(frames, num_denoising_steps=0)


def test_a_batch_gives_what_each_gives_alone(world: World) -> None:
    frames, actions = random_frames(3, 4), random_actions(3, 3)
    then = random_actions(6, 3, seed=1)
    batch = world.start_batch(frames, actions, generators=[seeded(s) for s in (5, 6, 7)])
    assert len(batch) == 3
    together = rollout(batch, then)
    assert together.shape == (6, 3, SIZE, SIZE, 3)
    for index, seed in enumerate((5, 6, 7)):
        alone = world.start(frames[index], actions[index], generator=seeded(seed))
        assert_same(rollout(alone, then[:, index]), together[:, index])


def test_a_session_of_a_batch_can_go_on_alone(world: World) -> None:
    batch = world.start_batch(random_frames(3, 2))
    before, after = random_actions(3, 3), random_actions(3, 3, seed=1)
    rollout(batch, before)
    alone, last = batch[1], batch[-1]
    lonely = rollout(alone, after[:, 1])
    together = rollout(batch, after)
    assert_same(lonely, together[:, 1])
    assert_same(rollout(last, after[:, 2]), together[:, 2])
    assert alone.num_steps == 6
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"session {index} of a batch of 3"):
            batch[index]


def test_futures_begin_where_the_parent_is_and_go_their_own_ways(world: World) -> None:
    sim = world.start(random_frames(2))
    rollout(sim, random_actions(3))
    branches = sim.fork(3)
    assert len(branches) == 3
    assert branches.num_steps == 3
    assert branches.latents.shape == (3, 4, 4)
    for index in range(3):
        assert np.array_equal(branches.pictures(index), sim.pictures())
    same_action = random_actions(1, seed=1).repeat(3, axis=0)
    frames = branches.step(same_action).frame
    # Each has noise of its own ...
    assert differ(frames[0], frames[1])
    assert differ(frames[1], frames[2])
    # ... and the same action gives the same future to whoever forks here again.
    assert_same(sim.fork(3).step(same_action).frame, frames)


def test_the_parent_does_not_notice_its_futures(world: World) -> None:
    frames, before, after = random_frames(2), random_actions(3), random_actions(3, seed=1)
    undisturbed = world.start(frames)
    rollout(undisturbed, before)
    expected = rollout(undisturbed, after)
    sim = world.start(frames)
    rollout(sim, before)
    branches = sim.fork(4)
    rollout(branches, random_actions(5, 4, seed=2))
    grandchildren = branches.fork(2)
    assert len(grandchildren) == 8
    rollout(grandchildren, random_actions(2, 8, seed=3))
    assert np.array_equal(rollout(sim, after), expected)
    with pytest.raises(WorldError, match=r"num=0: expected a whole number from 1"):
        sim.fork(0)


def test_the_world_is_not_changed_by_its_sessions(world: World) -> None:
    before = {key: value.clone() for key, value in world.state_dict().items()}
    rollout(world.start(random_frames(2)), random_actions(3))
    for key, value in world.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("fixture", ["world", "arm", "vectors"])
def test_going_back_is_as_if_it_had_not_been(request: pytest.FixtureRequest, fixture: str) -> None:
    world: World = request.getfixturevalue(fixture)

    def start() -> Simulation:
        if not world.cameras:
            return world.start(None, proprio=np.zeros((2, 3), np.float32))
        frames = {key: random_frames(2, seed=index) for index, key in enumerate(world.cameras)}
        return world.start(frames)

    plain, rewound = start(), start()
    actions, wrong = random_actions(8), random_actions(5, seed=1)
    for t, action in enumerate(actions):
        for action_of_no_consequence in wrong[: t % 4]:
            rewound.step(action_of_no_consequence)
        rewound.rewind(t % 4)
        expected, got = plain.step(action), rewound.step(action)
        if world.proprio_dim:
            np.testing.assert_allclose(got.proprio, expected.proprio, rtol=1e-5, atol=1e-5)
        for key in world.cameras:
            frames = [step.frame[key] if len(world.cameras) > 1 else step.frame for step in (got, expected)]
            assert np.array_equal(*frames)
    assert plain.num_steps == rewound.num_steps == 8
    if world.cameras:
        for key in world.cameras:
            pictures = [sim.pictures() for sim in (plain, rewound)]
            one, other = (p[key] if isinstance(p, dict) else p for p in pictures)
            assert one is not None
            assert one.shape == (9, SIZE, SIZE, 3)
            assert np.array_equal(one, other)


def test_going_back_has_its_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MAX_REWIND", 5)
    sim = world.start(random_frames(4))
    with pytest.raises(WorldError, match=r"rewind\(1\): this session can go back by 0 to 0 steps"):
        sim.rewind(1)
    rollout(sim, random_actions(3))
    with pytest.raises(WorldError, match=r"rewind\(4\): this session can go back by 0 to 3 steps"):
        sim.rewind(4)
    with pytest.raises(WorldError, match=r"rewind\(-1\): this session can go back by 0 to 3 steps"):
        sim.rewind(-1)
    sim.rewind(0)
    rollout(sim, random_actions(60, seed=1))
    with pytest.raises(WorldError, match=r"rewind\(6\): this session can go back by 0 to 5 steps"):
        sim.rewind(6)


def test_going_back_again_and_again_ends_where_the_past_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just after the ring has turned it holds no more than one way back: the second must not run into it."""
    monkeypatch.setattr(simulation, "MAX_REWIND", 5)
    for num_steps in (6, 9, 14, 15, 18, 23, 27):
        sim, plain = world.start(random_frames(1)), world.start(random_frames(1))
        actions = random_actions(num_steps)
        for action in actions:
            sim.step(action, decode=False)
        back = 0
        try:
            for _ in range(num_steps):
                sim.rewind(5)
                back += 5
        except WorldError:
            pass
        assert back >= 5
        for action in actions[: num_steps - back]:
            plain.step(action, decode=False)
        expected, got = (s.step(random_actions(seed=1)).frame for s in (plain, sim))
        assert_same(got, expected)


def test_a_dict_of_cameras(arm: World) -> None:
    frames = {SECOND_CAMERA: random_frames(3, seed=1), CAMERA: random_frames(3)}
    sim = arm.start(types.MappingProxyType(frames), random_actions(2))
    step = sim.step(random_actions(seed=1))
    assert list(step.frame) == [CAMERA, SECOND_CAMERA]
    assert step.frame[CAMERA].shape == (SIZE, SIZE, 3)
    assert differ(step.frame[CAMERA], step.frame[SECOND_CAMERA])
    assert step.proprio is not None
    assert step.proprio.shape == (3,)
    branches = sim.fork(2).step(random_actions(2))
    assert branches.frame[CAMERA].shape == (2, SIZE, SIZE, 3)
    assert branches.proprio is not None
    assert branches.proprio.shape == (2, 3)
    pictures = sim.pictures()
    assert isinstance(pictures, dict)
    assert pictures[SECOND_CAMERA].shape == (2, SIZE, SIZE, 3)


def test_proprioception_may_be_known_or_not(arm: World) -> None:
    frames = {CAMERA: random_frames(3), SECOND_CAMERA: random_frames(3, seed=1)}
    proprio = np.random.default_rng(0).uniform(-5, 20, (3, 3)).astype(np.float32)
    action = random_actions()
    steps = [arm.start(frames, proprio=p).step(action) for p in (None, proprio, proprio + 5.0)]
    assert differ(steps[0].frame[CAMERA], steps[1].frame[CAMERA])
    assert differ(steps[1].frame[CAMERA], steps[2].frame[CAMERA])
    for step in steps:
        assert step.proprio is not None
        # In the units of the dataset: the random network's values of some ones, times a scale of 12.
        assert 1 < np.abs(step.proprio).max() < 300


def test_a_world_of_vectors(vectors: World, tmp_path: Path) -> None:
    proprio = np.random.default_rng(0).uniform(-5, 20, (4, 3)).astype(np.float32)
    sim = vectors.start(None, random_actions(3), proprio=proprio)
    step = sim.step(random_actions())
    assert step.frame is None
    assert step.proprio is not None
    assert step.proprio.shape == (3,)
    assert sim.pictures() is None
    with pytest.raises(WorldError, match="has no camera, so there is nothing to save"):
        sim.save(tmp_path / "nothing.mp4")
    batch = vectors.start_batch(None, proprio=np.stack([proprio, proprio + 1]))
    stepped = batch.step(random_actions(2)).proprio
    assert stepped is not None
    assert stepped.shape == (2, 3)


def test_without_decoding_nothing_else_changes(world: World) -> None:
    frames, actions = random_frames(2), random_actions(4)
    decoded, silent = world.start(frames), world.start(frames)
    expected = rollout(decoded, actions)
    assert all(silent.step(action, decode=False).frame is None for action in actions[:-1])
    assert np.array_equal(silent.step(actions[-1]).frame, expected[-1])


def test_pictures_are_those_that_were_seen(world: World) -> None:
    frames = random_frames(3)
    sim = world.start(frames)
    seen = rollout(sim, random_actions(4))
    pictures = sim.pictures()
    assert isinstance(pictures, np.ndarray)
    # The last given frame, as the tokenizer has it, then the simulated ones (remembered in half precision).
    assert_same(pictures[0], np.asarray(world.reconstruct(frames[-1:]))[0])
    assert_same(pictures[1:], seen)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_saved_rollout_plays(world: World, tmp_path: Path, suffix: str) -> None:
    sim = world.start(random_frames(2))
    rollout(sim, random_actions(6))
    path = tmp_path / "new folder" / f"rollout{suffix}"
    sim.save(path)
    if suffix == ".mp4":
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == FPS
            played = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    else:
        with PIL.Image.open(path) as picture:
            played = []
            for index in range(getattr(picture, "n_frames", 1)):
                picture.seek(index)
                played.append(np.asarray(picture.convert("RGB")))
    assert len(played) == 7
    pictures = sim.pictures()
    assert isinstance(pictures, np.ndarray)
    scale = played[0].shape[0] // SIZE
    assert played[0].shape == (SIZE * scale, SIZE * scale, 3)
    for shown, picture in zip(played, pictures, strict=True):
        enlarged = picture.repeat(scale, 0).repeat(scale, 1)
        assert np.abs(shown.astype(int) - enlarged).mean() < 25
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_cameras_stand_side_by_side_in_the_saved_video(arm: World, tmp_path: Path) -> None:
    batch = arm.start_batch({CAMERA: random_frames(2, 1), SECOND_CAMERA: random_frames(2, 1, seed=1)})
    batch.step(random_actions(2))
    batch.save(tmp_path / "second.mp4", index=1)
    with av.open(str(tmp_path / "second.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.width == 2 * frame.height


def test_another_suffix_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.avi"):
        world.start(random_frames(1)).save(tmp_path / "rollout.avi")


# Bad input.


def test_a_wrong_action_leaves_the_session_as_it_was(world: World) -> None:
    frames, actions = random_frames(2), random_actions(3)
    expected = rollout(world.start(frames), actions)
    sim = world.start(frames)
    sim.step(actions[0])
    for action, message in (
        (np.zeros(3), r"action: expected shape \(2,\) \(right, down last\), got \(3,\)"),
        (np.zeros((1, 2)), r"action: expected shape \(2,\) .* got \(1, 2\)"),
        (0.0, r"action: expected shape \(2,\) .* got \(\)"),
        ([0.0, np.nan], "action: it holds a number that is not finite"),
        ([0.0, np.inf], "action: it holds a number that is not finite"),
    ):
        with pytest.raises(WorldError, match=message):
            sim.step(action)
    batch = world.start_batch(random_frames(2, 1))
    with pytest.raises(WorldError, match=r"actions: expected shape \(2, 2\) .* got \(3, 2\)"):
        batch.step(np.zeros((3, 2)))
    assert sim.num_steps == 1
    assert np.array_equal(rollout(sim, actions[1:]), expected[1:])


def test_actions_may_be_lists_of_any_numbers(world: World) -> None:
    frames = random_frames(1)
    expected = world.start(frames).step(np.array([1.0, 2.0], np.float32)).frame
    for action in ([1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0])):
        assert np.array_equal(world.start(frames).step(action).frame, expected)


def test_a_start_that_does_not_fit_is_refused(world: World, arm: World, vectors: World) -> None:
    frames, wrong = random_frames(3), np.zeros((3, 2), np.float32)
    proprio = np.zeros((3, 3), np.float32)
    two = {CAMERA: frames, SECOND_CAMERA: frames}
    cases = [
        (world, frames, {"actions": wrong}, r"actions: expected shape \(1, 2, 2\) .* got \(1, 3, 2\)"),
        (world, frames[0], {}, r"frames must be \(T, height, width, 3\).*picture\[None\].*got \(32, 32, 3\)"),
        (world, frames[:0], {}, r"frames must be .*T at least 1.*got \(0, 32, 32, 3\)"),
        (world, frames[:, :8], {}, "frames are 8x32 .* this world takes 32x32"),
        (world, frames.astype(float), {}, "frames must be uint8"),
        (world, None, {}, "pictures of observation.images.top are needed"),
        (world, None, {"proprio": proprio}, "pictures of observation.images.top are needed"),
        (world, {}, {}, "no pictures of camera|the cameras differ"),
        (arm, frames, {}, "has 2 cameras: give frames as a dict"),
        (arm, {CAMERA: frames}, {}, "no pictures of camera observation.images.side"),
        (arm, {**two, CAMERA: frames[:2]}, {}, "the cameras differ in sessions and frames: .*top .*1, 2"),
        (arm, two, {"proprio": proprio[:2]}, r"proprio: expected shape \(1, 3, 3\), got \(1, 2, 3\)"),
        (arm, two, {"proprio": proprio * np.nan}, "proprio: it holds a number that is not finite"),
        (vectors, None, {}, r"has no camera: give proprio \(sessions, T, 3\), T at least 1"),
        (vectors, None, {"proprio": proprio[:0]}, "has no camera: give proprio"),
        (vectors, frames, {}, "has no camera: give proprio, and None for frames"),
    ]
    for of, given, more, message in cases:
        with pytest.raises(WorldError, match=message):
            of.start(given, **more)


def test_a_batch_needs_a_generator_for_each(world: World) -> None:
    with pytest.raises(WorldError, match="generators: 2 sessions need 2, got 1"):
        world.start_batch(random_frames(2, 1), generators=[seeded(0)])
    with pytest.raises(WorldError, match=r"frames must be \(sessions, T, height, width, 3\)"):
        world.start_batch(random_frames(2))


# No end.


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_five_thousand_steps_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of the past are bounded; here by less, so that the bound is reached early on."""
    monkeypatch.setattr(simulation, "HISTORY_BYTES", 300 * moment_bytes(random_world(depth=2)))
    world = random_world(depth=2)
    sim = world.start(random_frames(2), random_actions(1))
    rings = [*sim._batch._cache.layers, sim._batch._cache.frames]
    buffers = [(ring.buffer.data_ptr(), ring.buffer.shape) for ring in rings]
    actions = random_actions(500)

    def run(num_rounds: int) -> int:
        for _ in range(num_rounds):
            for action in actions:
                sim.step(action, decode=False)
        gc.collect()
        return _resident_bytes()

    before = run(2)
    after = run(10)
    assert sim.num_steps == 6000
    # One step's latents, noise and keys take 20 kB: 5,000 of them would be 100 MB.
    assert after - before < 4 * 2**20
    assert [(ring.buffer.data_ptr(), ring.buffer.shape) for ring in rings] == buffers
    pictures = sim.pictures()
    assert isinstance(pictures, np.ndarray)
    assert pictures.shape == (300, SIZE, SIZE, 3)
    assert pictures[-1].std() > 0


def test_far_into_the_future_it_is_as_it_was_near(world: World) -> None:
    """Positions are relative: a session that has run for a long time and is then shown frames that fill its
    whole past goes on as a new one would."""
    reach = world.config.dynamics.reach
    batch = world.start_batch(random_frames(1, 1))
    for action in random_actions(2 * MAX_REWIND + 30):
        batch.step(action[None], decode=False)
    frames, actions = random_frames(reach + 2), random_actions(reach + 1)
    fresh = world.start(frames, actions)
    normalized = world.action_normalizer.normalize(torch.from_numpy(actions))[None]
    batch.num_steps = 0
    batch.begin(world.encode(frames)[None], torch.zeros(1, reach + 2, 0), False, normalized)
    then = random_actions(3, seed=1)
    assert_same(rollout(batch[0], then), rollout(fresh, then))


def test_trust_falls_and_follows_the_session(world: World) -> None:
    frames, actions = random_frames(2, 1), random_actions(2, 12)
    batch = world.start_batch(frames)
    trust = np.stack([batch.step(actions[:, t]).trust for t in range(12)])
    assert trust.shape == (12, 2)
    assert (trust > 0).all()
    assert (trust < 1).all()
    # What went wrong stays wrong.
    assert (np.diff(trust, axis=0) <= 0).all()
    assert (trust[-1] < trust[0]).any()
    alone = world.start(frames[0])
    assert not np.allclose(trust[:, 0], trust[:, 1])
    batch.rewind(5)
    again = np.stack([batch.step(actions[:, t]).trust for t in range(7, 12)])
    np.testing.assert_allclose(again, trust[7:], rtol=1e-6)
    step = batch[1].step(actions[1, 0])
    assert isinstance(step.trust, float)
    assert step.trust <= trust[-1, 1]
    futures = batch.fork(2).step(np.repeat(actions[:, 0], 2, axis=0))
    assert futures.trust.shape == (4,)
    assert (futures.trust <= np.repeat(trust[-1], 2)).all()
    np.testing.assert_allclose(alone.step(actions[0, 0]).trust, trust[0, 0], rtol=1e-4)


def test_a_world_without_a_manifold_says_nothing_of_trust(vectors: World) -> None:
    sim = vectors.start(None, proprio=np.zeros((2, 3), np.float32))
    assert sim.step(random_actions()).trust is None


def test_bfloat16_is_close_and_leaves_the_world_as_it_is() -> None:
    world = random_world()
    # Which recorded frame is recalled may hang on the last digit.
    assert world.manifold is not None
    assert world.manifold.recorded is not None
    world.manifold.recorded.reach.fill_(torch.inf)
    exact = {key: value.clone() for key, value in world.state_dict().items()}
    frames = {}
    for precision in ("float32", "bfloat16"):
        world.precision = precision
        step = world.start(random_frames(2), random_actions(1)).step(random_actions(1)[0])
        frames[precision] = step.frame.astype(float)
    difference = np.abs(frames["bfloat16"] - frames["float32"])
    assert 0 < difference.mean() < 2.0
    assert all(torch.equal(value, exact[key]) for key, value in world.state_dict().items())
    assert world.networks is world.networks
    assert _dtype(world) == torch.bfloat16
    world.precision = "float32"
    assert _dtype(world) == torch.float32


def _dtype(world: World) -> torch.dtype:
    """What a linear map of what sessions run computes in."""
    found = world.networks.dynamics.latents_out
    return found.dtype if isinstance(found, PackedLinear) else found.weight.dtype


@pytest.mark.parametrize("num", [1, 24])
@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_packed_weights_change_nothing_but_the_speed(
    is_packed: bool, is_half: bool, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = random_world()
    world.precision = "float32"
    if is_half:
        # As of a world that was saved in half precision.
        world.load_state_dict(
            {key: value.half().to(value.dtype) for key, value in world.state_dict().items()}
        )
    frames = np.stack([random_frames(2)] * num)
    actions = np.stack([random_actions(2)] * num)
    with monkeypatch.context() as context:
        context.setattr("kinema.simulation.world.can_pack", lambda dtype, device: False)
        assert world.networks is world
        plain = world.start_batch(frames, actions[:, :1]).step(actions[:, 1])
    monkeypatch.setattr("kinema.hardware.packed.prefers_packed", lambda device: is_packed)
    assert (world.networks is world) != can_pack(torch.float32, "cpu")
    found = world.start_batch(frames, actions[:, :1]).step(actions[:, 1])
    np.testing.assert_allclose(found.frame.astype(float), plain.frame.astype(float), atol=1.0)


@torch.no_grad()
def test_bfloat16_follows_the_weights() -> None:
    world = random_world()
    world.precision = "bfloat16"
    before = world.networks
    world.dynamics.latents_out.weight.add_(1.0)
    after = world.networks
    assert after is not before
    x = torch.ones(1, world.dynamics.latents_out.in_features)
    expected = world.dynamics.latents_out(x)
    torch.testing.assert_close(after.dynamics.latents_out(x).float(), expected, atol=0.02, rtol=0.02)
    assert copy.deepcopy(world).networks is not after
