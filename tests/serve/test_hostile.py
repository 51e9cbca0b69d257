"""Malformed and hostile requests: no crash, no leak of what is inside, no harm to others.

``KINEMA_HOSTILE=25`` makes 25 times as many of them, which is more than 10,000.
"""

import base64
import contextlib
import functools
import io
import json
import os
import random
import socket
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import PIL.Image
import pytest
from hypothesis.errors import Unsatisfiable
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from kinema.serve.limits import Limits
from kinema.simulation.session import Simulation

from ..worlds import CAMERA, SIZE
from .running import running, small_service

schemathesis = pytest.importorskip("schemathesis")
TIMES = int(os.environ.get("KINEMA_HOSTILE", "1"))
LEAKS = ("Traceback", "site-packages", 'File "', "/kinema/", str(Path.home()))
"""What no answer may show."""


class Witness:
    """A session of somebody else, which has to go on as if nothing happened."""

    def __init__(self, http: httpx.Client, local: Simulation):
        self.http, self.local = http, local
        state = http.post("/v1/sessions", json={"episode": 0, "format": "none"}).raise_for_status().json()
        self.session = state["session"]
        self.rng = random.Random(0)

    def check(self) -> None:
        action = [self.rng.uniform(-2, 6), self.rng.uniform(1, 2)]
        body = {"action": action, "format": "raw"}
        state = self.http.post(f"/v1/sessions/{self.session}/step", json=body).raise_for_status().json()
        expected = self.local.step(action)
        shown = np.frombuffer(base64.b64decode(state["frames"][CAMERA]["data"]), np.uint8)
        assert np.abs(shown.reshape(SIZE, SIZE, 3).astype(int) - expected.frame).max() <= 1


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Witness]]:
    """A server, and a witness at it."""
    limits = Limits(
        requests_per_second=1e6,
        max_sessions=40,
        max_sessions_per_client=39,
        body_seconds=3,
        max_plan_seconds=0.2,
    )
    service = small_service(tmp_path_factory.mktemp("attacked"), limits)
    assert service.recordings.dataset is not None
    episode = service.recordings.dataset.episode(0)
    local = service.world.start(
        {key: film[:4] for key, film in episode.frames.items()}, episode.columns["action"][:3]
    )
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield url, Witness(http, local)


def check_status(status: int, content: bytes) -> None:
    assert status < 500 or status == 503, content[:500]
    assert not any(leak.encode() in content for leak in LEAKS), content[:500]


def check_answer(response: httpx.Response) -> None:
    check_status(response.status_code, response.content)
    is_json = response.headers.get("content-type") == "application/json"
    if response.status_code >= 400 and is_json and response.request.method != "HEAD":
        assert response.json()["detail"]


def test_whatever_the_schema_allows_and_more(attacked: tuple[str, Witness]) -> None:
    """Requests made from the interface's own description, right and wrong ones."""
    url, witness = attacked
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    num_seen = 0

    def attack(case: Any) -> None:
        nonlocal num_seen
        num_seen += 1
        # Sessions are random words: some requests have to reach a real one.
        if case.path_parameters and num_seen % 2 and case.method != "DELETE":
            case.path_parameters["session_id"] = session
        response = case.call(base_url=url, timeout=60)
        check_status(response.status_code, response.content)

    for operation in schema.get_all_operations():
        opened = witness.http.post("/v1/sessions", json={"episode": 1, "format": "none"})
        session = opened.raise_for_status().json()["session"]
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            strategy = operation.ok().as_strategy(generation_mode=mode)
            settings = hypothesis.settings(
                max_examples=8 * TIMES,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            # Nothing can be wrong about a request without parameters.
            with contextlib.suppress(Unsatisfiable):
                settings(hypothesis.given(case=strategy)(attack))()
        witness.http.delete(f"/v1/sessions/{session}")
        witness.check()
    assert num_seen > 100 * TIMES


def hand_made(rng: random.Random, session: str) -> tuple[str, str, bytes, dict[str, str]]:
    """One hostile request: method, path, body, headers."""
    word = "".join(rng.choices(string.printable, k=rng.randint(0, 40)))
    number = rng.choice([-1, 0, 2**31, 2**63, 10**400, 1e308, -1e-320, "1", None, True, [], {}])
    inside = rng.choice(
        ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, '"\\ud800"', "null", json.dumps(word)]
    )
    body: Any = rng.choice(
        [
            b"",
            b"{",
            b"[" * 100_000,
            b'{"a":' * 20_000,
            b"\xff\xfe\x00",
            rng.randbytes(2000),
            b'{"__proto__": {"a": 1}}',
            b"cposix\nsystem\n(S'id'\ntR.",
            json.dumps({"episode": number}).encode(),
            json.dumps({"episode": 0, "row": number, "context": number}).encode(),
            json.dumps({"episode": "../../etc/passwd"}).encode(),
            json.dumps({"frames": {CAMERA: [word]}}).encode(),
            json.dumps({"frames": {word: [word]}, "actions": [[1.0]], "proprio": [[number]]}).encode(),
            json.dumps({"frames": {CAMERA: [_picture(rng)]}}).encode(),
            json.dumps({"action": [number, 1.5]}).encode(),
            json.dumps({"actions": [[1.0, 1.5]] * rng.choice([0, 1, 5000])}).encode(),
            json.dumps({"num_steps": number}).encode(),
            json.dumps({"num": number}).encode(),
            json.dumps({"sessions": [session, session], "actions": [[1, 1], [1, 1]]}).encode(),
            f'{{"action": [{inside}, 1]}}'.encode(),
            f'{{"num_steps": {inside}}}'.encode(),
            f'{{"seed": {inside}, "episode": 0}}'.encode(),
        ]
    )
    path = rng.choice(
        [
            "/v1/sessions",
            "/v1/steps",
            "/v1/infer",
            f"/v1/sessions/{session}",
            *(f"/v1/sessions/{session}/{verb}" for verb in ("step", "steps", "rewind", "fork")),
            f"/v1/sessions/{session}/pictures?first={rng.choice(['-1', '9' * 30, 'x', '%00'])}",
            f"/v1/sessions/{session}/frame?camera=%F0%9F%A4%96&format=bmp",
            "/v1/sessions/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "/page/../../../../etc/passwd",
            "/page/%2e%2e/%2e%2e/app.py",
            "/page/..%2fapp.py",
            "/page//etc/passwd",
            "/v1/episodes?first=-1&num=99999999999999999999",
        ]
    )
    method = rng.choice(["GET", "POST", "PATCH", "PUT", "OPTIONS", "HEAD"])
    headers = rng.choice(
        [
            {"content-type": "application/json"},
            {"content-type": "application/x-python-pickle"},
            {"content-type": "multipart/form-data; boundary=" + "x" * 300},
            {"content-type": "application/json; charset=utf-7"},
            {"x-forwarded-for": "1.2.3.4", "content-type": "application/json"},
            {"origin": "http://evil.example", "content-type": "application/json"},
            {"host": "evil.example"},
        ]
    )
    return method, path, body, headers


def _picture(rng: random.Random) -> str:
    """Pictures of the wrong size or kind, cut off, or a file that unpacks to gigabytes."""
    size = rng.choice([(SIZE, SIZE), (1, 1), (4000, 4000)])
    data = _file(size, rng.choice(["PNG", "JPEG", "GIF"]), rng.choice(["L", "RGB"]))
    return base64.b64encode(data[: rng.choice([len(data), len(data) // 2])]).decode()


@functools.cache
def _file(size: tuple[int, int], kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size).save(buffer, format=kind)
    return buffer.getvalue()


def test_hand_made_requests(attacked: tuple[str, Witness]) -> None:
    url, witness = attacked
    rng = random.Random(1)
    with httpx.Client(base_url=url, timeout=60) as http:
        session = http.post("/v1/sessions", json={"episode": 1, "format": "none"}).json()["session"]
        for number in range(400 * TIMES):
            method, path, body, headers = hand_made(rng, session)
            response = http.request(method, path, content=body, headers=headers)
            check_answer(response)
            assert "root:" not in response.text
            if headers.get("host") == "evil.example" or "origin" in headers:
                assert response.status_code == 403
            if number % 50 == 0:
                witness.check()
        witness.check()
        health = http.get("/health").json()
        assert health["sessions"] <= health["capacity"]


def test_raw_bytes(attacked: tuple[str, Witness]) -> None:
    """What is not even HTTP, and what comes too slowly."""
    url, witness = attacked
    host, port = url.removeprefix("http://").split(":")
    rng = random.Random(2)
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET //page//etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /v1/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        *(rng.randbytes(rng.randint(1, 500)) for _ in range(20 * TIMES)),
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(65536)
            except ConnectionResetError:
                answer = b""
            assert not any(leak.encode() in answer for leak in LEAKS)
    # A body that never comes is given up, and told so.
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(65536)
    witness.check()


def test_a_browser_page_from_elsewhere_gets_no_stream(attacked: tuple[str, Witness]) -> None:
    url, witness = attacked
    address = f"{url.replace('http', 'ws')}/v1/sessions/{witness.session}/stream"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus), connect(address, origin=origin):
            pass
    witness.check()


def test_no_token_no_entry(tmp_path: Path) -> None:
    with running(small_service(tmp_path), token="secret") as url, httpx.Client(base_url=url) as http:
        opened = http.post(
            "/v1/sessions", json={"episode": 0}, headers={"Authorization": "Bearer secret"}
        ).json()["session"]
        for path in ("/v1/world", "/metrics", f"/v1/sessions/{opened}", "/v1/episodes"):
            for given in (b"", b"Bearer wrong", b"secret", b"Bearer \xff"):
                assert http.get(path, headers={"Authorization": given}).status_code in (401, 404), path
            assert http.get(f"{path}?token=secret").status_code in (401, 404)
        assert http.get("/health").status_code == 200
