"""``kinema mcp``: a world as tools for a language model, over stdio or HTTP (Model Context Protocol)."""

import asyncio
import dataclasses
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from pydantic import ValidationError

from kinema.serve.limits import Limits, Refusal
from kinema.serve.tools import Tools
from kinema.types import KinemaError

if TYPE_CHECKING:
    from kinema.serve.service import Service
    from kinema.serve.workbench import Workbench

INSTRUCTIONS = """\
A learned simulator of a robot's world. Begin with list_worlds, then start a session. look shows where you
are; imagine tries several action sequences at once in the simulator and costs nothing; compare says which
of those futures ends nearest to a goal; plan lets a planner search for a sequence; act carries a sequence
out in the real environment, where the session has one. The simulator is good for some tens of steps: imagine
a little, act a little, look again. Low trust says that a future has left the recorded world. The first call
waits some seconds until the world is loaded."""
MAX_PROBLEMS = 3
"""Problems of the arguments that one error names."""
LAST_WORDS_SECONDS = 1.0
"""Seconds to answer open calls before a program that cannot load its world ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class McpConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")] = ""
    """A bundled world (by default the first), a folder, or a Hub id."""
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
    """Advanced: limits on clients. The defaults suit most servers."""


class ToolServer(MCPServer):
    """The tools of a workbench that ``ready`` waits for, with errors that a model can act on."""

    def __init__(self, ready: "Callable[[], Awaitable[Workbench]]"):
        made = []
        for function, annotations in Tools(ready).all:
            tool = Tool.from_function(function, annotations=annotations)
            tool.parameters["additionalProperties"] = False
            made.append(tool)
        super().__init__(
            "kinema", version=version("kinema"), instructions=INSTRUCTIONS, tools=made, log_level="WARNING"
        )
        self._arguments = {tool.name: list(tool.parameters["properties"]) for tool in made}

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        expected = self._arguments.get(name)
        if expected is None:
            raise ToolError(f"no tool {name!r}; there are {', '.join(self._arguments)}")
        unknown = ", ".join(key for key in arguments if key not in expected)
        if unknown:
            raise ToolError(f"{name}: no argument {unknown}; it takes {', '.join(expected) or 'none'}")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(error, UnexpectedToolError) and not isinstance(cause, (KinemaError, Refusal)):
                raise
            raise ToolError(explain(cause or error)) from cause


def explain(error: BaseException) -> str:
    """Say an error in one line, with the next thing to do."""
    if isinstance(error, ValidationError):
        problems: dict[str, str] = {}
        for problem in error.errors(include_url=False, include_input=False):
            # Alternatives of a union are named in the location, as in goal.state.block.list[float].0.
            place = [str(part) for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
            problems.setdefault(".".join(place), problem["msg"])
        return "; ".join(f"{place}: {message}" for place, message in [*problems.items()][:MAX_PROBLEMS])
    if isinstance(error, Refusal) and error.reason == "session":
        return f"{error} with start, and use the session that it answers"
    return str(error)


def serve_mcp(config: McpConfig) -> None:
    """Answer until the client goes (stdio) or Ctrl-C (HTTP)."""
    if config.transport == "stdio":
        _serve_stdio(config)
    else:
        asyncio.run(_serve_http(config))


def make_mcp(service: "Service") -> MCPServer:
    """Make the tools of a service that is started."""
    from kinema.serve.workbench import Workbench

    bench = Workbench(service)

    async def ready() -> "Workbench":
        return bench

    return ToolServer(ready)


def _load(config: McpConfig) -> "Service":
    from kinema.serve.command import ServeConfig, make_service

    return make_service(
        ServeConfig(world=config.world, data=config.data, device=config.device, limits=config.limits)
    )


def _serve_stdio(config: McpConfig) -> None:
    """Answer in a thread, at once, while this one loads the world, which the tools wait for.

    The thread is a daemon: one that waits for standard input cannot be ended, and a program whose world
    cannot be loaded has to end.
    """
    loading: Future[Service] = Future()
    loading.set_running_or_notify_cancel()  # A client that goes early does not cancel it.
    is_answering = threading.Event()

    def answer() -> None:
        try:
            asyncio.run(_answer_stdio(loading, is_answering))
        finally:
            is_answering.set()

    thread = threading.Thread(target=answer, name="kinema-mcp", daemon=True)
    thread.start()
    is_answering.wait()
    # The protocol has a copy of standard output. Whatever is printed from here on would be taken for JSON,
    # even when Python ends.
    sys.stdout = sys.stderr
    try:
        loading.set_result(_load(config))
    except BaseException as error:
        loading.set_exception(error)
        thread.join(LAST_WORDS_SECONDS)
        raise
    thread.join()


async def _answer_stdio(loading: "Future[Service]", is_answering: threading.Event) -> None:
    async with _tools(asyncio.wrap_future(loading)) as server:
        asyncio.get_running_loop().call_soon(is_answering.set)
        await server.run_stdio_async()


async def _serve_http(config: McpConfig) -> None:
    from kinema.serve.command import find_token
    from kinema.serve.guard import LOOPBACK, Guard
    from kinema.serve.metrics import Metrics
    from kinema.serve.server import bind, make_server

    token = find_token(config.host)
    with bind(config.host, config.port) as listener:
        loading = asyncio.create_task(asyncio.to_thread(_load, config))
        async with _tools(loading) as tools:
            app = tools.streamable_http_app(host=config.host)
            hosts = (*LOOPBACK, config.host)

            def stop() -> None:
                if loading.done() and not loading.cancelled() and loading.exception() is None:
                    loading.result().stop()

            guarded = Guard(app, limits=config.limits, metrics=Metrics(), token=token, hosts=hosts)
            server = make_server(guarded, stop)

            def end(loaded: "asyncio.Task[Service]") -> None:
                server.should_exit = loaded.cancelled() or loaded.exception() is not None

            loading.add_done_callback(end)
            address = f"http://{config.host}:{listener.getsockname()[1]}/mcp"
            print(f"tools of world '{config.world}' at {address}", flush=True)
            if token is not None:
                print(f"token: {token}", flush=True)
            await server.serve(sockets=[listener])
        if loading.done():
            loading.result()


@asynccontextmanager
async def _tools(loading: "asyncio.Future[Service]") -> AsyncIterator[ToolServer]:
    """Make tools that wait for a service, which is closed at the end."""

    async def open_bench() -> "Workbench":
        try:
            service = await loading
        except Exception as error:
            raise KinemaError(f"the world cannot be loaded: {error}") from error
        from kinema.serve.workbench import Workbench

        await service.start()
        return Workbench(service)

    bench = asyncio.create_task(open_bench())
    try:
        yield ToolServer(lambda: asyncio.shield(bench))
    finally:
        is_open = loading.done() and not loading.cancelled() and loading.exception() is None
        bench.cancel()
        await asyncio.gather(bench, return_exceptions=True)
        if is_open:
            await loading.result().close()
