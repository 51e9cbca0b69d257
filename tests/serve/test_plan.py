"""Plans and the cloned policy of a server, beside the planners and the policy themselves."""

import base64
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import kinema
from kinema.model.parts import save_part
from kinema.planners import MPPI, CrossEntropy, Goal, SearchConfig, WorldScore
from kinema.planners.scores import normalize_actions, restore_actions
from kinema.policies.cloned import CLONE_FILE, CloneConfig, ClonedPolicy, encode_goal, load_clone, new_clone
from kinema.serve import images
from kinema.serve.command import ServeConfig, make_service
from kinema.serve.limits import Limits
from kinema.serve.recordings import find_recordings
from kinema.serve.service import Service
from kinema.simulation.world import load
from kinema.types import Seen, ServerError, WorldError

from ..worlds import CAMERA, random_frames, random_heads, random_world, randomize
from .running import running, small_service

SMALL = {"horizon": 4, "candidates": 20, "iterations": 2, "num_knots": 3, "max_seconds": 30.0}
ENDLESS = {"horizon": 200, "candidates": 512, "iterations": 64}
"""More than any machine simulates in the time of a test."""


@pytest.fixture
def session(http: httpx.Client) -> Iterator[str]:
    session = http.post("/v1/sessions", json={"episode": 0}).raise_for_status().json()["session"]
    yield session
    http.delete(f"/v1/sessions/{session}")


def in_base64(frame: np.ndarray) -> str:
    return base64.b64encode(images.encode(frame, "png")).decode()


@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_a_plan_is_that_of_the_planner(
    http: httpx.Client, session: str, planner: str, tmp_path: Path
) -> None:
    picture = random_frames(seed=5)
    body = {"goal": {"frames": {CAMERA: in_base64(picture)}}, "planner": planner, "seed": 3, **SMALL}
    planned = http.post(f"/v1/sessions/{session}/plan", json=body).raise_for_status().json()
    service = small_service(tmp_path)
    assert service.recordings.dataset is not None
    world, episode = service.world, service.recordings.dataset.episode(0)
    given = episode.columns["action"][:3]
    sim = world.start({key: film[:4] for key, film in episode.frames.items()}, given)
    config = SearchConfig(horizon=4, candidates=20, iterations=2, num_knots=3, elites=4)
    score = WorldScore(sim.fork(1), Goal(target=encode_goal(world, picture), measure="codes"), max_batch=16)
    start = np.repeat(np.clip(normalize_actions(world, given[-1]), -1, 1)[None], 4, axis=0)
    found = {"cem": CrossEntropy, "mppi": MPPI}[planner](config).plan(score, start, np.random.default_rng(3))
    np.testing.assert_allclose(planned["actions"], restore_actions(world, found.actions), atol=1e-4)
    assert planned["score"] == pytest.approx(found.score, rel=1e-3)
    assert planned["score"] >= planned["score_of_start"]
    assert planned["is_complete"]
    assert (planned["measure"], planned["num_candidates"], planned["num_steps"]) == ("codes", 40, 160)
    # The session stayed where it was.
    assert http.get(f"/v1/sessions/{session}?format=none").json()["num_steps"] == 0


def test_a_recorded_row_is_the_picture_there(http: httpx.Client, session: str, tmp_path: Path) -> None:
    service = small_service(tmp_path)
    assert service.recordings.dataset is not None
    picture = service.recordings.dataset.episode(1).frames[CAMERA][9]
    plans = [
        http.post(f"/v1/sessions/{session}/plan", json={"goal": goal, **SMALL}).raise_for_status().json()
        for goal in ({"episode": 1, "row": 9}, {"frames": {CAMERA: in_base64(picture)}})
    ]
    assert plans[0]["actions"] == plans[1]["actions"]


def test_plans_for_reward_and_steps_need_heads(tmp_path: Path) -> None:
    service = small_service(tmp_path, world=random_heads(random_world()))
    with running(service) as url, kinema.connect(url) as world, world.start_episode() as sim:
        path = f"/v1/sessions/{sim.id}/plan"
        reward = world.connection.request("POST", path, {"reward_weight": 1.0, **SMALL}).json()
        assert reward["measure"] == "reward"
        steps = world.connection.request("POST", path, {"goal": {"episode": 1, "row": 9}, **SMALL}).json()
        assert steps["measure"] == "steps"
        # Rewards are to be sought, not shunned.
        shunned = world.connection.request("POST", path, {"reward_weight": -1.0, **SMALL}).json()
        assert -shunned["score"] < reward["score"]


def test_mistakes_say_what_to_do(http: httpx.Client, session: str) -> None:
    goal = {"goal": {"episode": 0, "row": 5}}
    for verb, body, status, message in (
        ("plan", {}, 422, "give a goal, a reward_weight, or both"),
        ("plan", {"goal": {}}, 422, r"give one of episode \(with row\), frames, state"),
        ("plan", {"goal": {"episode": 7}}, 404, "no episode 7: this server has 2"),
        ("plan", {"goal": {"episode": 0, "row": 99}}, 422, "rows 0 to 11"),
        ("plan", {"goal": {"state": {"block": [0, 0]}}}, 422, "no quantity 'block'; there are none"),
        ("plan", {"goal": {"frames": {CAMERA: "zz"}}}, 422, "send a JPEG or PNG"),
        ("plan", {"goal": {"proprio": [1.0]}}, 422, f"frames of {CAMERA} are needed"),
        ("plan", {"goal": {"text": "push it"}}, 422, "knows no words.*give a frame"),
        ("plan", goal | {"measure": "steps"}, 422, "--heads"),
        ("plan", goal | {"planner": "best"}, 422, "planner"),
        ("plan", goal | {"max_seconds": 1000}, 422, "max_seconds=1000: at most 30"),
        ("plan", goal | {"max_seconds": 1e-6}, 503, "give more time or a shorter horizon"),
        ("act", {}, 404, "kinema train DATA --clone"),
    ):
        answer = http.post(f"/v1/sessions/{session}/{verb}", json=body)
        assert answer.status_code == status, (body, answer.text)
        detail = answer.json()["detail"]
        assert re.search(message, detail), detail
    answer = http.post("/v1/sessions", json={"episode": 0, "text": "push it"})
    assert answer.status_code == 422
    assert "knows no words" in answer.json()["detail"]


def test_time_is_kept_and_nobody_waits(http: httpx.Client, url: str, session: str) -> None:
    """The session steps while a plan of it is searched for, and the plan ends when its time is over."""
    found: list[Any] = []

    def search() -> None:
        body = {"goal": {"episode": 1, "row": 9}, "max_seconds": 4.0, **ENDLESS, "horizon": 3}
        found.append(httpx.post(f"{url}/v1/sessions/{session}/plan", json=body, timeout=60).json())

    thread = threading.Thread(target=search)
    thread.start()
    for _ in range(5):
        http.post(f"/v1/sessions/{session}/step", json={"action": [1.0, 1.5]}).raise_for_status()
    assert thread.is_alive()
    thread.join(60)
    (planned,) = found
    assert not planned["is_complete"]
    assert 4.0 <= planned["seconds"] < 8.0
    assert planned["num_candidates"] >= 16


def test_plans_are_bounded_and_end_with_the_server(tmp_path: Path) -> None:
    service = small_service(tmp_path, Limits(max_plans=1))
    answers: list[Any] = []
    before = set(threading.enumerate())
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        session = http.post("/v1/sessions", json={"episode": 0}).json()["session"]
        path = f"/v1/sessions/{session}/plan"
        body = {"goal": {"episode": 1, "row": 9}, "max_seconds": 30.0, **ENDLESS}

        def search() -> None:
            try:
                answers.append(httpx.post(f"{url}{path}", json=body, timeout=60).status_code)
            except httpx.TransportError as error:
                answers.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        while not service.planning.num_running:
            assert thread.is_alive()
            thread.join(0.01)
        busy = http.post(path, json=body)
        assert busy.status_code == 503
        assert "1 plans are searched for already" in busy.json()["detail"]
        http.post(f"/v1/sessions/{session}/step", json={"action": [1.0, 1.5]}).raise_for_status()
    thread.join(30)
    assert len(answers) == 1
    assert answers[0] in (500, 503) or isinstance(answers[0], httpx.TransportError)
    assert not {one for one in set(threading.enumerate()) - before if "kinema-plan" in one.name}


def test_the_agent_of_pusht_is_planned_to_a_state() -> None:
    service = Service(load("pusht"), find_recordings("pusht", None), Limits())
    with running(service) as url, kinema.connect(url) as world, world.start_episode() as sim:
        quantities = world.connection.request("GET", "/v1/world").json()["quantities"]
        assert quantities["angle"] == "degrees"
        goal = [400.0, 120.0]
        actions = sim.plan(
            state={"agent": goal}, horizon=12, candidates=16, iterations=3, max_seconds=30.0, num_knots=2
        )
        assert actions.shape == (12, 2)
        step = [sim.step(action) for action in actions][-1]
        np.testing.assert_allclose(step.proprio, goal, atol=60)
        with pytest.raises(WorldError, match="agent is 2 finite numbers"):
            sim.plan(state={"agent": [1.0]})
        with pytest.raises(ServerError, match="give more time"):
            sim.plan(state={"agent": goal}, max_seconds=0.001)


def test_the_cloned_policy_acts(tmp_path: Path) -> None:
    world = random_world(proprio_dim=2)
    clone = new_clone(world, CloneConfig(width=16, depth=1, chunk=3, num_modes=2))
    randomize(clone)
    folder = tmp_path / "world"
    world.save(folder)
    save_part(folder / CLONE_FILE, clone.config, clone)
    source = small_service(tmp_path)
    assert source.recordings.dataset is not None
    service = make_service(ServeConfig(world=str(folder), data=tmp_path / "recorded"))
    frames, rows = random_frames(2), [[1.0, 2.0], [3.0, 4.0]]
    picture = random_frames(seed=7)
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/v1/world").json()["has_policy"]
        body = {"frames": {CAMERA: [in_base64(f) for f in frames]}, "actions": [[1.0, 1.5]], "proprio": rows}
        session = http.post("/v1/sessions", json=body).raise_for_status().json()["session"]
        path = f"/v1/sessions/{session}/act"
        free = http.post(path, json={}).raise_for_status().json()["actions"]
        body = {"goal": {"frames": {CAMERA: in_base64(picture)}, "proprio": [1.0, 1.0]}}
        aimed = http.post(path, json=body).raise_for_status().json()["actions"]
        refused = http.post(path, json={"goal": {"state": {"agent": [0, 0]}}})
        assert refused.status_code == 422
    loaded = service.world
    policy = ClonedPolicy(loaded, load_clone(loaded, folder))
    with torch.inference_mode():
        policy.begin(np.random.default_rng(0))
        first = policy.choose(Seen(frames={CAMERA: frames[1]}, proprio=np.array(rows[1], np.float32)))
    np.testing.assert_allclose(free[0], first, atol=0.02)
    assert np.shape(free) == (3, 2)
    assert not np.allclose(free, aimed, atol=0.05)
