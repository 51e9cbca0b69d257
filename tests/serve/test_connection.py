"""Scripts that use a server end, whatever happens in them; other servers than kinema's are named as such."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response, WebSocket

import kinema
from kinema.serve.client import RemoteWorld
from kinema.serve.command import bind, make_server
from kinema.types import ServerError, WorldError

from .running import in_thread

SECONDS = 60
"""More than any of the scripts needs, and less than one that never ends."""
BEGIN = "world = kinema.connect(URL)\nsim = world.start_episode()\nsim.step(ACTION)\n"
WITH = "with kinema.connect(URL) as world:\n    sim = world.start_episode()\n    sim.step(ACTION)\n"
SCRIPTS = {
    "module level": (BEGIN, 0),
    "close": (BEGIN + "world.close()", 0),
    "with": (WITH, 0),
    "an error in between": (BEGIN + "raise RuntimeError('mine')", 1),
    "an error inside with": (WITH + "    1 / 0", 1),
    "an interrupt": ("import signal\n" + BEGIN + "signal.raise_signal(signal.SIGINT)", -2),
    "an exit in a function": (
        "import sys\ndef main():\n    sim = kinema.connect(URL).start_episode()\n    sim.step(ACTION)\n"
        "    sys.exit(3)\nmain()",
        3,
    ),
    "many sessions": (
        BEGIN + "sims = [world.start_episode() for _ in range(12)]\n"
        "futures = sims[0].fork(4)\nfutures.step([ACTION] * 4)\nkept = futures[1]\nkept.step(ACTION)\n"
        "for sim in sims:\n    sim.step(ACTION)",
        0,
    ),
    "a thread that steps on": (
        BEGIN + "import threading\ndef on():\n    while True:\n        sim.step(ACTION)\n"
        "threading.Thread(target=on, daemon=True).start()",
        0,
    ),
}


def run(url: str, script: str) -> subprocess.CompletedProcess[str]:
    head = f"import kinema\nURL, ACTION = {url!r}, [1.0, 1.5]\n"
    command = [sys.executable, "-c", head + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends(url: str, http: httpx.Client, name: str) -> None:
    script, code = SCRIPTS[name]
    done = run(url, script)
    assert done.returncode == code, done.stderr
    # The thread that steps on is stopped by Python itself, perhaps while it prints that its world is closed.
    assert "Thread" in script or ("Traceback" in done.stderr) == (code in (1, -2)), done.stderr
    # Its sessions are closed, though nobody closed them.
    assert http.get("/health").json()["sessions"] == 0


def test_a_script_ends_whose_server_stands_still(url: str) -> None:
    """The server accepts connections and never answers: closing does not wait for it."""
    script = """
import socket, threading
world = kinema.connect(URL)
sims = [world.start_episode() for _ in range(8)]
for sim in sims:
    sim.step(ACTION)
silent = socket.create_server(("127.0.0.1", 0))
world.connection._http.base_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
"""
    assert run(url, script).returncode == 0


def test_sessions_that_nobody_holds_make_room(url: str, http: httpx.Client) -> None:
    """More sessions than one client may have, one after the other."""
    before = http.get("/health").json()["sessions"]
    with kinema.connect(url) as world:
        for _ in range(60):
            world.start_episode().step([1.0, 1.5])
        assert http.get("/health").json()["sessions"] - before <= 2


def test_an_interrupted_step_is_not_the_answer_of_the_next(url: str, monkeypatch: Any) -> None:
    with kinema.connect(url) as world:
        sim = world.start_episode()
        sim.step([1.0, 1.5])
        stream = sim._session._stream
        assert stream is not None
        receive = stream.recv

        def interrupted(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(stream, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sim.step([1.0, 1.5])
        monkeypatch.setattr(stream, "recv", receive)
        assert sim.look().frame is not None
        assert sim.num_steps == 2


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """The address of a program that answers each connection with the same bytes, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(data)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def http_answer(status: str, kind: str, body: str, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


FOREIGN = {
    "a page": (http_answer("200 OK", "text/html", "<title>Router</title>"), "got 200 OK, text/html.*Router"),
    "another JSON": (http_answer("200 OK", "application/json", '{"name": "x"}'), "got 200 OK.*fps"),
    "a list": (http_answer("200 OK", "application/json", "[]"), r"expected WorldInfo.*'\[\]'"),
    "half of it": (http_answer("200 OK", "application/json", '{"name": '), "expected WorldInfo"),
    "nothing": (http_answer("200 OK", "application/json", ""), "expected WorldInfo"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "got 204 No Content"),
    "binary": (http_answer("200 OK", "image/png", "\x00\x01"), "got 200 OK, image/png"),
    "a redirect": (
        http_answer("302 Found", "text/html", "", "Location: https://example.org/v1/world\r\n"),
        "redirects to https://example.org; connect to that address",
    ),
    "no such page": (http_answer("404 Not Found", "text/html", "<h1>nginx</h1>"), "404 Not Found.*nginx"),
    "a password": (http_answer("401 Unauthorized", "text/html", "<h1>Log in"), "401 Unauthorized.*Log in"),
    "broken": (http_answer("500 Internal Server Error", "text/plain", "oops"), "500 Internal.*oops"),
    "another program's refusal": (http_answer("422 X", "application/json", '{"detail": [1]}'), "got 422 X"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be reached.*see whether `kinema serve` runs there"),
    "silence": (b"", "cannot be reached"),
    "a compressed lie": (
        http_answer("200 OK", "application/json", "abc", "Content-Encoding: gzip\r\n"),
        "cannot be reached",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_program_is_named(name: str) -> None:
    data, message = FOREIGN[name]
    with answering(data) as url, pytest.raises(ServerError, match=message):
        kinema.connect(url, timeout=10)


NO_ADDRESS = "127.0.0.1:8000|localhost|| |http://|http://a:99999|http://a:0|ftp://there|ws://a|http://\0|//x"


@pytest.mark.parametrize("url", NO_ADDRESS.split("|"))
def test_no_address(url: Any) -> None:
    with pytest.raises(ServerError, match=r"is no address.*such as http://127\.0\.0\.1:8000"):
        kinema.connect(url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token": "é"}, "token: a character of it cannot be sent"),
        ({"token": "a\nb"}, "token: a character of it cannot be sent"),
        ({"timeout": 0}, "timeout=0: it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout=nan"),
    ],
)
def test_no_token_or_timeout(url: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        kinema.connect(url, **arguments)


def test_a_link_with_a_token_or_a_slash(url: str) -> None:
    for address in (f"{url}/", f" {url}\n", f"{url}/#token=anything", url.upper().replace("HTTP", "http")):
        with kinema.connect(address) as world:
            world.start_episode().step([1.0, 1.5])


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(url: str, monkeypatch: Any) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "WS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with kinema.connect(url) as world:
        world.start_episode().step([1.0, 1.5])


def test_a_proxy_that_cannot_be_used(monkeypatch: Any) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:9")
    with pytest.raises(ServerError, match="no connection can be made"):
        kinema.connect("http://robot.example:8000")


@contextlib.contextmanager
def pretending(url: str, lies: dict[str, Any]) -> Iterator[RemoteWorld]:
    """A world at a server that passes requests on to a real one and answers some of them wrongly."""
    app = FastAPI()

    @app.websocket("/{path:path}")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_text()
        lie = lies["stream"]
        await (socket.send_text if isinstance(lie, str) else socket.send_bytes)(lie)
        await socket.receive()

    @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def answer(path: str, request: Request) -> Response:
        async with httpx.AsyncClient(base_url=url) as client:
            real = await client.request(
                request.method,
                f"/{path}",
                content=await request.body(),
                params=request.query_params,
                headers={"Content-Type": "application/json"},
            )
        lie = lies.get(f"{request.method} {path.rpartition('/')[2]}")
        status = real.status_code if lie is None else 200
        return Response(real.content if lie is None else lie, status, media_type="application/json")

    with (
        bind("127.0.0.1", 0) as listener,
        in_thread(make_server(app), listener),
        kinema.connect(f"http://127.0.0.1:{listener.getsockname()[1]}") as world,
    ):
        yield world


def head(**changes: Any) -> bytes:
    state = {"session": "x", "num_steps": 1, "num_rewindable": 1, "seed": 0, "num_denoising_steps": 1}
    state |= {"trust": 1.0, "proprio": None, "pictures": []} | changes
    text = json.dumps(state).encode()
    return len(text).to_bytes(4, "little") + text


@pytest.mark.parametrize(
    "lie",
    [
        "a text",
        b"",
        b"\x01",
        b"\xff\xff\xff\xff",
        b"\x02\x00\x00\x00[]",
        b"\x04\x00\x00\x00null",
        b"\x02\x00\x00\x00{}",
        head(num_steps="many"),
        head(pictures=[{"camera": "x", "is_beside": False, "height": 2, "width": 2, "size": 12}]),
        head(pictures=[{"camera": "x", "is_beside": False, "height": -1, "width": 2, "size": 0}]),
        head(error="no status"),
    ],
)
def test_a_stream_that_is_not_kinemas(url: str, lie: Any) -> None:
    with pretending(url, {"stream": lie}) as world:
        sim = world.start_episode()
        with pytest.raises(ServerError, match="expected a step from `kinema serve`, got"):
            sim.step([1.0, 1.5])
        assert sim.num_steps == 0


@pytest.mark.parametrize("lie", [b"", b"[]", b"<html>", b'{"states": []}', b'{"sessions": [1]}'])
def test_answers_that_are_not_kinemas(url: str, lie: bytes) -> None:
    paths = (
        "POST sessions",
        "POST fork",
        "POST steps",
        "POST plan",
        "POST infer",
        "GET pictures",
        "POST rewind",
    )
    action = np.ones((2, 2), np.float32)
    with kinema.connect(url) as real:
        futures = real.start_episode().fork(2)
        frames = real.start_episode().pictures()
        assert isinstance(frames, np.ndarray)
        with pretending(url, dict.fromkeys(paths, lie)) as world:
            futures.world = sim_world = world
            for session in futures._sessions:
                session._connection = world.connection
            for ask in (
                lambda: sim_world.start_episode(),
                lambda: futures.fork(1),
                lambda: futures.step(action),
                lambda: futures.rewind(1),
                lambda: futures.pictures(0),
                lambda: sim_world.infer(frames),
            ):
                with pytest.raises(ServerError, match=r"expected .* from `kinema serve`, got"):
                    ask()


@pytest.mark.parametrize(
    "call",
    [
        lambda world, sim: world.start(np.zeros((32, 32, 3), np.uint8)),
        lambda world, sim: world.start(np.zeros((2, 32, 32, 4), np.uint8)),
        lambda world, sim: world.start(np.zeros((2, 32, 32, 3), np.uint8), np.full((1, 2), np.nan)),
        lambda world, sim: world.start(np.zeros((2, 32, 32, 3), np.uint8), np.array(["abc"])),
        lambda world, sim: sim.step("abc"),
        lambda world, sim: sim.step([[1.0], [2.0, 3.0]]),
        lambda world, sim: sim.step([np.inf, 0]),
        lambda world, sim: sim.rewind(-1),
        lambda world, sim: sim.plan(state={"dot": object()}),
        lambda world, sim: sim.plan(episode=0, row=1, max_seconds=float("nan")),
        lambda world, sim: sim.plan(episode=0, row=1, candidats=3),
        lambda world, sim: sim.change(seed=-1),
    ],
)
def test_arguments_that_do_not_fit(url: str, call: Any) -> None:
    with kinema.connect(url) as world:
        sim = world.start_episode()
        sim.step([1.0, 1.5])
        with pytest.raises(WorldError):
            call(world, sim)
        assert sim.step([1.0, 1.5]).frame is not None
        assert sim.num_steps == 2


def test_arrays_of_any_order_are_sent_as_they_are(url: str) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    with kinema.connect(url) as world:
        turned = world.start(frames[::-1, ::-1][::-1, ::-1], np.ones((2, 2))[::-1])
        plain = world.start(frames, np.ones((2, 2)))
        np.testing.assert_array_equal(turned.look().frame, plain.look().frame)
        state = {"horizon": np.int64(2), "candidates": 4, "iterations": 1, "max_seconds": np.float32(20)}
        assert turned.plan(episode=0, row=4, **state).shape == (2, 2)


def test_after_close_it_says_so(url: str) -> None:
    world = kinema.connect(url)
    sim = world.start_episode()
    world.close()
    world.close()
    for call in (world.start_episode, sim.look, lambda: sim.fork(2)):
        with pytest.raises(ServerError, match=r"this connection was closed|no such session"):
            call()
    sim.close()
