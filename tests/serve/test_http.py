"""The HTTP and WebSocket interface, against a real server and beside the world itself."""

import asyncio
import base64
import io
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from websockets.sync.client import ClientConnection, connect

from kinema.data import Dataset
from kinema.serve import images
from kinema.serve.command import ServeConfig, make_service
from kinema.serve.limits import Limits
from kinema.serve.service import Service, session_bytes
from kinema.simulation.session import Simulation

from ..worlds import CAMERA, SIZE, random_actions, random_frames, random_world
from .running import running, small_service


@pytest.fixture
def session(http: httpx.Client) -> Iterator[str]:
    session = http.post("/v1/sessions", json={"episode": 0, "format": "raw"}).raise_for_status().json()
    yield session["session"]
    http.delete(f"/v1/sessions/{session['session']}")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """What the server has, in this process."""
    service = small_service(tmp_path_factory.mktemp("local"))
    assert isinstance(service.recordings.dataset, Dataset)
    episode = service.recordings.dataset.episode(0)
    frames = {key: film[:4] for key, film in episode.frames.items()}
    return service.world.start(frames, episode.columns["action"][:3])


def picture(state: dict[str, Any], camera: str = CAMERA) -> np.ndarray:
    shown = state["frames"][camera]
    data = base64.b64decode(shown["data"])
    if shown["format"] == "raw":
        return np.frombuffer(data, np.uint8).reshape(shown["height"], shown["width"], 3)
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def in_base64(frame: np.ndarray) -> str:
    return base64.b64encode(images.encode(frame, "png")).decode()


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    assert np.abs(one.astype(int) - other).max() <= 1


def test_the_world_is_described(http: httpx.Client) -> None:
    world = http.get("/v1/world").json()
    assert world["name"] == "random"
    assert world["cameras"] == [{"key": CAMERA, "height": SIZE, "width": SIZE}]
    assert [action["name"] for action in world["actions"]] == ["right", "down"]
    assert world["actions"][0]["low"] == pytest.approx(-2.0, abs=0.2)
    assert world["num_episodes"] == 2
    assert http.get("/v1/episodes", params={"first": 1}).json() == {
        "num": 2,
        "episodes": [{"index": 1, "num_rows": 20}],
    }
    assert http.get("/health").json()["status"] == "ok"
    paths = http.get("/openapi.json").json()["paths"]
    assert "/v1/sessions/{session_id}/fork" in paths


def test_steps_are_those_of_the_world(http: httpx.Client, session: str, local: Simulation) -> None:
    expected = local.copy()
    actions = random_actions(5)
    for action in actions[:2]:
        body = {"action": action.tolist(), "format": "raw"}
        state = http.post(f"/v1/sessions/{session}/step", json=body).raise_for_status().json()
        step = expected.step(action)
        assert_same(picture(state), step.frame)
        assert state["trust"] == pytest.approx(step.trust, rel=1e-3)
    body = {"actions": actions[2:].tolist(), "format": "png"}
    states = http.post(f"/v1/sessions/{session}/steps", json=body).raise_for_status().json()["states"]
    for state, action in zip(states, actions[2:], strict=True):
        assert_same(picture(state), expected.step(action).frame)
    assert states[-1]["num_steps"] == 5
    back = http.post(f"/v1/sessions/{session}/rewind", json={"num_steps": 3, "format": "raw"}).json()
    expected.rewind(3)
    assert back["num_steps"] == 2
    assert_same(picture(back), expected.look().frame)
    shown = http.get(f"/v1/sessions/{session}/frame", params={"format": "png"})
    assert shown.headers["content-type"] == "image/png"
    assert_same(np.asarray(PIL.Image.open(io.BytesIO(shown.content))), expected.look().frame)
    jpeg = PIL.Image.open(io.BytesIO(http.get(f"/v1/sessions/{session}/frame").content))
    assert jpeg.format == "JPEG"
    assert np.abs(np.asarray(jpeg).astype(int) - expected.look().frame).mean() < 12


def test_futures_and_copies(http: httpx.Client, session: str, local: Simulation) -> None:
    forked = http.post(f"/v1/sessions/{session}/fork", json={"num": 2}).raise_for_status().json()["sessions"]
    copied = http.post(f"/v1/sessions/{session}/fork", json={"same_noise": True}).json()["sessions"]
    actions = random_actions(3)
    body = {"sessions": [*forked, *copied], "actions": actions.tolist(), "format": "raw"}
    states = http.post("/v1/steps", json=body).raise_for_status().json()["states"]
    futures = local.fork(2)
    expected = [*futures.step(actions[:2]).frame, local.copy().step(actions[2]).frame]
    for state, frame in zip(states, expected, strict=True):
        assert_same(picture(state), frame)
    for opened in (*forked, *copied):
        assert http.delete(f"/v1/sessions/{opened}").status_code == 204
        assert http.get(f"/v1/sessions/{opened}").status_code == 404


def test_a_start_from_pictures(http: httpx.Client) -> None:
    frames, actions = random_frames(3), random_actions(2)
    body = {
        "frames": {CAMERA: [in_base64(frame) for frame in frames]},
        "actions": actions.tolist(),
        "seed": 7,
        "num_denoising_steps": 2,
        "format": "raw",
    }
    state = http.post("/v1/sessions", json=body).raise_for_status().json()
    batch = random_world().start_batch(frames[None], actions[None], seeds=[7], num_denoising_steps=2)
    then = random_actions(seed=5)
    path = f"/v1/sessions/{state['session']}"
    got = http.post(f"{path}/step", json={"action": then.tolist(), "format": "raw"}).json()
    assert_same(picture(got), batch.step(then[None]).frame[0])
    assert (got["seed"], got["num_denoising_steps"]) == (7, 2)
    http.patch(path, json={"seed": 3, "num_denoising_steps": 1}).raise_for_status()
    batch.change(seeds=[3], num_denoising_steps=1)
    got = http.post(f"{path}/step", json={"action": then.tolist(), "format": "raw"}).json()
    assert_same(picture(got), batch.step(then[None]).frame[0])
    http.delete(path)


def test_past_pictures_and_the_film(http: httpx.Client, session: str) -> None:
    body = {"actions": random_actions(40).tolist(), "format": "raw"}
    states = http.post(f"/v1/sessions/{session}/steps", json=body).json()["states"]
    first = http.get(f"/v1/sessions/{session}/pictures").json()
    rest = http.get(f"/v1/sessions/{session}/pictures", params={"first": 32}).json()
    assert first["num"] == rest["num"] == 41
    films = [
        np.frombuffer(base64.b64decode(part["data"][CAMERA]), np.uint8).reshape(part["shape"][CAMERA])
        for part in (first, rest)
    ]
    film = np.concatenate(films)
    assert np.abs(film[1:].astype(int) - [picture(state) for state in states]).max() <= 2
    video = http.get(f"/v1/sessions/{session}/video.mp4")
    with av.open(io.BytesIO(video.content), "r") as container:
        assert sum(1 for _ in container.decode(video=0)) == 41


def test_inverse_dynamics(http: httpx.Client) -> None:
    frames = random_frames(4)
    body = {"frames": {CAMERA: [in_base64(frame) for frame in frames]}}
    actions = http.post("/v1/infer", json=body).raise_for_status().json()["actions"]
    np.testing.assert_allclose(actions, random_world().infer(frames), rtol=1e-3, atol=1e-3)


# The stream.


def ask(stream: ClientConnection, message: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    stream.send(message if isinstance(message, str) else json.dumps(message))
    answer = stream.recv()
    assert isinstance(answer, bytes)
    (size,) = struct.unpack_from("<I", answer)
    head = json.loads(answer[4 : 4 + size])
    pictures, place = [], 4 + size
    for shown in head.get("pictures", []):
        piece = np.frombuffer(answer[place : place + shown["size"]], np.uint8)
        pictures.append(piece.reshape(shown["height"], shown["width"], 3))
        place += shown["size"]
    assert place == len(answer)
    return head, pictures


def test_a_stream_steps_and_survives_mistakes(url: str, session: str, local: Simulation) -> None:
    expected = local.copy()
    actions = random_actions(3)
    with connect(f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream") as stream:
        for action in actions:
            head, pictures = ask(stream, {"op": "step", "action": action.tolist(), "format": "raw"})
            assert_same(pictures[0], expected.step(action).frame)
        for wrong, message in (
            ("{", "Invalid JSON"),
            ("[" * 5000, "JSON"),
            ({"op": "fly"}, "op"),
            ({"op": "step"}, "action"),
            ({"op": "step", "action": [1.0]}, r"expected shape \(1, 2\)"),
            ('{"op": "step", "action": [NaN, 1]}', "finite"),
            ('{"op": "step", "action": [1e400, 1]}', "finite|valid"),
            ({"op": "rewind", "num_steps": 9}, "can go back by 0 to 3 steps"),
        ):
            head, _ = ask(stream, wrong)
            assert head["status"] == 422
            assert re.search(message, head["error"]), head
        head, pictures = ask(stream, {"op": "rewind", "num_steps": 2, "format": "raw"})
        expected.rewind(2)
        assert head["num_steps"] == 1
        assert_same(pictures[0], expected.look().frame)
        head, pictures = ask(stream, {"op": "step", "action": actions[0].tolist(), "format": "none"})
        assert pictures == []
        expected.step(actions[0])
        head, pictures = ask(stream, {"op": "look", "format": "raw"})
        assert_same(pictures[0], expected.look().frame)


def test_a_client_that_dies_in_mid_step_harms_nobody(url: str, http: httpx.Client, session: str) -> None:
    address = f"{url.replace('http', 'ws')}/v1/sessions"
    message = json.dumps({"op": "step", "action": [0.0, 1.5]})
    for _ in range(5):
        opened = http.post("/v1/sessions", json={"episode": 1}).json()["session"]
        with connect(f"{address}/{opened}/stream") as stream:
            stream.send(message)
            # No goodbye: the connection is torn down while the step runs.
            stream.socket.shutdown(socket.SHUT_RDWR)
        state = http.post(f"/v1/sessions/{session}/step", json={"action": [0.0, 1.5]})
        assert state.status_code == 200
        # The session can be taken up again.
        assert http.get(f"/v1/sessions/{opened}").status_code == 200
        http.delete(f"/v1/sessions/{opened}")


def test_clients_that_come_and_go_leave_the_session_free(url: str, http: httpx.Client, session: str) -> None:
    address = f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream"
    for _ in range(12):
        with connect(address) as stream:
            stream.send(json.dumps({"op": "step", "action": [0.0, 1.5]}))
            stream.socket.shutdown(socket.SHUT_RDWR)
    answer = http.post(f"/v1/sessions/{session}/step", json={"action": [0.0, 1.5], "format": "none"})
    assert answer.status_code == 200, answer.text


# Bounds.


def test_sessions_are_bounded_by_client_and_in_all(tmp_path: Path) -> None:
    service = small_service(tmp_path, Limits(max_sessions=3, max_sessions_per_client=2))
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        opened = [http.post("/v1/sessions", json={"episode": 0}).json()["session"] for _ in range(2)]
        third = http.post("/v1/sessions", json={"episode": 0})
        assert third.status_code == 429
        assert "you have 2 of 2 sessions open" in third.json()["detail"]
        assert int(third.headers["retry-after"]) >= 1
        many = http.post(f"/v1/sessions/{opened[0]}/fork", json={"num": 2})
        assert many.status_code == 503
        assert "2 of 3 sessions are open, so there is no room for 2 more" in many.json()["detail"]
        http.delete(f"/v1/sessions/{opened[0]}")
        assert http.post("/v1/sessions", json={"episode": 0}).status_code == 201
        assert http.post("/v1/sessions", json={"episode": 7}).status_code in (404, 429)
        text = http.get("/metrics").text
        assert "kinema_sessions 2.0" in text
        assert 'kinema_refusals_total{reason="client-sessions"}' in text


def test_memory_bounds_the_sessions(tmp_path: Path) -> None:
    limits = Limits(max_sessions=1000)
    one = session_bytes(random_world(), limits) / 2**30
    service = small_service(tmp_path, Limits(max_sessions=1000, max_memory_gb=3.5 * one))
    assert service.sessions.capacity == 3
    with pytest.raises(ValueError, match=r"max_memory_gb=.*one session of this world takes"):
        small_service(tmp_path, Limits(max_memory_gb=0.5 * one))


def test_sizes_and_waiting_requests_are_bounded(tmp_path: Path) -> None:
    limits = Limits(max_body_mb=0.1, max_waiting=2, max_actions=60)
    with running(small_service(tmp_path, limits)) as url, httpx.Client(base_url=url, timeout=60) as http:
        session = http.post("/v1/sessions", json={"episode": 0}).json()["session"]
        large = http.post("/v1/infer", content=b"x" * 200_000)
        assert large.status_code == 413

        def chunks() -> Iterator[bytes]:
            for _ in range(20):
                yield b"x" * 10_000

        assert http.post("/v1/infer", content=chunks()).status_code == 413
        body = {"actions": random_actions(61).tolist()}
        many = http.post(f"/v1/sessions/{session}/steps", json=body)
        assert (many.status_code, "at most 60 at once" in many.text) == (422, True)
        # One runs, one waits, the third is one too many.
        body = {"actions": random_actions(60).tolist(), "format": "none"}
        statuses: list[int] = []

        def run() -> None:
            statuses.append(
                httpx.post(f"{url}/v1/sessions/{session}/steps", json=body, timeout=120).status_code
            )

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200, 200, 429]


def test_the_rate_of_a_client_is_bounded(tmp_path: Path) -> None:
    service = small_service(tmp_path, Limits(requests_per_second=2))
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        answers = [http.get("/health") for _ in range(30)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert "requests a second" in next(a for a in answers if a.status_code == 429).json()["detail"]


def test_a_full_queue_is_503_and_never_a_stall(tmp_path: Path) -> None:
    service = small_service(tmp_path, Limits(max_queue=1))
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        ids = [http.post("/v1/sessions", json={"episode": 0}).json()["session"] for _ in range(2)]
        body = {"sessions": ids, "actions": random_actions(2).tolist()}
        answer = http.post("/v1/steps", json=body)
        assert answer.status_code == 503
        assert "wait for the networks already" in answer.json()["detail"]
        assert "retry-after" in answer.headers
        one = {"sessions": ids[:1], "actions": random_actions(1).tolist()}
        assert http.post("/v1/steps", json=one).status_code == 200


def test_idle_sessions_expire(tmp_path: Path) -> None:
    service: Service = small_service(tmp_path, Limits(idle_minutes=0.01))
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        session = http.post("/v1/sessions", json={"episode": 0}).json()["session"]
        for _ in range(200):
            if http.get("/health").json()["sessions"] == 0:
                break
            threading.Event().wait(0.05)
        gone = http.get(f"/v1/sessions/{session}")
        assert gone.status_code == 404
        assert "nobody used it for 0.01 minutes; open another" in gone.json()["detail"]


def test_the_networks_have_pytorchs_threads_to_themselves(tmp_path: Path) -> None:
    random_world().save(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        service = make_service(ServeConfig(world=str(tmp_path)))
        assert torch.get_num_threads() == 1

        async def threads_of_engine() -> int:
            service.engine.start()
            num_threads = await service.engine.run(torch.get_num_threads)
            await service.engine.close()
            return num_threads

        assert asyncio.run(threads_of_engine()) == 2
    finally:
        torch.set_num_threads(before)


def test_pictures_are_not_deflated_on_the_way(url: str, session: str) -> None:
    """Whatever the client offers: it takes longer than sending them."""
    with connect(f"ws{url.removeprefix('http')}/v1/sessions/{session}/stream") as stream:
        assert stream.response is not None
        assert "Sec-WebSocket-Extensions" not in stream.response.headers
