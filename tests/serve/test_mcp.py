"""The tools of a language model, through a real MCP client, and the command as programs start it."""

import asyncio
import base64
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("mcp")
import jsonschema
from mcp import Client

from kinema.data import Dataset
from kinema.serve import images
from kinema.serve.limits import Limits
from kinema.serve.mcp import make_mcp
from kinema.serve.recordings import find_recordings
from kinema.serve.service import Service
from kinema.simulation.world import load

from ..worlds import SIZE, random_actions, random_world, write_exact_world
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


def text_of(result: Any) -> str:
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
            ("start", {"episode": -1}, "episode: Input should be greater than or equal to 0"),
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
            ("look", own | {"sesion": 1}, "look: no argument sesion; it takes session"),
            ("lok", own, "no tool 'lok'; there are list_worlds, start, look"),
            ("look", {}, "^session: Field required$"),
            (
                "compare",
                own | {"goal": {"state": {"a": ["x"]}}},
                "^goal.state.a: Input .* number; goal.state.a.0",
            ),
            ("plan", own | {"goal": {"episode": 0, "row": 3}, "horizon": 500}, "less than or equal to 60"),
            ("rewind", own | {"num_steps": 5000}, "can be undone"),
            ("imagine", own | {"sequences": []}, "sequences"),
        ):
            result = await call(name, **arguments)
            assert result.is_error, (name, arguments)
            assert re.search(message, text_of(result)), text_of(result)
            assert len(text_of(result)) < 220
            assert "pydantic" not in text_of(result)
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
            assert re.search(message, text_of(result)), text_of(result)

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


def test_every_answer_is_in_its_text_and_fits_its_schema(tmp_path: Path) -> None:
    service = small_service(tmp_path)

    async def run() -> None:
        await service.start()
        try:
            async with Client(make_mcp(service)) as client:
                await use(client)
        finally:
            await service.close()

    async def use(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        used: set[str] = set()

        async def call(name: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(name, arguments)
            assert not result.is_error, text_of(result)
            answer = json.loads(text_of(result))
            assert answer == result.structured_content
            assert answer["message"]
            schema = tools[name].output_schema
            assert schema is not None
            jsonschema.validate(answer, schema)
            assert set(answer) == set(schema["properties"])
            used.add(name)
            return answer

        await call("list_worlds")
        own = {"session": (await call("start", episode=1))["session"]}
        actions = random_actions(3).tolist()
        await call("look", **own)
        await call("imagine", **own, sequences=[actions, actions])
        await call("compare", **own, goal={"episode": 0, "row": 5})
        await call("plan", **own, goal={"episode": 0, "row": 5}, horizon=3, max_seconds=2)
        await call("simulate", **own, actions=actions)
        await call("rewind", **own, num_steps=1)
        await call("close", **own)
        assert used == tools.keys() - {"act"}
        for name, tool in tools.items():
            assert tool.input_schema["additionalProperties"] is False
            notes = tool.annotations
            assert notes is not None
            assert notes.open_world_hint is False
            is_reading = name in ("list_worlds", "look", "imagine", "compare", "plan")
            assert notes.read_only_hint is is_reading
            assert is_reading or notes.destructive_hint is (name in ("act", "close"))

    asyncio.run(run())


def test_a_plan_whose_time_is_over_is_the_best_so_far(tmp_path: Path) -> None:
    async def use(call: Call) -> None:
        session = (await call("start")).structured_content["session"]
        goal = {"episode": 1, "row": 9}
        planned = await call("plan", session=session, goal=goal, horizon=5, max_seconds=1e-6)
        assert not planned.is_error
        answer = planned.structured_content
        assert np.shape(answer["actions"]) == (5, 2)
        assert answer["num_candidates"] >= 1
        assert not answer["is_complete"]

    with_tools(small_service(tmp_path), use)


def test_numbers_outside_the_recorded_ones_are_named() -> None:
    """Also those of an action that is not the last, and of one that is carried out."""
    pytest.importorskip("gym_pusht")
    service = Service(load("pusht"), find_recordings("pusht", None), Limits())
    inside, far = [250.0, 250.0], [9000.0, -9000.0]

    async def use(call: Call) -> None:
        session = (await call("start")).structured_content["session"]
        imagined = await call("imagine", session=session, sequences=[[inside], [far, inside]])
        answer = imagined.structured_content
        first, second = answer["futures"]
        assert first["outside"] == {}
        assert second["outside"] == pytest.approx({"x": 18.2, "y": 19.2}, abs=0.1)
        assert "x by 18, y by 19" in answer["message"]
        for name in ("simulate", "act"):
            answer = (await call(name, session=session, actions=[far, inside])).structured_content
            assert {"x", "y"} <= answer["outside"].keys()
            assert "x by 18" in answer["message"]
        # Off the table, the simulator has nothing to show, and its trust says so.
        answer = (await call("act", session=session, actions=[far], hold=3)).structured_content
        assert answer["trust"] < 0.3
        answer = (await call("start")).structured_content
        assert (answer["trust"], answer["outside"]) == (1.0, {})
        assert "Outside" not in answer["message"]

    with_tools(service, use)


SLOW = """
import os, sys
import kinema.cli
import kinema.serve.mcp as mcp
load = mcp._load
def slowly(config):
    print("a library talks", flush=True)
    os.read(int(sys.argv[1]), 1)
    print("and talks")
    return load(config)
mcp._load = slowly
sys.exit(kinema.cli.main(["mcp", *sys.argv[2:]]))
"""
"""``kinema mcp`` whose world loads when a byte arrives, and that prints meanwhile."""


class Program:
    """The command over stdio, spoken to line by line."""

    def __init__(self, world: str):
        ours, self.gate = os.pipe()
        command = [sys.executable, "-c", SLOW, str(ours), world]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, pass_fds=[ours]
        )
        os.close(ours)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.gate)

    def send(self, number: int | None, method: str, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        assert self.process.stdin is not None
        print(json.dumps(message if number is None else message | {"id": number}), file=self.process.stdin)
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def begin(self) -> dict[str, Any]:
        client = {"name": "test", "version": "0"}
        self.send(1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        answer = self.answer()["result"]
        self.send(None, "notifications/initialized")
        return answer

    def load(self) -> None:
        os.write(self.gate, b"x")

    def end(self) -> tuple[int, str, str]:
        """Close standard input; the exit code and the rest of both outputs."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_it_answers_before_the_world_is_loaded_and_prints_nothing_but_answers() -> None:
    with Program("pusht") as program:
        assert program.begin()["serverInfo"] == {"name": "kinema", "version": version("kinema")}
        program.send(2, "tools/list")
        assert len(program.answer()["result"]["tools"]) == 10
        program.send(3, "tools/call", name="list_worlds", arguments={})
        program.send(4, "tools/call", name="start", arguments={"environment": False})
        program.send(5, "ping")
        assert program.answer()["id"] == 5
        program.load()
        answers = {answer["id"]: answer["result"] for answer in (program.answer(), program.answer())}
        assert answers.keys() == {3, 4}
        assert not any(answer.get("isError") for answer in answers.values())
        code, out, err = program.end()
        assert (code, out) == (0, "")
        assert "a library talks\nand talks" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("is_asked", [False, True], ids=["nothing asked", "a call waits"])
def test_a_world_that_cannot_be_loaded_ends_it(is_asked: bool) -> None:
    """With code 2, though standard input stays open; who waits for the world is answered."""
    with Program("nowhere") as program:
        program.begin()
        if is_asked:
            program.send(2, "tools/call", name="list_worlds", arguments={})
            program.send(3, "ping")
            assert program.answer()["id"] == 3
        program.load()
        if is_asked:
            result = program.answer()["result"]
            assert result["isError"]
            assert "the world cannot be loaded: no world 'nowhere'" in result["content"][0]["text"]
        assert program.process.wait(60) == 2
        _, out, err = program.end()
        assert out == ""
        assert "error: no world 'nowhere'" in err
        assert "Traceback" not in err


def test_a_client_that_goes_before_the_world_is_loaded() -> None:
    with Program("pusht") as program:
        program.begin()
        assert program.process.stdin is not None
        program.process.stdin.close()
        program.process.stdin = None
        program.load()
        code, out, err = program.end()
        assert (code, out) == (0, "")
        assert "Traceback" not in err


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_an_agents_day(tmp_path: Path) -> None:
    """The example itself, over stdio, which reads text alone: it brings the block to the goal."""
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
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://\S+/mcp", server.stdout.readline())

            async def use() -> None:
                async with Client(url) as client:
                    tools = {tool.name for tool in (await client.list_tools()).tools}
                    assert {"list_worlds", "look", "imagine", "compare", "act", "rewind"} <= tools
                    started = await client.call_tool("start", {"environment": False})
                    assert len(pictures(started)) == 1
                    assert json.loads(text_of(started))["trust"] == 1.0

            asyncio.run(use())
            server.send_signal(signal.SIGINT)
            _, err = server.communicate(timeout=60)
            assert "Traceback" not in err
        finally:
            server.kill()


def test_over_http_a_world_that_cannot_be_loaded_ends_it() -> None:
    command = [sys.executable, "-m", "kinema", "mcp", "nowhere", "--transport", "http", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "error: no world 'nowhere'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_world_without_cameras(tmp_path: Path) -> None:
    """There is nothing to show, and everything else works."""
    root = write_exact_world(tmp_path / "recorded", lengths=[12], has_camera=False, has_proprio=True)
    service = Service(random_world(num_cameras=0, proprio_dim=2), Dataset.open(root), Limits())

    async def use(call: Call) -> None:
        started = await call("start")
        assert not started.is_error, text_of(started)
        own = {"session": started.structured_content["session"]}
        for name, arguments in (
            ("imagine", {"sequences": [random_actions(3).tolist()]}),
            ("simulate", {"actions": random_actions(2).tolist()}),
            ("look", {}),
        ):
            result = await call(name, **own, **arguments)
            assert not result.is_error, text_of(result)
            assert pictures(result) == []

    with_tools(service, use)
