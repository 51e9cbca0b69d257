"""``kinema evaluate planning``, ``kinema plan`` and ``kinema evaluate policy`` on worlds that nobody trained:
what is run, counted and written. How good the bundled world's plans are is no test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kinema import cli
from kinema.data import Dataset
from kinema.data.spaces import RecordError
from kinema.evaluation.agents import SimulatorAgent
from kinema.evaluation.plan import PlanConfig
from kinema.evaluation.planning import PlanningConfig, attempt, make_agents, measure_planning
from kinema.evaluation.plot import LIGHT
from kinema.evaluation.policy import PolicyConfig, add_agreement
from kinema.evaluation.protocol import Run
from kinema.evaluation.tasks import Task, TaskEnvironment, draw_tasks
from kinema.model.parts import save_part
from kinema.model.world import WorldError
from kinema.planners import CrossEntropy, SearchConfig
from kinema.policies.cloned import CLONE_FILE, CloneConfig, new_clone
from kinema.simulation.real_env import Arena
from kinema.simulation.starts import History
from kinema.simulation.world import World

from ..worlds import random_heads
from .test_tasks import CONTEXT, JUDGE, recording, world  # noqa: F401

SEARCH = ["--search.horizon", "4", "--search.num-knots", "2", "--search.candidates", "4"]
SEARCH += ["--search.iterations", "1", "--search.elites", "2"]
SMALL = SearchConfig(horizon=4, num_knots=2, candidates=4, iterations=1, elites=2)


class Follower:
    """Does what was recorded, so it arrives; or does nothing at all."""

    def __init__(self, dataset: Dataset, *, is_lazy: bool = False):
        self.name = "lazy" if is_lazy else "follower"
        self.num_network_calls = None if is_lazy else 7
        self._dataset, self._is_lazy = dataset, is_lazy

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._row = task, task.row

    def act(self, history: History, env: TaskEnvironment) -> np.ndarray:
        actions = self._dataset.episode(self._task.episode, cameras=()).columns["action"]
        chunk = actions[self._row : self._row + 3]
        self._row += 3
        if self._is_lazy:
            return np.repeat(self._task.start[None, :2], 3, axis=0)
        return chunk


def config_of(**fields: Any) -> PlanningConfig:
    named = {
        "tasks": 3,
        "seeds": 2,
        "near": (8, 12),
        "far": (0, 0),
        "context": CONTEXT,
        "search": SMALL,
        "chunk": 2,
    }
    return PlanningConfig(world="w", data="d", **{**named, **fields})


def test_goals_are_reached_by_who_does_what_was_recorded(
    world: World,  # noqa: F811
    recording: Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = Run("planning", world, config_of(out=tmp_path))
    tasks = draw_tasks(world, JUDGE, recording, num=3, distances=(8,), context=CONTEXT, seed=1)[8]
    env = TaskEnvironment(world, JUDGE)
    arrived = attempt(run, env, tasks, Follower(recording), 12, label="follower")
    assert np.isfinite(arrived.reached_at).mean() > 0.6
    assert arrived.reached_at.min() >= 1
    assert arrived.reached_at[np.isfinite(arrived.reached_at)].max() <= 12
    assert arrived.plans[0, 0] > 0
    assert (arrived.plans[:, 1] == 7).all()
    lazy = attempt(run, env, tasks, Follower(recording, is_lazy=True), 12, label="lazy")
    assert not len(lazy.plans)
    assert np.isinf(lazy.reached_at).mean() > 0.5
    env.close()


def test_the_ceiling_is_high(world: World, recording: Dataset, tmp_path: Path) -> None:  # noqa: F811
    """A planner with the real simulator as its model reaches what is near."""
    tasks = draw_tasks(world, JUDGE, recording, num=2, distances=(8,), context=CONTEXT, seed=1)[8]
    search = SearchConfig(horizon=8, num_knots=2, candidates=24, iterations=3)
    agent = SimulatorAgent(world, "ceiling", CrossEntropy(search), JUDGE, chunk=4)
    env = TaskEnvironment(world, JUDGE)
    run = Run("planning", world, config_of(seeds=1, out=tmp_path))
    found = attempt(run, env, tasks, agent, 24, label="ceiling")
    assert np.isfinite(found.reached_at).all()
    assert len(found.plans) >= 2
    env.close()


def test_rows_and_curves(world: World, recording: Dataset, tmp_path: Path) -> None:  # noqa: F811
    config = config_of(planners=("cem",), seeds=1, tasks=2, near=(8, 4), out=tmp_path)
    agents, notes = make_agents(world, JUDGE, config)
    assert [agent.name for agent in agents] == ["random", "cem", "cem, real simulator"]
    assert any("No cloned policy" in note for note in notes)
    assert any("in latents" in note for note in notes)
    run = Run("planning", world, config, dataset=recording)
    measure_planning(run)
    rows = {row.key: row for row in run.rows}
    assert rows["near/best"].must == 0.7
    assert rows["near/best"].value == rows["near/cem"].value
    assert rows["near/cem/ms"].value > 0
    # A horizon of 4, with a call to find each frame and one to keep it.
    assert rows["near/cem/calls"].value == 4
    for series in run.series:
        assert series.at[-1] == 4
        assert (np.diff(series.value) >= 0).all()
        assert series.value[-1] == rows[series.key].value


def test_planning_goes_on_where_it_was_stopped(
    world: World,  # noqa: F811
    recording: Dataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.save(tmp_path / "world")
    words = ["evaluate", "planning", str(tmp_path / "world"), "--data", str(recording.root), "--tasks", "2"]
    words += ["--seeds", "1", "--near", "5", "4", "--far", "0", "0", "--planners", "mppi", "--no-ceiling"]
    words += ["--chunk", "2", *SEARCH, "--out"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    begun: list[Task] = []
    begin = TaskEnvironment.begin

    def stop_at_third(self: TaskEnvironment, task: Task, context: int) -> History:
        begun.append(task)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return begin(self, task, context)

    monkeypatch.setattr(TaskEnvironment, "begin", stop_at_third)
    assert cli.main([*words, str(tmp_path / "parts")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "parts"), "--seed", "1"]) == 2
    assert "holds unfinished values of another measurement" in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "parts")]) == 0
    # Two attempts of random actions were made before, two of the planner were left.
    assert len(begun) == 3 + 2
    whole, parts = (
        json.loads((tmp_path / each / "planning.json").read_text()) for each in ("whole", "parts")
    )
    assert whole["series"] == parts["series"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        f"planning.{kind}" for kind in ("html", "json", "png")
    ]


def test_evaluate_planning_as_a_command(
    world: World,  # noqa: F811
    recording: Dataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.save(tmp_path / "world")
    words = ["evaluate", "planning", str(tmp_path / "world"), "--data", str(recording.root), "--tasks", "1"]
    words += ["--seeds", "1", "--near", "5", "4", "--far", "0", "0", "--planners", "mppi", "--no-ceiling"]
    words += ["--chunk", "2", "--out", str(tmp_path), *SEARCH]
    assert cli.main(words) == 0
    assert "near: mppi, goals reached" in capsys.readouterr().out
    assert (tmp_path / "planning.png").is_file()
    assert json.loads((tmp_path / "planning.json").read_text())["protocol"]["near"] == [5, 4]
    words[words.index("mppi")] = "propose"
    assert cli.main(words) == 2
    assert "there is no policy that could propose plans" in capsys.readouterr().err
    clone = new_clone(world, CloneConfig(width=16, depth=1, chunk=4))
    save_part(tmp_path / "world" / CLONE_FILE, clone.config, clone)
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    for agent in ("random", "cloned", "propose", "best planner (propose)"):
        assert f"near: {agent}, goals reached" in printed


def test_plan_as_a_command(
    world: World,  # noqa: F811
    recording: Dataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.save(tmp_path / "world")
    frame = recording.episode(0).frames[world.cameras[0]][-1]
    Image.fromarray(frame).save(tmp_path / "goal.png")
    words = ["plan", str(tmp_path / "world"), "--env", "gym_pusht/PushT-v0", "--steps", "5", "--chunk", "3"]
    words += ["--out", str(tmp_path / "plan"), *SEARCH]
    assert cli.main([*words, "--goal", str(tmp_path / "goal.png")]) == 0
    printed = capsys.readouterr().out
    assert "5 steps, 2 plans" in printed
    assert "from the goal, in latents" in printed
    # The environment has a kit, whose probe reads how far things are from where the goal shows them.
    assert "agent position, px" in printed
    assert Image.open(tmp_path / "plan" / "plan.png").height > 4 * 64
    assert (tmp_path / "plan" / "plan.mp4").stat().st_size > 500
    assert cli.main([*words, "--goal", str(tmp_path / "none.png")]) == 2
    assert "none.png: cannot be read as an image" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "nothing to plan for: give a frame as --goal" in capsys.readouterr().err
    Image.fromarray(frame[:30]).save(tmp_path / "goal.png")
    assert cli.main([*words, "--goal", str(tmp_path / "goal.png")]) == 2
    assert "frames are 30x64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"planners": ("cem", "shooting")}, "planners: shooting; there are cem, mppi"),
        ({"near": (0, 5)}, "near is 0 5"),
        ({"chunk": 5}, "chunk is 5, but a plan has only 4 steps"),
        ({"tasks": 0}, "tasks is 0"),
    ],
)
def test_settings_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**fields)
    with pytest.raises(ValueError, match="planner 'x': choose one of cem, mppi"):
        PlanConfig(world="w", env="e", reward_weight=1.0, planner="x")


# Policies, in the world and in reality.


def test_an_observation_is_put_together_as_it_was_taken_apart(world: World) -> None:  # noqa: F811
    arena = Arena(world, "gym_pusht/PushT-v0")
    observation, _ = arena.env.reset(seed=3)
    again = arena.observation(arena.see(observation))
    assert arena.env.observation_space.contains(again)
    assert np.array_equal(again["pixels"], observation["pixels"])
    np.testing.assert_allclose(again["agent_pos"], observation["agent_pos"])
    arena.close()
    # Its own rendering is another camera, and its state has the block in it too.
    blind = Arena(world, "gym_pusht/PushT-v0", {"obs_type": "state"})
    with pytest.raises(RecordError, match=r"needs .*observation\.images\.pixels, .*; the environment shows"):
        blind.reset(seed=0)
    blind.close()


class Holder:
    """Holds the agent at a place, and counts its observations."""

    def __init__(self, x: float):
        self.place, self.seen = np.array([x, 256.0], np.float32), 0

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        pass

    def act(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        assert observation["pixels"].shape == (64, 64, 3)
        self.seen += 1
        return self.place


def test_a_judgement_of_known_returns(world: World) -> None:  # noqa: F811
    names = ("random", "zero", "random@0.5", "zero@0.5", "zero@0.2")
    config = PolicyConfig(world="w", env="e", policies=names, episodes=3)
    real = np.arange(5.0)[:, None] + np.array([-0.1, 0.0, 0.1])
    run = Run("policy", world, config)
    add_agreement(run, real, 2.0 * real)
    rows = {row.key: row for row in run.rows}
    assert rows["pearson"].value == pytest.approx(1.0)
    assert rows["mmrv"].value == 0.0
    assert (rows["pearson"].verdict, rows["mmrv"].verdict) == ("aim", "aim")
    assert run.drawings["scatter"](LIGHT).shape == (840, 840, 3)
    assert rows["pearson/real"].value == pytest.approx(1.0, abs=0.01)
    assert rows["mmrv/real"].value == 0.0
    assert run.protocol["returns"]["zero"]["simulated"] == pytest.approx([1.8, 2.0, 2.2])
    json.loads(run.result().to_json())
    swapped = 2.0 * real[[1, 0, 2, 3, 4]]
    worse = Run("policy", world, config)
    add_agreement(worse, real, swapped)
    assert {row.key: row.value for row in worse.rows}["mmrv"] == pytest.approx(0.1, abs=1e-6)


def test_evaluate_policy_as_a_command(
    world: World,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "holders.py").write_text(
        "from tests.evaluation.test_planning import Holder\n"
        "def left(): return Holder(100.0)\n"
        "def right(): return Holder(400.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    world.save(tmp_path / "world")
    words = ["evaluate", "policy", str(tmp_path / "world"), "--env", "gym_pusht/PushT-v0", "--episodes", "2"]
    words += ["--steps", "4", "--out", str(tmp_path), "--policies"]
    names = ["random", "zero", "holders:left", "holders:right", "zero@0.5"]
    assert cli.main([*words, *names]) == 2
    assert "has no heads" in capsys.readouterr().err
    random_heads(World.from_folder(tmp_path / "world")).save_parts(tmp_path / "world")
    assert cli.main([*words, *names]) == 0
    printed = capsys.readouterr().out
    assert "Pearson r, simulated against real returns" in printed
    found = json.loads((tmp_path / "policy.json").read_text())
    returns = found["protocol"]["returns"]
    assert set(returns) == set(names)
    assert len(returns["zero"]["simulated"]) == 2
    # Simulated returns differ from policy to policy, and lie within what heads can tell.
    assert len({tuple(each["simulated"]) for each in returns.values()}) == 5
    assert all(-4.0 <= value <= 8.0 for each in returns.values() for value in each["simulated"])
    assert Image.open(tmp_path / "policy-scatter.png").size == (840, 840)
    assert (tmp_path / "policy.html").read_text().count("<img") == 2
    # What needs the simulator's own state cannot be graded in a world, which is said before anything runs.
    monkeypatch.setattr("kinema.evaluation.policy.run_real", None)
    assert cli.main([*words, *names[:4], "pusht-play"]) == 2
    complaint = capsys.readouterr().err
    assert "--policies pusht-play: it cannot act in a world" in complaint
    assert "needs pos_agent and block_pose in info" in complaint


def test_few_policies_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="policies: 2; at least 4"):
        PolicyConfig(world="w", env="e", policies=("random", "zero"))
    with pytest.raises(ValueError, match="no policy 'expert'"):
        PolicyConfig(world="w", env="e", policies=("random", "zero", "expert", "zero@0.5"))
    with pytest.raises(ValueError, match="policy_args has cloned"):
        PolicyConfig(
            world="w",
            env="e",
            policies=("random", "zero", "zero@0.1", "zero@0.5"),
            policy_args={"cloned": {}},
        )
    assert issubclass(WorldError, ValueError)
