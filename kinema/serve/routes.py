"""The addresses of the HTTP interface. ``/docs`` shows them, ``schema`` has their requests and answers."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket
from starlette.requests import HTTPConnection

from kinema.serve import images, schema
from kinema.serve.guard import client_of
from kinema.serve.limits import Refusal
from kinema.serve.service import Service
from kinema.serve.sessions import Session
from kinema.serve.stream import serve_stream

T = TypeVar("T")


async def service_of(connection: HTTPConnection) -> Service:
    """Return the service of the application that a request came to."""
    return connection.app.state.service


Served = Annotated[Service, Depends(service_of)]


async def hold(session_id: str, request: Request, service: Served) -> AsyncIterator[Session]:
    """Hold a session for one request; it is abandoned where the client goes before the answer."""
    try:
        async with service.sessions.use(session_id) as session:
            yield session
    finally:
        if await request.is_disconnected():
            service.sessions.abandon(session_id)


Held = Annotated[Session, Depends(hold, scope="function")]
First = Annotated[int, Query(ge=0, le=2**31)]

health = APIRouter(tags=["server"])
server = APIRouter(tags=["server"])
world = APIRouter(prefix="/v1", tags=["world"])
sessions = APIRouter(prefix="/v1", tags=["sessions"])
one = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"])
streams = APIRouter()


@health.get("/health")
async def get_health(service: Served) -> schema.Health:
    """Say that the server works."""
    return schema.Health(
        status="ok",
        world=service.world.name,
        sessions=len(service.sessions),
        capacity=service.sessions.capacity,
    )


@server.get("/metrics", response_class=Response)
async def metrics(service: Served) -> Response:
    """Count requests, steps and sessions, in the format of Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@world.get("/world")
async def get_world(service: Served) -> schema.WorldInfo:
    """Describe the world: its cameras, its actions, the limits of this server."""
    return service.describe()


@world.get("/episodes")
async def episodes(
    service: Served, first: First = 0, num: Annotated[int, Query(ge=1, le=1000)] = 100
) -> schema.Episodes:
    """List recorded episodes that sessions may begin in."""
    return service.list_episodes(first, num)


@world.post("/infer")
async def infer(body: schema.InferRequest, service: Served) -> schema.Inferred:
    """Infer the actions between frames (inverse dynamics)."""
    return schema.Inferred(actions=(await service.infer(body)).tolist())


@sessions.post("/sessions", status_code=201)
async def start(body: schema.Start, request: Request, service: Served) -> schema.State:
    """Begin a session, in a recorded episode or from frames."""
    session = await service.open(body, client_of(request))
    if await request.is_disconnected():
        service.sessions.abandon(session.id)
    return service.state(session, body.format)


@sessions.post("/steps")
async def step_together(body: schema.TogetherRequest, service: Served) -> schema.States:
    """Advance several sessions by one action each."""
    if len(body.actions) != len(body.sessions):
        raise Refusal(
            422, f"{len(body.sessions)} sessions need as many actions, got {len(body.actions)}", reason="step"
        )
    async with AsyncExitStack() as stack:
        held = await service.using(stack, body.sessions)
        await service.step(held, body.actions, decode=body.format != "none")
        return schema.States(states=[service.state(session, body.format) for session in held])


@one.get("")
async def look(session: Held, service: Served, format: schema.Kind = "jpeg") -> schema.State:
    """Show the session as it is."""
    if format != "none":
        await service.look(session)
    return service.state(session, format)


@one.delete("", status_code=204)
async def close(session_id: str, service: Served) -> Response:
    """Close the session."""
    service.sessions.close(session_id)
    return Response(status_code=204)


@one.patch("")
async def change(session: Held, body: schema.ChangeRequest, service: Served) -> schema.State:
    """Set other noise, or another number of network calls for a frame, from here on."""
    await service.change(session, body)
    return service.state(session, "none")


@one.post("/step")
async def step(session: Held, body: schema.StepRequest, service: Served) -> schema.State:
    """Advance by one action."""
    await service.step([session], [body.action], decode=body.format != "none")
    return service.state(session, body.format)


@one.post("/steps")
async def steps(session: Held, body: schema.StepsRequest, request: Request, service: Served) -> schema.States:
    """Advance by many actions. Others step in between as if each were a request of its own."""
    service.check_many(body.actions)
    states = []
    for index, action in enumerate(body.actions):
        if await request.is_disconnected():
            raise gone()
        is_shown = index == len(body.actions) - 1 or not body.only_last
        await service.step([session], [action], decode=is_shown and body.format != "none")
        if is_shown:
            states.append(service.state(session, body.format))
    if body.only_last:
        states[-1].outside |= service.world.outside(body.actions)
    return schema.States(states=states)


@one.post("/rewind")
async def rewind(session: Held, body: schema.RewindRequest, service: Served) -> schema.State:
    """Undo the last steps: later steps are as if these had not been made."""
    await service.rewind(session, body.num_steps)
    return service.state(session, body.format)


@one.post("/fork", status_code=201)
async def fork(session: Held, body: schema.ForkRequest, request: Request, service: Served) -> schema.Opened:
    """Open futures that go on from here."""
    children = await service.fork(session, body.num, same_noise=body.same_noise, client=client_of(request))
    return schema.Opened(sessions=[child.id for child in children])


@one.post("/plan")
async def plan(
    session_id: str, body: schema.PlanRequest, request: Request, service: Served
) -> schema.Planned:
    """Search for actions that lead from here to a goal. The session stays where it is, and can be used
    meanwhile."""
    return await while_connected(request, service.plan(session_id, body))


@one.post("/act")
async def act(session: Held, body: schema.ActRequest, service: Served) -> schema.Acted:
    """Choose the next actions by the policy that was cloned from the recordings. The session stays where it
    is."""
    return schema.Acted(actions=(await service.act(session, body)).tolist())


@one.get("/frame", response_class=Response)
async def frame(
    session: Held, service: Served, camera: str | None = None, format: images.Format = "jpeg"
) -> Response:
    """Send the present frame as a file; the first camera's where none is named."""
    await service.look(session)
    frames = images.by_camera(session.step.frame, service.world)
    name = camera if camera is not None else next(iter(frames), None)
    if name not in frames:
        raise Refusal(404, f"no such camera; there are {', '.join(frames) or 'none'}", reason="camera")
    return Response(images.encode(frames[name], format), media_type=images.MEDIA_TYPES[format])


@one.get("/frames")
@one.get("/pictures", include_in_schema=False)  # As it was called before.
async def past_frames(
    session: Held, service: Served, first: First = 0, num: Annotated[int, Query(ge=1, le=1024)] = 32
) -> schema.PastFrames:
    """Send past frames, oldest first, a few at a time: ask again from where the answer ends."""
    frames = await service.past_frames(session, first, num)
    return schema.PastFrames(
        num=session.simulation.num_pictures,
        shape={key: list(each.shape) for key, each in frames.items()},
        data={key: base64.b64encode(each.tobytes()).decode() for key, each in frames.items()},
    )


@one.get("/video.mp4", response_class=Response)
async def video(session: Held, request: Request, service: Served) -> Response:
    """Send the past frames as a video."""
    return Response(await while_connected(request, service.video(session)), media_type="video/mp4")


@streams.websocket("/v1/sessions/{session_id}/stream")
async def stream(socket: WebSocket, session_id: str, service: Served) -> None:
    await serve_stream(socket, service, session_id)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work that leaves no trace; it is cancelled where the client goes. Raises Refusal (499)."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise gone()
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def gone() -> Refusal:
    """Make the refusal of a request whose client has gone; it is counted, and nobody reads it."""
    return Refusal(499, "the client has gone", reason="gone")
