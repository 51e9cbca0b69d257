import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.data import Dataset
from kinema.data.frames import resize
from kinema.data.video import probe
from kinema.evaluation.demo import RECORDING
from kinema.model.sampler import session_noise
from kinema.model.tokens import Values
from kinema.model.world import CONFIG_FILE, WEIGHTS_FILE, CameraConfig, WorldError, WorldModel
from kinema.simulation.world import World, load

from ..worlds import (
    CAMERA,
    SECOND_CAMERA,
    SIZE,
    full_disk,
    random_actions,
    random_frames,
    random_world,
    randomize,
)


@pytest.fixture(scope="module")
def world() -> World:
    return random_world()


@pytest.fixture(scope="module")
def two_cameras() -> World:
    return random_world(num_cameras=2, proprio_dim=3)


@pytest.fixture(scope="module")
def vectors() -> World:
    return random_world(num_cameras=0, proprio_dim=3)


def both(frames: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    return {CAMERA: frames, SECOND_CAMERA: other}


# Pictures.


def test_pictures_become_latents_and_pictures(world: World) -> None:
    frames = random_frames(5)
    latents = world.encode(frames)
    assert latents.shape == (5, 4, 4)
    decoded = world.decode(latents)
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == np.uint8
    assert decoded.shape == frames.shape
    assert np.array_equal(world.reconstruct(frames), decoded)
    assert np.array_equal(world.reconstruct({CAMERA: frames}), decoded)


def test_cameras_stand_in_the_order_of_the_world(two_cameras: World) -> None:
    top, side = random_frames(3), random_frames(3, seed=1)
    latents = two_cameras.encode({SECOND_CAMERA: side, CAMERA: top})
    assert latents.shape == (3, 8, 4)
    assert torch.equal(latents, two_cameras.encode(both(top, side)))
    assert not torch.equal(latents, two_cameras.encode(both(side, top)))
    decoded = two_cameras.decode(latents)
    assert isinstance(decoded, dict)
    assert list(decoded) == [CAMERA, SECOND_CAMERA]
    swapped = two_cameras.decode(two_cameras.encode(both(side, top)))
    assert isinstance(swapped, dict)
    assert np.array_equal(decoded[CAMERA], swapped[SECOND_CAMERA])


def test_proprioception_guides_the_decoder(two_cameras: World) -> None:
    frames = both(random_frames(3), random_frames(3, seed=1))
    proprio = np.random.default_rng(0).uniform(-5, 20, (3, 3)).astype(np.float32)

    def pictures(proprio: np.ndarray | None, batch: int = 256) -> np.ndarray:
        decoded = two_cameras.reconstruct(frames, proprio=proprio, batch=batch)
        assert isinstance(decoded, dict)
        return np.stack([decoded[CAMERA], decoded[SECOND_CAMERA]]).astype(int)

    guided = pictures(proprio)
    for other in (pictures(None), pictures(proprio[[1, 2, 0]])):
        assert (np.abs(other - guided).max((2, 3, 4)) > 1).all()
    assert np.abs(pictures(proprio, batch=2) - guided).max() <= 1
    with pytest.raises(WorldError, match=r"proprio: expected shape \(1, 3, 3\), got \(1, 2, 3\)"):
        pictures(proprio[:2])


@pytest.mark.parametrize("guide_dim", [3, 4])
def test_a_guide_needs_a_manifold_of_its_size(world: World, guide_dim: int) -> None:
    assert world.config.tokenizer is not None
    tokenizer = dataclasses.replace(world.config.tokenizer, guide_dim=guide_dim)
    manifold = world.config.manifold if guide_dim == 3 else None
    with pytest.raises(ValueError, match=f"guide_dim={guide_dim}: .* of 4 channels"):
        dataclasses.replace(world.config, tokenizer=tokenizer, manifold=manifold)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.1])
def test_past_frames_must_count_as_known(world: World, tau: float) -> None:
    with pytest.raises(ValueError, match=f"context_tau={tau}"):
        dataclasses.replace(world.config, context_tau=tau)


def test_many_pictures_are_done_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_frames(7)
    latents, pictures = world.encode(frames), world.reconstruct(frames)
    monkeypatch.setattr("kinema.model.world.MAX_PICTURES", 3)
    torch.testing.assert_close(world.encode(frames), latents, atol=1e-5, rtol=1e-5)
    decoded = world.decode(latents)
    assert np.abs(np.subtract(decoded, pictures, dtype=int)).max() <= 1
    in_batches = world.reconstruct(frames, batch=2)
    assert np.abs(np.subtract(in_batches, pictures, dtype=int)).max() <= 1


def test_frames_go_in_and_come_out_as_recorded_and_are_learned_in_another_size() -> None:
    world = random_world(recorded_size=(48, 64))
    recorded = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    assert np.array_equal(world.by_camera(recorded)[CAMERA], recorded)
    latents, learned = world.encode(recorded), resize(recorded, SIZE, SIZE)
    assert latents.shape == (2, 4, 4)
    assert torch.equal(world.encode(learned), latents)
    assert world.by_camera(learned)[CAMERA].shape == recorded.shape
    decoded = world.decode(latents)
    assert np.asarray(decoded).shape == recorded.shape
    assert np.array_equal(np.asarray(world.reconstruct(recorded)), np.asarray(decoded))
    # As large as learned they are the same but for what lies between the pixels.
    small = random_world().decode(latents)
    assert np.abs(resize(np.asarray(decoded), SIZE, SIZE).astype(int) - np.asarray(small)).mean() < 25
    with pytest.raises(
        WorldError, match=r"frames are 30x32 .* takes 48x64 \(as recorded\) or 32x32 \(as learned\)"
    ):
        world.by_camera(random_frames(2)[:, :30])


SIZES = {CAMERA: ((48, 64), (32, 48)), SECOND_CAMERA: ((72, 40), (64, 32))}
"""Of two cameras: recorded and learned."""


@pytest.fixture(scope="module")
def portrait() -> World:
    """A world of two cameras of different size and aspect that nobody trained."""
    config = random_world(num_cameras=2, proprio_dim=3).config
    cameras = tuple(
        CameraConfig(key=key, native_height=a, native_width=b, height=c, width=d)
        for key, ((a, b), (c, d)) in SIZES.items()
    )
    dynamics = dataclasses.replace(config.dynamics, grids=((2, 3), (4, 2)))
    world = World(dataclasses.replace(config, cameras=cameras, dynamics=dynamics)).eval()
    randomize(world)
    return world


def frames_of_both(length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.integers(0, 256, (length, *size, 3), np.uint8) for key, (size, _) in SIZES.items()}


def test_each_camera_keeps_its_size(portrait: World, tmp_path: Path) -> None:
    frames = frames_of_both(3)
    latents = portrait.encode(frames)
    assert latents.shape == (3, 2 * 3 + 4 * 2, 4)
    decoded = portrait.decode(latents)
    assert isinstance(decoded, dict)
    assert {key: shown.shape for key, shown in decoded.items()} == {k: f.shape for k, f in frames.items()}
    # Latents of one camera are those of its frames alone.
    other = portrait.encode(frames | {SECOND_CAMERA: 255 - frames[SECOND_CAMERA]})
    assert torch.equal(other[:, :6], latents[:, :6])
    assert not torch.equal(other[:, 6:], latents[:, 6:])
    portrait.save(tmp_path)
    again = WorldModel.from_folder(tmp_path)
    assert again.config == portrait.config
    assert torch.equal(again.encode(frames), latents)


def test_a_session_of_cameras_of_different_sizes(portrait: World, tmp_path: Path) -> None:
    frames, actions = frames_of_both(4), random_actions(9)
    sim = portrait.start(frames, actions[:3])
    for action in actions[3:]:
        step = sim.step(action)
        assert {key: shown.shape for key, shown in step.frame.items()} == {
            key: shown.shape[1:] for key, shown in frames.items()
        }
    sim.save(tmp_path / "rollout.mp4")
    assert probe(tmp_path / "rollout.mp4").height >= 72


def test_a_world_saved_without_sizes_of_cameras_loads_as_it_was(world: World, tmp_path: Path) -> None:
    world.save(tmp_path)
    path = tmp_path / CONFIG_FILE
    config = json.loads(path.read_text())
    for camera in config["cameras"]:
        del camera["height"], camera["width"]
    path.write_text(json.dumps(config))
    again, frames = WorldModel.from_folder(tmp_path), random_frames(3)
    assert again.config.learned_sizes == ((SIZE, SIZE),)
    assert torch.equal(again.encode(frames), world.encode(frames))
    assert np.array_equal(np.asarray(again.reconstruct(frames)), np.asarray(world.reconstruct(frames)))


def test_a_world_of_vectors_has_no_pictures(vectors: World) -> None:
    assert vectors.by_camera(None) == {}
    assert vectors.encode(None).shape == (0, 0, 4)
    assert vectors.decode(torch.zeros(1, 0, 4)) is None
    with pytest.raises(WorldError, match="world 'random' has no camera: give proprio"):
        vectors.encode(random_frames(2))
    with pytest.raises(WorldError, match="world 'random' has no camera: give proprio"):
        vectors.encode({CAMERA: random_frames(2)})


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            random_frames(2)[:, :30],
            "camera 'observation.images.top': frames are 30x32 .* takes 32x32",
        ),
        (random_frames(2).astype(np.float32), r"must be uint8 of shape .* got float32 \(2, 32, 32, 3\)"),
        (random_frames(2)[0], r"must be uint8 of shape \(T, height, width, 3\), got uint8 \(32, 32, 3\)"),
        (random_frames(2)[..., :2], r"must be uint8 of shape .* got uint8 \(2, 32, 32, 2\)"),
        ({SECOND_CAMERA: random_frames(2)}, "no pictures of camera observation.images.top; got .*side"),
        ({}, "no pictures of camera observation.images.top; got none"),
        (None, "world 'random': pictures of observation.images.top are needed"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(world: World, frames: object, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        world.encode(frames)


def test_cameras_that_do_not_fit_together_are_refused(two_cameras: World) -> None:
    with pytest.raises(WorldError, match=r"has 2 cameras: give frames as a dict with the keys .*top, .*side"):
        two_cameras.encode(random_frames(2))
    with pytest.raises(WorldError, match=r"no pictures of camera observation.images.side; got .*top"):
        two_cameras.encode({CAMERA: random_frames(2)})
    with pytest.raises(WorldError, match=r"differ in number of frames: .*top 2, .*side 3"):
        two_cameras.encode(both(random_frames(2), random_frames(3)))


# Inverse dynamics.


def test_infer_gives_an_action_between_every_two_frames(world: World) -> None:
    frames = random_frames(6)
    actions = world.infer(frames)
    assert actions.shape == (5, 2)
    assert np.isfinite(actions).all()
    assert np.array_equal(actions, world.infer(frames))
    other = world.infer(frames, generator=torch.Generator().manual_seed(1))
    assert not np.allclose(actions, other)


def test_infer_does_not_look_ahead(world: World) -> None:
    """The action between two frames depends on these and what was before, not on what comes after."""
    frames = random_frames(6)
    changed = frames.copy()
    changed[4:] = 255 - changed[4:]
    one, other = world.infer(frames), world.infer(changed)
    np.testing.assert_allclose(one[:3], other[:3], atol=1e-4)
    assert not np.allclose(one[3], other[3], atol=1e-3)


def test_infer_knows_no_seams(world: World) -> None:
    """Long recordings are done in parts that overlap by all that matters: cut off at the front by as much,
    what is left is the same."""
    frames = np.concatenate([random_frames(75), random_frames(75, seed=1)])
    noise = torch.Generator().manual_seed(0)
    whole = world.infer(frames, generator=noise)
    assert whole.shape == (149, 2)
    # One long pass, made by hand.
    latents, config = world.encode(frames).unsqueeze(0), world.config.dynamics
    rngs = [torch.Generator().manual_seed(0)] * 8
    noise = session_noise((150, 4 + config.noise_size + config.noise_dim), rngs, torch.device("cpu"))
    values = Values(latents, torch.zeros(1, 150, 0), torch.zeros(1, 150, 2))
    with torch.inference_mode():
        one_pass = world._infer_chunk(values.map(lambda x: x.expand(8, *x.shape[1:])), noise, False)
    assert np.abs(whole - one_pass).max() < 1e-3


def test_infer_refuses_what_it_cannot_use(world: World, vectors: World) -> None:
    with pytest.raises(WorldError, match="infer needs at least two frames, got 1"):
        world.infer(random_frames(1))
    with pytest.raises(WorldError, match="frames are 30x32"):
        world.infer(random_frames(2)[:, :30])
    with pytest.raises(WorldError, match="world 'random' has no camera: give proprio"):
        vectors.infer(None)
    assert vectors.infer(None, proprio=np.zeros((4, 3), np.float32)).shape == (3, 2)
    with pytest.raises(WorldError, match=r"proprio: expected shape \(1, 4, 3\), got \(1, 4, 2\)"):
        vectors.infer(None, proprio=np.zeros((4, 2), np.float32))


# On disk.


def tensors_of(world: World) -> dict[str, torch.Tensor]:
    return world.state_dict()


@pytest.mark.parametrize("num_cameras", [0, 1, 2])
def test_a_saved_world_comes_back_as_it_was(tmp_path: Path, num_cameras: int) -> None:
    world = random_world(num_cameras=num_cameras, proprio_dim=3, seed=num_cameras)
    world.save(tmp_path / "a" / "world")
    loaded = load(tmp_path / "a" / "world")
    assert loaded.config == world.config
    assert not loaded.training
    assert tensors_of(loaded).keys() == tensors_of(world).keys()
    for key, value in tensors_of(world).items():
        assert torch.equal(tensors_of(loaded)[key], value), key
    assert sorted(path.name for path in (tmp_path / "a" / "world").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_half_precision_is_close_and_half_the_size(world: World, tmp_path: Path) -> None:
    world.save(tmp_path / "single")
    world.save(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("half", "single")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = load(tmp_path / "half")
    frames, actions = random_frames(2), random_actions(1)
    floats = [value for value in loaded.state_dict().values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floats)
    frame, expected = (w.start(frames, actions).step(actions[0]).frame for w in (loaded, world))
    assert np.abs(frame.astype(int) - expected).mean() < 2.0


def test_a_world_can_be_loaded_by_the_path_as_text(world: World, tmp_path: Path) -> None:
    world.save(tmp_path / "world")
    assert load(str(tmp_path / "world")).config == world.config


@pytest.fixture
def saved(world: World, tmp_path: Path) -> Path:
    world.save(tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(WorldError, match=f"{saved}: {name} is missing, so this is not a complete world"):
        load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"format": 2}',
        '{"format": 999}',
        b"\xff\xfe\x00",
    ],
)
def test_a_corrupt_configuration_is_named(saved: Path, text: str | bytes) -> None:
    (saved / CONFIG_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WorldError, match=f"{saved / CONFIG_FILE}: not a world's configuration"):
        load(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("cameras",), None),
        (("cameras",), [{"key": "a"}]),
        (("fps_",), 10),
        (("tokenizer", "height"), 33),
        (("dynamics", "grids"), [[2]]),
        (("dynamics", "patch"), 3),
        (("dynamics", "colour"), "red"),
    ],
)
def test_a_configuration_with_a_wrong_field_is_named(
    saved: Path, place: tuple[str, ...], value: object
) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (saved / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(WorldError, match=f"{saved / CONFIG_FILE}: not a world's configuration"):
        load(saved)


def test_a_newer_format_is_said_to_be_one(saved: Path) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps({**config, "format": 3}))
    with pytest.raises(WorldError, match="written by another version of kinema; this one reads format 2"):
        load(saved)


@pytest.mark.parametrize("keep", [0, 7, 100, -1000])
def test_truncated_weights_are_named(saved: Path, keep: int) -> None:
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WorldError, match=f"{path}: cannot be read"):
        load(saved)


@pytest.mark.parametrize(
    ("place", "value"), [(("dynamics", "depth"), 2), (("dynamics", "width"), 64), (("tokenizer",), None)]
)
def test_weights_of_another_network_are_named(saved: Path, place: tuple[str, ...], value: object) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (saved / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(WorldError, match=f"{saved / WEIGHTS_FILE}: does not fit config.json"):
        load(saved)


@pytest.mark.parametrize("name", ["no-such-world", "./no-such-folder", "a/b/c", "/no/such/folder"])
def test_an_unknown_world_is_told_what_would_be_right(name: str) -> None:
    with pytest.raises(
        WorldError, match=f"no world '{name}': neither a bundled one .* nor a folder, nor a Hub id"
    ):
        load(name)


def test_a_hub_id_needs_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"'owner/name' looks like a Hub id.*pip install 'kinema\[hub\]'"):
        load("owner/name")


def test_what_cannot_be_written_leaves_the_world_that_was_there(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with (
        full_disk(10_000),
        pytest.raises(WorldError, match=f"{saved}: the world could not be written .*make room on the disk"),
    ):
        random_world(seed=5).save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    load(saved)


# Simulated frames.


@torch.inference_mode()
def test_what_hardly_changes_stays() -> None:
    world = random_world()
    assert world.manifold is not None
    world.manifold.radius.fill_(torch.inf)
    last = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = last.clone()
    found[:, 0] += 0.9 * world.config.still_change
    found[:, 1] += 1.1 * world.config.still_change
    kept = world.draw_near(found, last, torch.zeros(3, 0))[0]
    assert torch.equal(kept[:, [0, 2, 3]], last[:, [0, 2, 3]])
    assert torch.equal(kept[:, 1], found[:, 1])


@torch.inference_mode()
def test_simulated_frames_are_held_to_the_manifold() -> None:
    distances = []
    for radius in (1.0, torch.inf):
        world = random_world(proprio_dim=1)
        assert world.manifold is not None
        world.manifold.radius.fill_(radius)
        sim = world.start_batch(random_frames(3, 2), proprio=np.zeros((3, 2, 1), np.float32))
        proprio = np.concatenate([sim.step(random_actions(3, seed=step)).proprio for step in range(4)])[-3:]
        normalized = world.normalized_proprio(proprio[:, None], 3, 1)[:, 0]
        distances.append(world.manifold.distance(sim.latents, normalized)[0].mean())
    assert distances[0] < 0.7 * distances[1]


def test_proprioception_is_found_in_a_picture() -> None:
    """In the bundled world, without heads."""
    world = load("pusht")
    episode = Dataset.open(RECORDING).episode(0)
    rows = [0, 400, 900]
    latents = world.encode(episode.frames[world.cameras[0]][rows])
    found = world.proprio_normalizer.restore(world.locate(latents)).numpy()
    errors = np.linalg.norm(found - episode.columns["observation.state"][rows], axis=1)
    # Of a picture that is 512 wide; the middle of it is 200 away on average.
    assert np.median(errors) < 10.0
    assert np.array_equal(found, world.proprio_normalizer.restore(world.locate(latents)).numpy())
    # Where nothing tells it, it is the middle.
    plain = random_world(num_cameras=0, proprio_dim=2)
    assert torch.equal(plain.locate(torch.zeros(1, 0, 4)), torch.zeros(1, 2))


def test_actions_are_inferred_from_pictures_alone() -> None:
    world, episode = load("pusht"), Dataset.open(RECORDING).episode(0)
    rows = slice(30, 42)
    actions = episode.columns["action"][30:41]
    found = world.infer(episode.frames[world.cameras[0]][rows])
    # The first lacks a frame before, by which to tell how fast the robot was.
    assert np.abs(found - actions)[1:].mean() < 0.35 * np.abs(actions - actions.mean(0))[1:].mean()


def test_a_session_starts_from_pictures_alone() -> None:
    world, episode = load("pusht"), Dataset.open(RECORDING).episode(0)
    sim = world.start(episode.frames[world.cameras[0]][:3], episode.columns["action"][:2])
    step = sim.step(episode.columns["action"][2])
    np.testing.assert_allclose(step.proprio, episode.columns["observation.state"][3], atol=10.0)
