"""The HTTP interface of a world. ``/docs`` shows it; ``schema`` says what requests and answers hold."""

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from kinema.model.world import WorldError
from kinema.serve import images, schema
from kinema.serve.guard import LOOPBACK, Guard, client_of
from kinema.serve.limits import Refusal
from kinema.serve.service import Service
from kinema.serve.stream import serve_stream

PAGE = Path(__file__).parent / "page"


class Problem(BaseModel):
    """Why a request was refused, and what to do."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is not JSON."},
    401: {"model": Problem, "description": "A token is needed."},
    403: {"model": Problem, "description": "Asked for under another name or from a foreign page."},
    404: {"model": Problem, "description": "There is no such session or episode."},
    405: {"model": Problem, "description": "There is no such method."},
    408: {"model": Problem, "description": "The request arrived too slowly."},
    413: {"model": Problem, "description": "The request is too large."},
    422: {"model": Problem, "description": "What was sent does not fit; the answer says where."},
    429: {"model": Problem, "description": "Too much from this client; see Retry-After."},
    503: {"model": Problem, "description": "The server is full; see Retry-After."},
}


def create_app(service: Service, *, token: str | None = None, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The application of one world; ``token`` is what every request has to bring, where it is given."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title=f"kinema: {service.world.name}",
        version=version("kinema"),
        description=__doc__ or "",
        lifespan=lifespan,
        responses=REFUSALS,
        redirect_slashes=False,
    )
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics, token=token, hosts=hosts)
    _explain_mistakes(app, service)
    _add_server_routes(app, service)
    _add_session_routes(app, service)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def _explain_mistakes(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        service.metrics.refusals.labels(refusal.reason).inc()
        return JSONResponse({"detail": refusal.message}, status_code=refusal.status, headers=refusal.headers)

    @app.exception_handler(WorldError)
    async def does_not_fit(_: Request, error: WorldError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(RequestValidationError)
    async def is_malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # Not what was sent: it may be large, or a number that JSON does not have.
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        detail = "; ".join(problems).encode("utf-8", "replace").decode()[:2000]
        return JSONResponse({"detail": detail}, status_code=422)

    @app.exception_handler(404)
    async def is_nowhere(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            {"detail": "no such address; /docs lists those that there are"}, status_code=error.status_code
        )


def _add_server_routes(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/health", tags=["server"])
    async def health() -> schema.Health:
        """Whether the server works."""
        return schema.Health(
            status="ok",
            world=service.world.name,
            sessions=len(service.sessions),
            capacity=service.sessions.capacity,
        )

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/world", tags=["world"])
    async def world() -> schema.WorldInfo:
        """The world: its cameras, its actions, the limits of this server."""
        return service.describe()

    @app.get("/v1/episodes", tags=["world"])
    async def episodes(
        first: Annotated[int, Query(ge=0, le=2**31)] = 0, num: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> schema.Episodes:
        """Recorded episodes that sessions may begin in."""
        return service.list_episodes(first, num)

    @app.post("/v1/infer", tags=["world"])
    async def infer(request: schema.InferRequest) -> schema.Inferred:
        """Inverse dynamics: the actions between pictures."""
        return schema.Inferred(actions=(await service.infer(request)).tolist())


def _add_session_routes(app: FastAPI, service: Service) -> None:
    sessions = service.sessions

    @app.post("/v1/sessions", tags=["sessions"], status_code=201)
    async def start(body: schema.Start, request: Request) -> schema.State:
        """Begin a session, in a recorded episode or from pictures."""
        session = await service.open(body, client_of(request.scope))
        return service.state(session, body.format)

    @app.post("/v1/steps", tags=["sessions"])
    async def step_together(body: schema.TogetherRequest) -> schema.States:
        """Advance several sessions by one action each."""
        if len(body.actions) != len(body.sessions):
            raise Refusal(
                422,
                f"{len(body.sessions)} sessions need as many actions, got {len(body.actions)}",
                reason="step",
            )
        async with AsyncExitStack() as stack:
            held = await service.using(stack, body.sessions)
            await service.step(held, body.actions, decode=body.format != "none")
            return schema.States(states=[service.state(session, body.format) for session in held])

    @app.get("/v1/sessions/{session_id}", tags=["sessions"])
    async def look(session_id: str, format: schema.Kind = "jpeg") -> schema.State:
        """The session as it is."""
        async with sessions.use(session_id) as session:
            if format != "none":
                await service.look(session)
            return service.state(session, format)

    @app.delete("/v1/sessions/{session_id}", tags=["sessions"], status_code=204)
    async def close(session_id: str) -> Response:
        """Close the session."""
        sessions.close(session_id)
        return Response(status_code=204)

    @app.post("/v1/sessions/{session_id}/step", tags=["sessions"])
    async def step(session_id: str, body: schema.StepRequest) -> schema.State:
        """Advance by one action."""
        async with sessions.use(session_id) as session:
            await service.step([session], [body.action], decode=body.format != "none")
            return service.state(session, body.format)

    @app.post("/v1/sessions/{session_id}/steps", tags=["sessions"])
    async def steps(session_id: str, body: schema.StepsRequest) -> schema.States:
        """Advance by many actions. Others step in between as if each were a request of its own."""
        if len(body.actions) > service.limits.max_actions:
            raise Refusal(
                422,
                f"{len(body.actions)} actions, at most {service.limits.max_actions} at once",
                reason="actions",
            )
        service.check_actions(body.actions, (len(body.actions), service.world.action_dim))
        states = []
        async with sessions.use(session_id) as session:
            for index, action in enumerate(body.actions):
                is_shown = index == len(body.actions) - 1 or not body.only_last
                await service.step([session], [action], decode=is_shown and body.format != "none")
                if is_shown:
                    states.append(service.state(session, body.format))
        return schema.States(states=states)

    @app.post("/v1/sessions/{session_id}/rewind", tags=["sessions"])
    async def rewind(session_id: str, body: schema.RewindRequest) -> schema.State:
        """Undo the last steps: what follows is as if they had not been made."""
        async with sessions.use(session_id) as session:
            await service.rewind(session, body.num_steps)
            return service.state(session, body.format)

    @app.post("/v1/sessions/{session_id}/fork", tags=["sessions"], status_code=201)
    async def fork(session_id: str, body: schema.ForkRequest, request: Request) -> schema.Opened:
        """Open futures that go on from here."""
        async with sessions.use(session_id) as session:
            children = await service.fork(
                session, body.num, same_noise=body.same_noise, client=client_of(request.scope)
            )
        return schema.Opened(sessions=[child.id for child in children])

    @app.post("/v1/sessions/{session_id}/plan", tags=["sessions"])
    async def plan(session_id: str, body: schema.PlanRequest) -> schema.Planned:
        """Search for actions that lead from here to a goal. The session stays where it is; others, and it,
        step meanwhile."""
        return await service.plan(session_id, body)

    @app.post("/v1/sessions/{session_id}/act", tags=["sessions"])
    async def act(session_id: str, body: schema.ActRequest) -> schema.Acted:
        """What the policy that was cloned from the recordings would do next. The session stays where it
        is."""
        async with sessions.use(session_id) as session:
            return schema.Acted(actions=(await service.act(session, body)).tolist())

    @app.patch("/v1/sessions/{session_id}", tags=["sessions"])
    async def change(session_id: str, body: schema.ChangeRequest) -> schema.State:
        """Other noise, or another number of network calls for a frame, from here on."""
        async with sessions.use(session_id) as session:
            await service.change(session, body)
            return service.state(session, "none")

    @app.get("/v1/sessions/{session_id}/frame", tags=["sessions"], response_class=Response)
    async def frame(session_id: str, camera: str | None = None, format: images.Format = "jpeg") -> Response:
        """The present picture as a file; the first camera's where none is named."""
        async with sessions.use(session_id) as session:
            await service.look(session)
            pictures = images.by_camera(session.step.frame, service.world)
        name = camera if camera is not None else next(iter(pictures), None)
        if name not in pictures:
            raise Refusal(404, f"no such camera; there are {', '.join(pictures) or 'none'}", reason="camera")
        return Response(images.encode(pictures[name], format), media_type=images.MEDIA_TYPES[format])

    @app.get("/v1/sessions/{session_id}/pictures", tags=["sessions"])
    async def pictures(
        session_id: str,
        first: Annotated[int, Query(ge=0, le=2**31)] = 0,
        num: Annotated[int, Query(ge=1, le=1024)] = 32,
    ) -> schema.Pictures:
        """Past pictures, oldest first, a few at a time: ask again from where the answer ends."""
        async with sessions.use(session_id) as session:
            films = await service.pictures(session, first, num)
            total = session.simulation.num_pictures
        return schema.Pictures(
            num=total,
            shape={key: list(film.shape) for key, film in films.items()},
            data={key: base64.b64encode(film.tobytes()).decode() for key, film in films.items()},
        )

    @app.get("/v1/sessions/{session_id}/video.mp4", tags=["sessions"], response_class=Response)
    async def video(session_id: str) -> Response:
        """The past pictures as a film."""
        async with sessions.use(session_id) as session:
            film = await service.video(session)
        return Response(film, media_type="video/mp4")

    @app.websocket("/v1/sessions/{session_id}/stream")
    async def stream(socket: WebSocket, session_id: str) -> None:
        await serve_stream(socket, service, session_id)
