"""``kinema play``: drive a world in the browser."""

import dataclasses
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import tyro

from kinema.serve.app import create_app
from kinema.serve.command import ServeConfig, make_service
from kinema.serve.server import bind, make_server

HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")] = ""
    """A bundled world (by default the first), a folder, or a Hub id."""
    data: Path | None = None
    """Recorded episodes to start from; by default those that the world brings."""
    port: int = 0
    """Port to listen at, on this machine only; 0 for any that is free."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    browser: bool = True
    """Open the page in the browser."""


def play(config: PlayConfig) -> None:
    """Serve the page of a world to this machine until Ctrl-C."""
    served = ServeConfig(world=config.world, data=config.data, port=config.port, device=config.device)
    service = make_service(served)
    if service.world.cameras and not service.num_episodes:
        raise ValueError(
            f"world '{service.world.name}' brings no recorded episode to start from: give some with --data"
        )
    with bind(HOST, config.port) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        print(f"play world '{service.world.name}' at {url} (Ctrl-C stops)", flush=True)
        if config.browser:
            # The listener is open already: a browser that is faster than the server waits for it.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        make_server(create_app(service), service.stop).run(sockets=[listener])
