"""The application of HTTP and WebSocket: routes, errors, documentation, and the page of ``kinema play``."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from kinema.model.world import WorldError
from kinema.serve import routes
from kinema.serve.guard import LOOPBACK, Guard
from kinema.serve.limits import Refusal
from kinema.serve.service import Service

PAGE = Path(__file__).parent / "page"
OWN_ONLY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Content security policy of ``/docs``: a browser asks no other server than this one."""
BEARER = HTTPBearer(auto_error=False, description="The token that the server printed, or KINEMA_TOKEN.")
"""For readers of the documentation only: ``Guard`` checks the token."""


class Problem(BaseModel):
    """Why a request was refused, and what to do."""

    detail: str


REFUSALS = {
    400: "The request is not JSON.",
    401: "A token is needed.",
    403: "Asked for under another name or from a foreign page.",
    404: "There is no such session or episode.",
    405: "There is no such method.",
    408: "The request arrived too slowly.",
    413: "The request is too large.",
    422: "The request does not fit; the answer says where.",
    429: "Too much from this client; see Retry-After.",
    503: "The server is full or closing; see Retry-After.",
}


def create_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Sequence[str] = LOOPBACK,
    public_url: str | None = None,
) -> FastAPI:
    """Make the application of one world. Every request has to bring the ``token`` where one is given."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title=f"kinema: {service.world.name}",
        version=version("kinema"),
        description="Sessions of a simulated world. From Python: kinema.connect(url).",
        lifespan=lifespan,
        responses={code: {"model": Problem, "description": text} for code, text in REFUSALS.items()},
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(
        Guard,
        limits=service.limits,
        metrics=service.metrics,
        token=token,
        hosts=hosts,
        public_url=public_url,
    )
    app.include_router(routes.health)
    app.include_router(routes.streams)
    for router in (routes.server, routes.world, routes.sessions, routes.one):
        app.include_router(router, dependencies=[] if token is None else [Depends(BEARER)])
    _explain_errors(app)
    _add_pages(app)
    return app


def _explain_errors(app: FastAPI) -> None:
    metrics = app.state.service.metrics

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        metrics.refusals.labels(refusal.reason).inc()
        return refusal.response()

    @app.exception_handler(WorldError)
    async def does_not_fit(_: Request, error: WorldError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(OSError)
    async def cannot_read_or_write(_: Request, error: OSError) -> JSONResponse:
        # Without the path, which is the server's own.
        detail = f"the server could not read or write a file ({error.strerror or 'error'}); tell who runs it"
        return JSONResponse({"detail": detail}, status_code=503)

    @app.exception_handler(RequestValidationError)
    async def is_malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input: it may be large, or a number that JSON does not have.
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        detail = "; ".join(problems).encode("utf-8", "replace").decode()[:2000]
        return JSONResponse({"detail": detail}, status_code=422)

    @app.exception_handler(404)
    async def is_nowhere(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"detail": "no such address; /docs lists all"}, status_code=error.status_code)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        shown: dict[str, Any] = {"validatorUrl": None, "persistAuthorization": True}
        html = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/page/swagger/swagger-ui-bundle.js",
            swagger_css_url="/page/swagger/swagger-ui.css",
            swagger_favicon_url="data:,",
            swagger_ui_parameters=shown,
        )
        html.headers["Content-Security-Policy"] = OWN_ONLY
        return html

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
