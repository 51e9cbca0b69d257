"""The server as a process and a socket: delays, slow and dead clients, signals, proxies, full disks."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from kinema.serve.limits import Limits
from kinema.serve.server import BoundedHttp, bind
from kinema.serve.service import Service

from ..worlds import full_disk, random_actions, random_world, write_exact_world
from .running import running, small_service

STEP = {"action": [1.0, 1.5], "format": "none"}


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def open_session(http: httpx.Client, **body: Any) -> str:
    body = {"episode": 0, "format": "none", **body}
    return http.post("/v1/sessions", json=body).raise_for_status().json()["session"]


def wait_for(is_so: Any) -> None:
    for _ in range(400):
        if is_so():
            return
        threading.Event().wait(0.05)
    raise AssertionError("waited in vain")


def metric(http: httpx.Client, name: str) -> float:
    (value,) = re.findall(rf"^kinema_{name} (\S+)", http.get("/metrics").text, re.M)
    return float(value)


def send_and_go(url: str, path: str, body: dict[str, Any]) -> None:
    """A request of a client that is killed before the answer."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(address(url))
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    # As the kernel ends the connections of a killed process.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    threading.Timer(0.3, connection.close).start()


def test_answers_are_not_delayed(url: str) -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with httpx.Client(base_url=url) as http:
        took = []
        for _ in range(30):
            began = time.perf_counter()
            http.get("/health").raise_for_status()
            took.append(time.perf_counter() - began)
    # A delayed acknowledgement takes 40 ms, and only the first answers of a connection do without.
    assert min(took[15:]) < 0.035


def test_a_head_that_does_not_come_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedHttp, "head_seconds", 0.4)
    with running(small_service(tmp_path)) as url:
        for begun in (b"", b"GET /health HTTP/1.1\r\nHost: 127.0", b"GET"):
            with socket.create_connection(address(url), timeout=20) as connection:
                connection.sendall(begun)
                answer = connection.recv(4096)
                assert b" 408 " in answer if begun else answer == b""
                assert not answer or connection.recv(4096) == b""
        with socket.create_connection(address(url), timeout=20) as connection:
            # The second request of a connection; a byte now and then does not help.
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in connection.recv(4096)
            began = time.monotonic()
            answer = b""
            connection.settimeout(0.1)
            while time.monotonic() - began < 10 and not answer:
                try:
                    connection.sendall(b"G")
                    answer = connection.recv(4096)
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            assert time.monotonic() - began < 8
        with httpx.Client(base_url=url) as http:
            # Whoever sends whole requests is not cut, even where an answer takes longer than a head may.
            session = open_session(http)
            body = {"actions": random_actions(150).tolist(), "format": "none"}
            http.post(f"/v1/sessions/{session}/steps", json=body, timeout=60).raise_for_status()
            stream = f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream"
            with connect(stream) as socket_:
                threading.Event().wait(0.6)
                socket_.send(json.dumps({"op": "look", "format": "none"}))
                assert isinstance(socket_.recv(), bytes)


def test_work_of_a_killed_client_ends_and_its_session_soon(tmp_path: Path) -> None:
    limits = Limits(abandoned_seconds=1.0, requests_per_second=1e4)
    service = small_service(tmp_path, limits)
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        session = open_session(http)
        send_and_go(url, f"/v1/sessions/{session}/steps", {"actions": [[1.0, 1.5]] * 1000})
        wait_for(lambda: http.get("/health").json()["sessions"] == 0)
        assert metric(http, "steps_total") < 900


def test_a_plan_of_a_killed_client_ends(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        session = open_session(http)
        body = {"goal": {"episode": 1, "row": 9}, "horizon": 200, "candidates": 512, "iterations": 64}
        send_and_go(url, f"/v1/sessions/{session}/plan", {**body, "max_seconds": 30})
        wait_for(lambda: service.planning.num_running == 1)
        began = time.monotonic()
        wait_for(lambda: service.planning.num_running == 0)
        assert time.monotonic() - began < 15
        assert http.post(f"/v1/sessions/{session}/step", json=STEP).status_code == 200


def test_a_broken_stream_ends_its_session_a_closed_one_keeps_it(tmp_path: Path) -> None:
    service = small_service(tmp_path, Limits(abandoned_seconds=0.5))
    with running(service) as url, httpx.Client(base_url=url) as http:
        closed, broken, taken_up = (open_session(http) for _ in range(3))

        def break_off(session: str) -> None:
            with connect(f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream") as stream:
                stream.send(json.dumps({"op": "look", "format": "none"}))
                stream.recv()
                if session != closed:
                    stream.socket.shutdown(socket.SHUT_RDWR)

        break_off(closed)
        break_off(taken_up)
        wait_for(lambda: expires_in(service, taken_up) < 1)
        http.post(f"/v1/sessions/{taken_up}/step", json=STEP).raise_for_status()
        break_off(broken)
        wait_for(lambda: broken not in service.sessions)
        assert min(expires_in(service, session) for session in (closed, taken_up)) > 60


def expires_in(service: Service, session: str) -> float:
    return service.sessions._sessions[session].expires_at - time.monotonic()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``kinema serve`` as a process, and its address."""
    random_world().save(tmp_path / "world")
    write_exact_world(tmp_path / "recorded", lengths=[12, 20])
    arguments = ["serve", str(tmp_path / "world"), "--data", str(tmp_path / "recorded"), "--port", "0"]
    arguments += ["--limits.max-actions", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kinema", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KINEMA_TOKEN": ""},
    )
    assert process.stdout is not None
    (url,) = re.findall(r"at (http://\S+?),", process.stdout.readline())
    yield process, url
    process.kill()
    process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_plans_steps_and_streams(
    command: tuple[subprocess.Popen[str], str], signum: signal.Signals
) -> None:
    process, url = command
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=url, timeout=60) as http:
        sessions = [open_session(http) for _ in range(3)]
        plan = {"horizon": 200, "candidates": 512, "iterations": 64, "max_seconds": 30}
        asked = [
            (f"/v1/sessions/{sessions[0]}/plan", {"goal": {"episode": 1, "row": 9}, **plan}),
            (f"/v1/sessions/{sessions[1]}/steps", {"actions": [[1.0, 1.5]] * 50_000, "format": "none"}),
        ]

        def ask(path: str, body: dict[str, Any]) -> None:
            answers.append(httpx.post(f"{url}{path}", json=body, timeout=60))

        threads = [threading.Thread(target=ask, args=each) for each in asked]
        for thread in threads:
            thread.start()
        wait_for(lambda: metric(http, "steps_total") > 5 and metric(http, "plans") == 1)
        with connect(f"{url.replace('http', 'ws')}/v1/sessions/{sessions[2]}/stream"):
            process.send_signal(signum)
            began = time.monotonic()
            _, errors = process.communicate(timeout=30)
        assert time.monotonic() - began < 10
        for thread in threads:
            thread.join(30)
    assert "Traceback" not in errors, errors
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all("closing" in answer.json()["detail"] for answer in answers)


def test_clients_behind_a_proxy_have_limits_of_their_own(tmp_path: Path) -> None:
    service = small_service(tmp_path, Limits(max_sessions_per_client=1))
    with running(service) as url, httpx.Client(base_url=url) as http:
        for client in ("203.0.113.1", "203.0.113.2", "198.51.100.7, 203.0.113.3"):
            body, headers = {"episode": 0, "format": "none"}, {"X-Forwarded-For": client}
            assert http.post("/v1/sessions", json=body, headers=headers).status_code == 201
            assert http.post("/v1/sessions", json=body, headers=headers).status_code == 429


@pytest.mark.parametrize("host", ["robot.example.org", "127.0.0.1:8000"])
def test_the_page_works_behind_a_proxy(tmp_path: Path, host: str) -> None:
    """The proxy passes the browser's Host header on, or gives its own."""
    origin = "https://robot.example.org"
    body = {"episode": 0, "format": "none"}
    named = {"Host": host, "Origin": origin, "X-Forwarded-For": "203.0.113.1", "X-Forwarded-Proto": "https"}
    with running(small_service(tmp_path), token="secret") as url, httpx.Client(base_url=url) as http:
        asked = {**named, "Authorization": "Bearer secret"}
        session = http.post("/v1/sessions", json=body, headers=asked).raise_for_status().json()["session"]
        stream = f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream?token=secret"
        with connect(stream, origin=origin):
            pass
    with running(small_service(tmp_path), public_url=origin) as url, httpx.Client(base_url=url) as http:
        assert http.post("/v1/sessions", json=body, headers=named).status_code == 201
        for foreign in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            answer = http.post("/v1/sessions", json=body, headers={**named, **foreign})
            assert answer.status_code == 403
            assert "--public-url" in answer.json()["detail"]


def test_a_full_disk_costs_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/kinema/secret/path")

    service = small_service(tmp_path)
    with running(service) as url, httpx.Client(base_url=url) as http:
        session = open_session(http)
        http.post(f"/v1/sessions/{session}/step", json=STEP).raise_for_status()
        with full_disk(0):
            video = http.get(f"/v1/sessions/{session}/video.mp4")
        assert video.status_code == 200
        assert video.content[4:8] == b"ftyp"
        monkeypatch.setattr(service.recordings, "episode", is_full)
        answer = http.post("/v1/sessions", json={"episode": 0})
        assert answer.status_code == 503
        assert "No space left on device" in answer.json()["detail"]
        assert "secret" not in answer.text


@pytest.mark.parametrize("wrong", [True, "1", "1.5", None, [1]])
def test_only_numbers_pass_for_numbers(url: str, wrong: Any) -> None:
    with httpx.Client(base_url=url) as http:
        session = open_session(http)
        path = f"/v1/sessions/{session}"
        for method, address, body in (
            ("POST", f"{path}/step", {"action": [wrong, 1.5]}),
            ("POST", f"{path}/steps", {"actions": [[1.0, wrong]]}),
            ("POST", f"{path}/rewind", {"num_steps": wrong}),
            ("POST", f"{path}/fork", {"num": wrong}),
            ("POST", f"{path}/fork", {"same_noise": 1 if wrong is True else wrong}),
            ("POST", f"{path}/plan", {"reward_weight": wrong}),
            ("POST", "/v1/sessions", {"episode": 0, "seed": wrong}),
        ):
            answer = http.request(method, address, json=body)
            assert answer.status_code == 422, (address, body)
            assert "should be a valid" in answer.json()["detail"], answer.text
        with connect(f"{url.replace('http', 'ws')}{path}/stream") as stream:
            stream.send(json.dumps({"op": "step", "action": [wrong, 1.5]}))
            answer = stream.recv()
            assert isinstance(answer, bytes)
            assert json.loads(answer[4:])["status"] == 422
        # Whole numbers are numbers.
        http.post(f"{path}/step", json={"action": [1, 2]}).raise_for_status()
        http.delete(path)
