"""``kinema mcp``: a world as tools for a language model, over stdio or HTTP (Model Context Protocol)."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from mcp.server.mcpserver import MCPServer

from kinema.serve.command import ServeConfig, bind, find_token, make_server, make_service
from kinema.serve.guard import LOOPBACK, Guard
from kinema.serve.limits import Limits
from kinema.serve.service import Service
from kinema.serve.tools import Tools

INSTRUCTIONS = """\
A learned simulator of a robot's world. Begin with list_worlds, then start a session. look shows where you
are; imagine tries several action sequences at once in the simulator and costs nothing; compare tells which
of those futures comes nearest to a goal; plan lets a planner search for a sequence; act carries a sequence
out in the real environment, where the session has one. The simulator is good for some tens of steps: imagine
a little, act a little, look again. Low trust says that a future has left what the simulator knows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class McpConfig:
    world: Annotated[str, tyro.conf.Positional] = "pusht"
    """A bundled world, a folder, or a Hub id."""
    data: Path | None = None
    """Recorded episodes to start from; by default those that the world brings."""
    transport: Literal["stdio", "http"] = "stdio"
    """stdio for a program that starts this command itself; http for others, at /mcp."""
    host: str = "127.0.0.1"
    """Address to listen at over HTTP; any but this machine's own needs the token of KINEMA_TOKEN."""
    port: int = 8001
    """Port to listen at over HTTP; 0 for any that is free."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """What clients may ask for."""


def serve_mcp(config: McpConfig) -> None:
    """Answer until the client goes (stdio) or Ctrl-C (HTTP)."""
    service = make_service(
        ServeConfig(world=config.world, data=config.data, device=config.device, limits=config.limits)
    )
    asyncio.run(_serve_stdio(service) if config.transport == "stdio" else _serve_http(service, config))


def make_mcp(service: Service) -> MCPServer:
    """The tools of a world; the service has to be started."""
    server = MCPServer("kinema", instructions=INSTRUCTIONS, log_level="WARNING")
    for tool in Tools(service).all:
        server.tool()(tool)
    return server


async def _serve_stdio(service: Service) -> None:
    await service.start()
    try:
        await make_mcp(service).run_stdio_async()
    finally:
        await service.close()


async def _serve_http(service: Service, config: McpConfig) -> None:
    token = find_token(config.host)
    hosts = (*LOOPBACK, config.host)
    app = make_mcp(service).streamable_http_app(host=config.host)
    guard = Guard(app, limits=config.limits, metrics=service.metrics, token=token, hosts=hosts)
    with bind(config.host, config.port) as listener:
        print(
            f"tools of world '{service.world.name}' at http://{config.host}:{listener.getsockname()[1]}/mcp"
        )
        if token is not None:
            print(f"token: {token}", flush=True)
        await service.start()
        try:
            await make_server(guard).serve(sockets=[listener])
        finally:
            await service.close()
