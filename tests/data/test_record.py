"""Recording: rows in step, the same data whatever the workers and interruptions, clear errors."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from kinema.cli import main
from kinema.data.environment import Mixed, parse_policy
from kinema.data.lerobot import Dataset
from kinema.data.record import EpisodeRecorder, RecordConfig, Recording, record
from kinema.data.spaces import RecordError

PIXELS = "observation.images.pixels"
RENDER = "observation.images.render"
PATIENCE = 240.0
"""Seconds for another process to do its part, on a machine with much else to do."""


class ShowsAction(gym.Env[np.ndarray, np.ndarray]):
    """Its picture shows the last action (first two channels) and the step (third); seeds decide the rest."""

    metadata: dict[str, Any] = {"render_fps": 7, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (16, 24, 3), np.uint8)
    action_space = spaces.Box(0.0, 255.0, (2,), np.float32)

    def __init__(self, gate: int = 0, fault: str = "", fault_seed: int = -1):
        self.gate, self.fault, self.fault_seed = gate, fault, fault_seed
        self.picture = np.zeros((16, 24, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.clock = seed, 0
        self.length = int(self.np_random.integers(4, 9))
        self.picture[:] = self.np_random.integers(0, 256, 3)
        self.picture[..., 2] = 0
        if seed == 3:
            self._wait_at_the_gate()
        return self.picture, {"clock": 0, "body": {"last": np.zeros(2)}}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.clock += 1
        # The same array again and again: a recorder that kept references would record the last frame only.
        self.picture[..., :2] = np.round(action)
        self.picture[..., 2] = self.clock
        if self.seed == self.fault_seed and self.clock == 2:
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the motor is hot")
        is_last = self.clock == self.length
        info = {"clock": self.clock, "body": {"last": action}, "is_success": is_last}
        return self.picture, float(action.sum()), is_last, False, info

    def _wait_at_the_gate(self) -> None:
        """Tells a test that is listening that this episode has begun, and waits for it."""
        if self.gate:
            try:
                with socket.create_connection(("127.0.0.1", self.gate), timeout=PATIENCE) as connection:
                    connection.recv(1)
            except ConnectionRefusedError:
                pass


class Noise(gym.Env[np.ndarray, np.int64]):
    """Blank pictures, but noise, which no codec makes smaller, under seed 2."""

    metadata: dict[str, Any] = {"render_fps": 10, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (128, 128, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed = seed
        return self._picture(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._picture(), 0.0, False, False, {}

    def _picture(self) -> np.ndarray:
        if self.seed == 2:
            return self.np_random.integers(0, 256, (128, 128, 3)).astype(np.uint8)
        return np.zeros((128, 128, 3), np.uint8)


class Nested(gym.Env[Any, Any]):
    """Pictures, numbers, a category and a text in nested mappings; the action is a choice."""

    metadata: dict[str, Any] = {"render_fps": 10, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Dict(
        {
            "eyes": spaces.Dict(
                {
                    "left": spaces.Box(0, 255, (16, 20, 3), np.uint8),
                    "right/grey": spaces.Box(0, 255, (1, 16, 20), np.uint8),
                }
            ),
            "joints": spaces.Box(-1.0, 1.0, (2,), np.float64),
            "mode": spaces.Discrete(3),
            "board": spaces.Box(0, 9, (2, 2), np.uint8),
            "environment_state": spaces.Box(-1.0, 1.0, (1,), np.float32),
            "mission": spaces.Text(20),
        }
    )
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.clock = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.clock += 1
        return self._observation(), 1.0, False, False, {"success": True}

    def _observation(self) -> Any:
        return {
            "eyes": {
                "left": np.full((16, 20, 3), self.clock, np.uint8),
                "right/grey": np.full((1, 16, 20), 100 + self.clock, np.uint8),
            },
            "joints": np.array([self.clock, -self.clock]) / 10,
            "mode": self.clock % 3,
            "board": np.array([[1, 2], [3, 4]], np.uint8),
            "environment_state": np.array([self.clock], np.float32),
            "mission": "fetch the cup",
        }


class Numbers(gym.Env[np.ndarray, np.ndarray]):
    """One number seen, one number done; it can draw, and an episode never ends by itself."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.0, 1.0, 1)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position += action
        return self.position.copy(), 0.0, False, False, {}

    def render(self) -> Any:
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:, :32] = 200
        return picture


class Stacked(ShowsAction):
    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)


class ThreeSteps:
    """A policy from outside: steps of ``size``, and then it has had enough."""

    def __init__(self, action_space: spaces.Box, size: float = 0.5):
        self.action = np.full(action_space.shape, size, action_space.dtype)

    def reset(self, rng: np.random.Generator, info: Any) -> None:
        self.left = 3

    def act(self, observation: Any, info: Any) -> Any:
        self.left -= 1
        return self.action if self.left >= 0 else None


class WrongShape(ThreeSteps):
    def act(self, observation: Any, info: Any) -> Any:
        return np.zeros(5)


class Lazy(ThreeSteps):
    ends_episodes = True

    def act(self, observation: Any, info: Any) -> Any:
        return None


for name in ("ShowsAction", "Noise", "Nested", "Numbers", "Stacked"):
    gym.register(f"{name}-v0", f"{__name__}:{name}")
gym.register("Limited-v0", f"{__name__}:Numbers", max_episode_steps=5)


def config(env: str = "ShowsAction-v0", out: Path | str = "unused", **changes: Any) -> RecordConfig:
    """A configuration whose environment other processes find too."""
    episodes = changes.pop("episodes", 1)
    return RecordConfig(
        env=f"{__name__}:{env}", out=Path(out), episodes=episodes, **{"max_steps": 100, **changes}
    )


def episode(env: str = "ShowsAction-v0", index: int = 0, **changes: Any) -> Recording:
    """One episode, recorded in this process."""
    recorder = EpisodeRecorder(config(env, **changes))
    try:
        return recorder(index)
    finally:
        recorder.close()


def assert_same_datasets(left: Path, right: Path) -> None:
    one, two = Dataset.open(left), Dataset.open(right)
    assert one.num_episodes == two.num_episodes
    assert one.info == two.info
    assert one.tasks == two.tasks
    for index in range(one.num_episodes):
        a, b = one.episode(index), two.episode(index)
        assert a.columns.keys() == b.columns.keys()
        assert a.frames.keys() == b.frames.keys()
        for key in a.columns:
            np.testing.assert_array_equal(a.columns[key], b.columns[key], strict=True)
        for key in a.frames:
            np.testing.assert_array_equal(a.frames[key], b.frames[key], strict=True)
    np.testing.assert_equal(one.stats, two.stats)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five episodes of ShowsAction by one worker, uninterrupted."""
    root = tmp_path_factory.mktemp("record") / "recorded"
    result = record(config(out=root, episodes=5, workers=1, info_keys=("clock", "body.last")))
    assert result.num_episodes == 5
    assert result.num_frames == Dataset.open(root).num_frames
    return root


def test_rows_are_in_step_on_disk(recorded: Path) -> None:
    dataset = Dataset.open(recorded)
    assert dataset.fps == 7
    assert dataset.cameras == (PIXELS,)
    assert dataset.num_episodes == 5
    assert len(set(dataset.lengths())) > 1
    for index in range(5):
        recording = dataset.episode(index)
        frames, columns = recording.frames[PIXELS], recording.columns
        action, steps = columns["action"], np.arange(len(recording))
        assert action.dtype == np.float32
        # The frame of the next row shows the action of this one.
        np.testing.assert_array_equal(frames[1:, 0, 0, :2], np.round(action[:-1]))
        np.testing.assert_array_equal(frames[:, 5, 7, 2], steps)
        np.testing.assert_array_equal(columns["info.clock"], steps)
        np.testing.assert_array_equal(columns["info.body.last"][1:], action[:-1])
        np.testing.assert_array_equal(columns["next.reward"], action.sum(axis=1))
        np.testing.assert_array_equal(columns["next.terminated"], steps == steps[-1])
        np.testing.assert_array_equal(columns["next.success"], steps == steps[-1])
        assert not columns["next.truncated"].any()


def test_the_number_of_workers_does_not_matter(recorded: Path, tmp_path: Path) -> None:
    record(config(out=tmp_path / "two", episodes=5, workers=2, info_keys=("clock", "body.last")))
    assert_same_datasets(recorded, tmp_path / "two")


def test_episodes_depend_on_their_seed_alone() -> None:
    shifted, plain = episode(index=1, seed=4), episode(index=5)
    other = episode(index=6)
    np.testing.assert_array_equal(shifted.frames[PIXELS], plain.frames[PIXELS])
    np.testing.assert_array_equal(shifted.columns["action"], plain.columns["action"])
    assert not np.array_equal(other.columns["action"][:3], plain.columns["action"][:3])


def command(root: Path, gate: int) -> list[str]:
    return [
        "record",
        f"{__name__}:ShowsAction-v0",
        *("--episodes", "5", "--workers", "1", "--max-steps", "100", "--out", str(root)),
        *("--info-keys", "clock,body.last", "--env-args", json.dumps({"gate": gate})),
    ]


@contextlib.contextmanager
def started(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which leads its group as a terminal has it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kinema", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_interrupted_and_continued_is_uninterrupted(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        gate = server.getsockname()[1]
        with started(command(tmp_path / "out", gate)) as process:
            connection, _ = server.accept()  # Episode 3 has begun, so 0, 1 and 2 are finished.
            with connection:
                os.killpg(process.pid, signal.SIGINT)
                _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "has 3 of 5 episodes" in printed
    assert "same command continues" in printed
    assert "Traceback" not in printed
    assert Dataset.open(tmp_path / "out").num_episodes == 3

    assert main(command(tmp_path / "out", gate)) == 0
    assert_same_datasets(recorded, tmp_path / "out")

    assert main(command(tmp_path / "out", gate)) == 0
    assert "already has 5 episodes" in capsys.readouterr().err


def test_a_second_recording_into_one_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it records anything: the first one has not even created its dataset."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        arguments = [*command(tmp_path / "out", server.getsockname()[1]), "--seed", "3"]
        with started(arguments) as process:
            connection, _ = server.accept()  # Episode 0, which has seed 3, has begun.
            with connection:
                assert main(arguments) == 2
                assert "another process is recording into this dataset" in capsys.readouterr().err
                os.killpg(process.pid, signal.SIGINT)
                process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert not (tmp_path / "out").exists()


def test_a_folder_is_left_as_it_was_where_nothing_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no environment 'Nope-v0'"):
        record(RecordConfig(env="Nope-v0", out=tmp_path / "out", episodes=1, workers=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fault", "said"), [("raise", "RuntimeError: the motor is hot"), ("die", "SIGKILL")])
def test_a_failing_episode_keeps_those_before_it(fault: str, said: str, tmp_path: Path) -> None:
    faulty = config(
        out=tmp_path / "out", episodes=5, workers=2, env_args={"fault": fault, "fault_seed": 12}, seed=10
    )
    with pytest.raises(RecordError, match=r"ShowsAction-v0, episode 2 \(seed 12\)") as raised:
        record(faulty)
    assert said in str(raised.value)
    assert Dataset.open(tmp_path / "out").num_episodes == 2


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    arguments = ["record", f"{__name__}:Noise-v0", "--episodes", "3", "--workers", "1", "--max-steps", "30"]
    limited = [*arguments, "--out", str(tmp_path / "limited")]

    # Thirty pictures of noise take 1.5 MB, the blank ones next to nothing.
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))

    with started(limited, preexec_fn=limit_file_size) as process:
        _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "2 finished episodes are safe" in printed
    assert "Make room" in printed
    assert Dataset.open(tmp_path / "limited").num_episodes == 2

    assert main(limited) == 0
    assert Dataset.open(tmp_path / "limited").num_episodes == 3


def test_nested_observations() -> None:
    recording = episode("Nested-v0", max_steps=4)
    assert recording.task == "fetch the cup"
    assert set(recording.frames) == {"observation.images.eyes.left", "observation.images.eyes.right.grey"}
    grey = recording.frames["observation.images.eyes.right.grey"]
    assert grey.shape == (4, 16, 20, 3)
    np.testing.assert_array_equal(grey[:, 3, 4, 1], [100, 101, 102, 103])
    state = dict(
        zip(
            recording.names["observation.state"],
            recording.columns["observation.state"].T.tolist(),
            strict=True,
        )
    )
    assert state == {
        **{f"board.{i}": [i + 1.0] * 4 for i in range(4)},
        "joints.0": pytest.approx([0.0, 0.1, 0.2, 0.3]),
        "joints.1": pytest.approx([0.0, -0.1, -0.2, -0.3]),
        "mode.0": [1.0, 0.0, 0.0, 1.0],
        "mode.1": [0.0, 1.0, 0.0, 0.0],
        "mode.2": [0.0, 0.0, 1.0, 0.0],
    }
    np.testing.assert_array_equal(recording.columns["observation.environment_state"], [0, 1, 2, 3])
    action = recording.columns["action"]
    assert action.shape == (4, 4)
    np.testing.assert_array_equal(action.sum(axis=1), 1.0)
    np.testing.assert_array_equal(recording.columns["next.truncated"], [False, False, False, True])
    assert recording.columns["next.success"].all()


def test_rendered_frames_stand_in_for_pictures() -> None:
    drawn = episode("Numbers-v0", max_steps=3, fps=20.0, camera_size=(8, 16))
    assert drawn.fps == 20.0
    assert drawn.frames[RENDER].shape == (3, 8, 16, 3)
    np.testing.assert_array_equal(drawn.frames[RENDER][1, 4, :, 0], [200] * 8 + [0] * 8)
    position, action = drawn.columns["observation.state"], drawn.columns["action"]
    np.testing.assert_allclose(position[1:], position[:-1] + action[:-1], rtol=1e-6)
    assert not episode("Numbers-v0", max_steps=3, fps=20.0, render="never").frames


def test_limits_of_steps() -> None:
    three = f"{__name__}:ThreeSteps"
    assert len(episode("Limited-v0", max_steps=None, fps=1.0).columns["action"]) == 5
    assert len(episode("Limited-v0", max_steps=8, fps=1.0).columns["action"]) == 8
    ended = episode("Limited-v0", max_steps=None, fps=1.0, policy=three, policy_args={"size": 0.25})
    np.testing.assert_array_equal(ended.columns["action"], [0.25, 0.25, 0.25])
    np.testing.assert_array_equal(ended.columns["next.truncated"], [False, False, True])


@pytest.mark.parametrize(
    ("env", "changes", "said"),
    [
        ("Missing-v0", {}, "no environment"),
        ("ShowsAction-v0", {"env_args": {"colour": 1}}, "--env-args.*colour"),
        ("ShowsAction-v0", {"policy": "no.such.module:Policy"}, "no.such.module"),
        ("ShowsAction-v0", {"policy": f"{__name__}:Nobody"}, "no callable 'Nobody'"),
        ("ShowsAction-v0", {"policy": f"{__name__}:ThreeSteps", "policy_args": {"x": 1}}, "--policy-args.*x"),
        (
            "ShowsAction-v0",
            {"policy": f"{__name__}:config", "policy_args": {"env": "X-v0"}},
            "RecordConfig, which is no policy",
        ),
        ("ShowsAction-v0", {"policy": f"{__name__}:WrongShape"}, r"shape \(5,\).*takes \(2,\)"),
        ("ShowsAction-v0", {"policy": f"{__name__}:Lazy"}, "would be empty"),
        ("ShowsAction-v0", {"policy": "pusht-play"}, "needs pos_agent and block_pose in info"),
        ("ShowsAction-v0", {"render": "always"}, "cannot draw"),
        ("ShowsAction-v0", {"info_keys": ("speed",)}, r"no 'speed'.*\['body', 'clock'\]"),
        ("ShowsAction-v0", {"info_keys": ("body",)}, "not numbers"),
        ("ShowsAction-v0", {"max_steps": None}, "add --max-steps"),
        ("Numbers-v0", {}, "add --fps"),
        ("Stacked-v0", {}, r"1 or 3 channels"),
    ],
)
def test_what_cannot_be_recorded_says_why(env: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        episode(env, **changes)


def test_missing_packages_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    monkeypatch.delitem(gym.registry, "gym_pusht/PushT-v0", raising=False)
    pusht = RecordConfig(env="gym_pusht/PushT-v0", episodes=1, out=Path("unused"))
    with pytest.raises(RecordError, match=r"pip install 'kinema\[pusht\]'"):
        EpisodeRecorder(pusht)
    other = RecordConfig(env="gym_of_nobody/Env-v0", episodes=1, out=Path("unused"))
    with pytest.raises(RecordError, match="install the package"):
        EpisodeRecorder(other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"episodes": 0}, "--episodes is 0"),
        ({"max_steps": 0}, "--max-steps is 0"),
        ({"camera_size": (64, 0)}, "--camera-size is 0"),
        ({"policy": "clever"}, "no policy 'clever'; there are act, .*pusht-play, random, zero"),
    ],
)
def test_impossible_configurations(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        config(**changes)


def test_only_the_same_recording_continues(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"seed 0 \(now 1\)"):
        record(config(out=recorded, episodes=6, seed=1, info_keys=("clock", "body.last")))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecordError, match="not empty"):
        record(config(out=tmp_path, episodes=6))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_errors_of_workers_reach_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["record", "Nowhere-v0", "--episodes", "2", "--out", str(out), "--workers", "1"]) == 2
    assert "no environment 'Nowhere-v0'" in capsys.readouterr().err
    assert not out.exists()


def test_importing_needs_no_simulator() -> None:
    program = (
        "import sys, kinema, kinema.data, kinema.policies\n"
        "print(sorted({'gymnasium', 'gym_pusht', 'cv2', 'pygame', 'pymunk'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_shares_of_random_actions() -> None:
    assert parse_policy("cloned@0.25") == ("cloned", 0.25)
    assert parse_policy("random") == ("random", 0.0)
    with pytest.raises(RecordError, match="'random@2': behind the @"):
        parse_policy("random@2")
    mixed = episode("Limited-v0", max_steps=200, fps=1.0, policy="zero@0.3").columns["action"]
    assert 0.6 < np.mean(mixed == 0.0) < 0.8
    ended = episode("Limited-v0", max_steps=None, fps=1.0, policy=f"{__name__}:ThreeSteps@0.5")
    assert len(ended.columns["action"]) == 3  # The policy, not the dice, says when an episode is over.
    space = spaces.Box(0, 1, (2,))
    assert Mixed(Lazy(space), space, 0.5).ends_episodes
    assert not Mixed(ThreeSteps(space), space, 0.5).ends_episodes
