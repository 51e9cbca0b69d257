"""A served world is used as a local one."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinema
from kinema.serve.client import RemoteWorld
from kinema.serve.limits import Limits
from kinema.serve.service import Service
from kinema.simulation.world import World
from kinema.types import ServerError, WorldError

from ..worlds import CAMERA, SECOND_CAMERA, SIZE, random_actions, random_frames, random_world
from .running import running, small_service


@pytest.fixture(scope="module", params=[1, 2], ids=["one camera", "two cameras"])
def worlds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RemoteWorld, World]]:
    """The same world there and here."""
    if request.param == 1:
        local = random_world()
        service = small_service(tmp_path_factory.mktemp("served"), world=local)
    else:
        local = random_world(num_cameras=2, proprio_dim=3)
        service = Service(local, None, Limits())
    with running(service) as url, kinema.connect(url) as remote:
        yield remote, local


def start_of(world: World, num: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
    keys = (CAMERA, SECOND_CAMERA)[: len(world.cameras)]
    frames = {key: random_frames(num, seed=index) for index, key in enumerate(keys)}
    proprio = np.random.default_rng(0).uniform(-5, 20, (num, 3)).astype(np.float32)
    return frames, random_actions(num - 1), proprio if world.proprio_dim else None


def assert_same(one: kinema.Step, other: kinema.Step) -> None:
    assert type(one.frame) is type(other.frame)
    pairs = [(one.frame[k], other.frame[k]) for k in other.frame] if isinstance(other.frame, dict) else []
    for mine, theirs in pairs or [(one.frame, other.frame)]:
        assert mine.shape == theirs.shape
        assert mine.dtype == np.uint8
        assert np.abs(mine.astype(int) - theirs).max() <= 1
    if other.proprio is not None:
        np.testing.assert_allclose(one.proprio, other.proprio, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.trust, other.trust, rtol=1e-3)
    assert np.array_equal(one.is_outside, other.is_outside)


def test_the_same_calls_give_the_same_steps(worlds: tuple[RemoteWorld, World], tmp_path: Path) -> None:
    remote, local = worlds
    assert (remote.name, remote.fps, remote.cameras) == (local.name, local.fps, local.cameras)
    assert (remote.action_dim, remote.proprio_dim) == (local.action_dim, local.proprio_dim)
    frames, actions, proprio = start_of(local)
    there, here = (
        world.start(frames, actions, proprio=proprio, generator=torch.Generator().manual_seed(4))
        for world in worlds
    )
    assert_same(there.look(), here.look())
    then = random_actions(12, seed=1)
    for action in then[:4]:
        assert_same(there.step(action), here.step(action))
    assert there.step(then[4], decode=False).frame is None
    here.step(then[4], decode=False)
    for sim in (there, here):
        sim.rewind(2)
        assert sim.num_steps == 3
    assert_same(there.step(then[5]), here.step(then[5]))
    futures, expected = there.fork(2), here.fork(2)
    assert len(futures) == 2
    for action in (then[6:8], then[8:10]):
        assert_same(futures.step(action), expected.step(action))
    futures.rewind(1)
    expected.rewind(1)
    assert_same(futures[1].step(then[10]), expected[1].step(then[10]))
    assert_same(futures.fork(2).step(then[:4]), expected.fork(2).step(then[:4]))
    assert_same(there.copy().step(then[11]), here.copy().step(then[11]))
    for sim in (there, here):
        sim.change(seed=9, num_denoising_steps=3)
    assert_same(there.step(then[11]), here.step(then[11]))
    far = np.array([60.0, 1.5], np.float32)
    outside, expected_outside = there.step(far).outside, here.step(far).outside
    assert outside == pytest.approx(dict(expected_outside), rel=1e-4)
    assert outside["right"] > 1
    assert_same(there.fork(2).step([far, then[11]]), here.fork(2).step([far, then[11]]))
    mine, theirs = there.pictures(), here.pictures()
    if isinstance(mine, dict):
        assert isinstance(theirs, dict)
        mine, theirs = mine[SECOND_CAMERA], theirs[SECOND_CAMERA]
    assert np.abs(mine.astype(int) - theirs).max() <= 2
    there.save(tmp_path / "rollout.mp4")
    assert (tmp_path / "rollout.mp4").stat().st_size > 0
    np.testing.assert_allclose(
        remote.infer(frames, proprio=proprio), local.infer(frames, proprio=proprio), rtol=1e-2, atol=1e-2
    )


def test_numbers_outside_are_named_in_answers_of_http(tmp_path: Path) -> None:
    with running(small_service(tmp_path)) as url, kinema.connect(url) as remote:
        path = f"/v1/sessions/{remote.start_episode().id}"
        near, far = [1.0, 1.5], [60.0, 1.5]

        def outside(name: str, **body: Any) -> list[dict[str, float]]:
            answer = remote.connection.request("POST", f"{path}/{name}", {"format": "none", **body}).json()
            return [state["outside"] for state in answer.get("states", [answer])]

        assert outside("step", action=near) == [{}]
        (one,) = outside("step", action=far)
        assert one["right"] > 1
        assert outside("steps", actions=[far, near]) == [pytest.approx(one), {}]
        assert outside("steps", actions=[far, near], only_last=True) == [pytest.approx(one)]
        assert outside("rewind", num_steps=1) == [pytest.approx(one)]


def test_mistakes_are_those_of_a_local_world(worlds: tuple[RemoteWorld, World]) -> None:
    remote, local = worlds
    frames, actions, proprio = start_of(local)
    sim = remote.start(frames, actions, proprio=proprio)
    for action, message in (
        (np.zeros(3), r"expected shape \(2,\), got \(3,\)"),
        ([np.nan, 0.0], "not finite"),
    ):
        with pytest.raises(WorldError, match=message):
            sim.step(action)
    with pytest.raises(WorldError, match=r"rewind\(1\): this session can go back by 0 to 0 steps"):
        sim.rewind(1)
    with pytest.raises(WorldError, match=r"actions: expected shape \(1, 2, 2\)"):
        remote.start(frames, actions[:1], proprio=proprio)
    small = {key: film[:, :8] for key, film in frames.items()}
    with pytest.raises(WorldError, match=f"the picture is 8x{SIZE} .* this world takes {SIZE}x{SIZE}"):
        remote.start(small)
    with pytest.raises(WorldError, match="num_denoising_steps=99: at most 16"):
        remote.start(frames, num_denoising_steps=99)
    sim.close()
    with pytest.raises(ServerError, match="no such session: it was closed"):
        sim.step(np.zeros(2))
    assert sim.num_steps == 0


def test_a_recorded_start(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    with running(service) as url, kinema.connect(url) as remote:
        sim = remote.start_episode(1, row=7, context=5)
        assert remote.num_episodes == 2
        assert service.recordings.dataset is not None
        episode = service.recordings.dataset.episode(1)
        frames = {key: film[3:8] for key, film in episode.frames.items()}
        here = service.world.start(frames, episode.columns["action"][3:7])
        action = random_actions()
        assert_same(sim.step(action), here.step(action))
        with pytest.raises(WorldError, match="row=20: episode 1 has rows 0 to 19"):
            remote.start_episode(1, row=20)
        with pytest.raises(ServerError, match="no episode 2: this server has 2"):
            remote.start_episode(2)


def test_a_token_lets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(small_service(tmp_path), token="open sesame") as url:
        for wrong in (None, "", "open"):
            with pytest.raises(ServerError, match="a token is needed"):
                kinema.connect(url, token=wrong)
        with kinema.connect(url, token="open sesame") as remote:
            assert remote.start_episode().step(random_actions()).frame.shape == (SIZE, SIZE, 3)
        monkeypatch.setenv("KINEMA_TOKEN", "open sesame")
        kinema.connect(url).close()


def test_no_server_is_a_clear_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match="see whether `kinema serve` runs there"):
            kinema.connect(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout=5)
    for wrong in ("nonsense", "ftp://there", ""):
        with pytest.raises(ServerError):
            kinema.connect(wrong)


def test_a_server_killed_in_mid_step_is_a_clear_error(tmp_path: Path) -> None:
    """The command itself, with the bundled world: started, used, killed, started again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "kinema", "serve", "pusht", "--port", str(port)]
    log = tmp_path / "log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while True:
            try:
                kinema.connect(f"http://127.0.0.1:{port}").close()
                return server
            except ServerError:
                assert server.poll() is None, log.read_text()

    server = start()
    try:
        remote = kinema.connect(f"http://127.0.0.1:{port}")
        sim = remote.start_episode()
        problems: list[BaseException] = []

        def step_on() -> None:
            try:
                while True:
                    sim.step([256.0, 256.0])
            except Exception as error:
                problems.append(error)

        stepping = threading.Thread(target=step_on)
        stepping.start()
        # Killed while a step runs in the networks, as the server itself tells.
        while b"kinema_queue 1.0" not in remote.connection.request("GET", "/metrics").content:
            assert stepping.is_alive(), problems
        os.kill(server.pid, signal.SIGKILL)
        server.wait(30)
        stepping.join(60)
        (problem,) = problems
        assert isinstance(problem, ServerError)
        assert "the server has gone in mid-step" in str(problem)
        assert "connect again" in str(problem)
        with pytest.raises(ServerError, match=r"no stream of the session|cannot be reached"):
            sim.step([256.0, 256.0])
    finally:
        server.kill()
        server.wait(30)
    server = start()
    try:
        with kinema.connect(f"http://127.0.0.1:{port}") as remote:
            assert remote.start_episode().step([256.0, 256.0]).frame.shape == (64, 64, 3)
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130), log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        server.kill()
        server.wait(30)
