"""The tools of a language model, through a real MCP client."""

import asyncio
import base64
import importlib.util
import io
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("mcp")
from mcp import Client

from kinema.serve import images
from kinema.serve.limits import Limits
from kinema.serve.mcp import make_mcp
from kinema.serve.service import Service, find_recordings
from kinema.simulation.session import load

from ..worlds import SIZE, random_actions
from .running import small_service

REPOSITORY = Path(__file__).parent.parent.parent
Call = Callable[..., Awaitable[Any]]


def with_tools(service: Service, use: Callable[[Call], Awaitable[None]]) -> None:
    """Runs ``use`` with a client of the tools."""

    async def run() -> None:
        await service.start()
        try:
            async with Client(make_mcp(service)) as client:

                async def call(name: str, **arguments: Any) -> Any:
                    return await client.call_tool(name, arguments)

                await use(call)
        finally:
            await service.close()

    asyncio.run(run())


def pictures(result: Any) -> list[np.ndarray]:
    files = [part for part in result.content if part.type == "image"]
    assert all(part.mime_type == "image/png" for part in files)
    return [np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(part.data)))) for part in files]


def told(result: Any) -> str:
    return " ".join(part.text for part in result.content if part.type == "text")


def test_imagined_futures_are_those_of_the_world(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    sequences = random_actions(3, 7)

    async def use(call: Call) -> None:
        (world,) = (await call("list_worlds")).structured_content["worlds"]
        assert (world["name"], world["num_episodes"], world["has_environment"]) == ("random", 2, False)
        started = await call("start", episode=1, row=5)
        session = started.structured_content["session"]
        (shown,) = pictures(started)
        assert shown.shape == (SIZE * 8, SIZE * 8, 3)
        episode = await service.episode(1)
        sim = service.world.start(
            {key: film[2:6] for key, film in episode.frames.items()}, episode.columns["action"][2:5]
        )
        assert np.abs(shown[::8, ::8].astype(int) - sim.look().frame).max() <= 1
        imagined = await call("imagine", session=session, sequences=sequences.tolist())
        trusts = [future["trust"] for future in imagined.structured_content["futures"]]
        ends = []
        for actions, trust in zip(sequences, trusts, strict=True):
            future = sim.copy()
            for action in actions[:-1]:
                future.step(action)
            step = future.step(actions[-1])
            assert trust == pytest.approx(step.trust, rel=1e-3)
            ends.append(step.frame)
        (strip,) = pictures(imagined)
        assert strip.shape[0] > 3 * SIZE
        # A picture as the goal: the future that ends in it is the nearest.
        for index, end in enumerate(ends):
            goal = {"image": base64.b64encode(images.encode(end, "png")).decode()}
            ranked = (await call("compare", session=session, goal=goal)).structured_content["ranking"]
            assert ranked[0]["future"] == index
            assert ranked[0]["distance"]["picture"] < 1
            assert {entry["future"] for entry in ranked} == {-1, 0, 1, 2}
        # Waypoints held are actions repeated, and going back undoes them.
        moved = await call("simulate", session=session, actions=sequences[0, :2].tolist(), hold=3)
        held = sequences[0, :2].repeat(3, 0)
        for action in held[:-1]:
            sim.step(action)
        step = sim.step(held[-1])
        assert np.abs(pictures(moved)[0][::8, ::8].astype(int) - step.frame).max() <= 1
        assert (await call("rewind", session=session, num_steps=6)).structured_content["num_steps"] == 0
        assert not (await call("close", session=session)).is_error
        assert len(service.sessions) == 0

    with_tools(service, use)


def test_mistakes_tell_what_to_do_next(tmp_path: Path) -> None:
    async def use(call: Call) -> None:
        session = (await call("start")).structured_content["session"]
        own = {"session": session}
        action = random_actions(1).tolist()
        for name, arguments, message in (
            (
                "look",
                {"session": "nowhere"},
                "no such session.*with start, and use",
            ),
            ("start", {"episode": 9}, "no episode 9: this server has 2"),
            ("start", {"episode": -1}, "see list_worlds"),
            ("start", {"row": 99}, "row=99: episode 0 has rows 0 to 11"),
            ("compare", own | {"goal": {"episode": 0, "row": 3}}, "call imagine first"),
            ("act", own | {"actions": action}, "environment=true.*or use simulate"),
            ("imagine", own | {"sequences": [[[1.0]]]}, r"an action is \[right, down\]"),
            (
                "simulate",
                own | {"actions": action * 3, "hold": 100},
                "held for 100 steps are over 200",
            ),
            ("plan", own | {"goal": {}}, "give one of name, state, episode"),
            ("plan", own | {"goal": {"episode": 0, "row": 3}, "max_seconds": 1e-6}, "give more time"),
            ("plan", own | {"goal": {"episode": 0, "row": 3}, "horizon": 500}, "less than or equal to 60"),
            ("rewind", own | {"num_steps": 5000}, "can be undone"),
            ("imagine", own | {"sequences": []}, "sequences"),
        ):
            result = await call(name, **arguments)
            assert result.is_error, (name, arguments)
            assert re.search(message, told(result)), told(result)
        await call("imagine", session=session, sequences=[action])
        for goal, message in (
            ({}, "give one of name, state, episode"),
            ({"name": "target"}, "no name 'target'; there are none in this world"),
            ({"state": {"block": [0, 0]}}, "no quantity 'block'"),
            ({"episode": 0, "row": 77}, "episode 0 has rows 0 to 11"),
            ({"image": "zzzz"}, "send a JPEG or PNG file in base64"),
        ):
            result = await call("compare", session=session, goal=goal)
            assert result.is_error
            assert re.search(message, told(result)), told(result)

    with_tools(small_service(tmp_path), use)


def test_acting_grounds_the_simulator_in_the_environment() -> None:
    pytest.importorskip("gym_pusht")
    service = Service(load("pusht"), find_recordings("pusht", None), Limits())

    async def use(call: Call) -> None:
        started = await call("start", episode=0, row=3)
        session = started.structured_content["session"]
        assert len(pictures(started)) == 2
        waypoints = [[150.0, 400.0], [120.0, 300.0]]
        acted = (await call("act", session=session, actions=waypoints, hold=8)).structured_content
        for state in (acted["state"], acted["environment"]["state"]):
            np.testing.assert_allclose(state["agent"], waypoints[-1], atol=12)
        block, real = acted["state"]["block"], acted["environment"]["state"]["block"]
        np.testing.assert_allclose(block, real, atol=8)
        # Its own place as the goal: nothing is nearer than what moves away from it by nothing.
        goal = {"state": acted["environment"]["state"], "only": ["agent"]}
        sequences = [[[400.0, 100.0]], [waypoints[-1]]]
        await call("imagine", session=session, sequences=sequences, hold=6)
        ranked = (await call("compare", session=session, goal=goal)).structured_content["ranking"]
        assert [entry["future"] for entry in ranked][-1] == 0
        assert ranked[-1]["distance"]["agent"] > 150
        planned = await call("plan", session=session, goal=goal, horizon=8, max_seconds=4, seed=1)
        found = planned.structured_content
        assert np.shape(found["actions"]) == (found["num_steps"], 2)
        assert len(pictures(planned)) == 1
        (best, *_) = (await call("compare", session=session, goal=goal)).structured_content["ranking"]
        assert best["distance"]["agent"] <= found["distance_planned"]["agent"] + 1e-6
        assert found["num_candidates"] >= 16
        named = (await call("compare", session=session, goal={"name": "target"})).structured_content
        assert set(named["ranking"][0]["distance"]) == {"block", "angle"}

    with_tools(service, use)


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_an_agents_day(tmp_path: Path) -> None:
    """The example itself, over stdio: the block is brought to the goal in the real simulator."""
    pytest.importorskip("gym_pusht")
    agent = load_example("agent_over_mcp")
    solved, rounds = asyncio.run(agent.run(agent.AgentConfig(out=tmp_path)))
    assert solved
    assert 1 < rounds <= 12
    transcript = (tmp_path / "transcript.md").read_text()
    assert f"Done in {rounds} rounds" in transcript
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", transcript):
        assert (tmp_path / picture).is_file()
    committed = REPOSITORY / "docs" / "agent" / "transcript.md"
    assert re.search(r"Done in \d+ rounds", committed.read_text())


def test_over_http() -> None:
    command = [sys.executable, "-m", "kinema", "mcp", "pusht", "--transport", "http", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://\S+/mcp", server.stdout.readline())

            async def use() -> None:
                async with Client(url) as client:
                    tools = {tool.name for tool in (await client.list_tools()).tools}
                    assert {"list_worlds", "look", "imagine", "compare", "act", "rewind"} <= tools
                    started = await client.call_tool("start", {"environment": False})
                    assert len(pictures(started)) == 1
                    assert started.structured_content is not None
                    assert started.structured_content["trust"] == 1.0

            asyncio.run(use())
        finally:
            server.terminate()
            server.wait(30)
