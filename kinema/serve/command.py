"""``kinema serve``: serve a world over HTTP and WebSocket."""

import dataclasses
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from kinema.hardware.machine import leave_threads
from kinema.policies.cloned import find_clone
from kinema.serve.app import create_app
from kinema.serve.guard import LOOPBACK
from kinema.serve.limits import Limits
from kinema.serve.recordings import find_recordings
from kinema.serve.server import bind, make_server
from kinema.serve.service import Service
from kinema.simulation.world import default_world, load

TOKEN_VARIABLE = "KINEMA_TOKEN"
ANY_ADDRESS = ("0.0.0.0", "::", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")] = ""
    """A bundled world (by default the first), a folder, or a Hub id."""
    data: Path | None = None
    """Recorded episodes that sessions may begin in; by default those that the world brings."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine. Any but 127.0.0.1 needs a token: KINEMA_TOKEN in
    the environment, or one is made and printed."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    public_url: str | None = None
    """Address at which a proxy shows this server to browsers, such as https://robot.example.org."""
    proxy: tuple[str, ...] = ()
    """Addresses or networks of proxies on other machines, such as 10.0.0.0/8. Their X-Forwarded-For, and that
    of a proxy on this machine, names the client that limits count for."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """Advanced: limits on clients. The defaults suit most servers."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port}: it must be 0 to 65535")
        if self.public_url is not None:
            url = urlsplit(self.public_url)
            if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/"):
                raise ValueError(
                    f"public_url={self.public_url!r}: give the proxy's address without a path, such as "
                    "https://robot.example.org"
                )


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C."""
    token = find_token(config.host)
    service = make_service(config)
    app = create_app(service, token=token, hosts=(*LOOPBACK, config.host), public_url=config.public_url)
    with bind(config.host, config.port) as listener:
        port = listener.getsockname()[1]
        url = url_of("127.0.0.1" if config.host in ANY_ADDRESS else config.host, port)
        print(f"world '{service.world.name}' at {url}, documented at {url}/docs", flush=True)
        print(f"up to {service.sessions.capacity} sessions; Ctrl-C stops the server", flush=True)
        is_made = token is not None and TOKEN_VARIABLE not in os.environ
        if token is not None:
            print(f"token: {token if is_made else f'the one in {TOKEN_VARIABLE}'}", flush=True)
        hint = f"#token={token}" if is_made else ""
        print(f"to play in a browser: {url}/{hint}", flush=True)
        for other in others(config, port):
            print(f"from other machines: {other}/{hint}", flush=True)
        make_server(app, service.stop, proxies=config.proxy).run(sockets=[listener])


def url_of(host: str, port: int) -> str:
    """Return the address of a server, with the brackets that IPv6 needs."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def others(config: ServeConfig, port: int) -> list[str]:
    """Return the addresses for other machines: this machine's name where it listens to them, the proxy's."""
    named = [url_of(socket.gethostname(), port)] if config.host in ANY_ADDRESS else []
    return [*named, *([config.public_url.rstrip("/")] if config.public_url else [])]


def make_service(config: ServeConfig) -> Service:
    """Load the world of a configuration and its recordings. PyTorch's threads are the engine's from then on.

    Unless OMP_NUM_THREADS says how many, one processor is left to the event loop, which encodes frames and
    answers; on two cores 16 clients make 727 steps per second on one thread and 820 on two, but beside eight
    other programs 430 and 295.
    """
    num_threads = leave_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        num_threads = max(1, num_threads - 1)
    source = config.world or default_world()
    world = load(source, device=config.device)
    recordings = find_recordings(source, config.data)
    clone = find_clone(world, source)
    return Service(world, recordings, config.limits, clone=clone, num_threads=num_threads)


def find_token(host: str) -> str | None:
    """Return the token of the environment; else a new one, or None where only this machine can connect."""
    return os.environ.get(TOKEN_VARIABLE) or (None if host in LOOPBACK else secrets.token_urlsafe(24))
