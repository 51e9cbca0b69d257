"""A real server on a free port of this machine, in a thread."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from kinema.data import Dataset
from kinema.serve.app import create_app
from kinema.serve.limits import Limits
from kinema.serve.server import bind, make_server
from kinema.serve.service import Service
from kinema.simulation.world import World

from ..worlds import random_world, write_exact_world


def small_service(folder: Path, limits: Limits | None = None, world: World | None = None) -> Service:
    """A tiny world with two recorded episodes."""
    root = folder / "recorded"
    if not root.is_dir():
        write_exact_world(root, lengths=[12, 20])
    return Service(world or random_world(), Dataset.open(root), limits or Limits())


@contextlib.contextmanager
def running(service: Service, *, token: str | None = None, public_url: str | None = None) -> Iterator[str]:
    """The address of a server while it runs."""
    server = make_server(create_app(service, token=token, public_url=public_url), service.stop)
    with bind("127.0.0.1", 0) as listener, in_thread(server, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def in_thread(server: uvicorn.Server, listener: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        thread.join(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
