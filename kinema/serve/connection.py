"""The connection to a server: requests over HTTP, a WebSocket for each session, errors for wrong answers."""

import json
import math
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs

import httpx
import numpy as np
from pydantic import BaseModel
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_stream

from kinema.serve.guard import LOOPBACK
from kinema.serve.messages import StreamError, StreamState, to_json, unpack
from kinema.types import ServerError, WorldError

CLOSE_SECONDS = 2.0
"""Seconds to wait for the answer when a session is closed: nobody waits long for a server that is gone."""
EXAMPLE = "give the address that `kinema serve` prints, such as http://127.0.0.1:8000"

Answer = TypeVar("Answer", bound=BaseModel)


class Connection:
    """Requests to one server, and the sessions that were opened with them."""

    def __init__(self, url: str, token: str | None, timeout: float):
        """Raises ServerError: the address, the token or the timeout is not valid."""
        address, token = _parse_address(url, token)
        if not timeout > 0 or not math.isfinite(timeout):
            raise ServerError(f"timeout={timeout}: it must be a number of seconds above 0")
        self.url, self.timeout = str(address).rstrip("/"), timeout
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.use_proxy = address.host not in LOOPBACK
        """True where the environment may name a proxy: for servers on other machines."""
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=self.headers, timeout=timeout, trust_env=self.use_proxy
            )
        except (ValueError, OSError, ImportError) as error:
            raise ServerError(f"{self.url}: no connection can be made ({error})") from error
        self._sessions: dict[str, Session] = {}
        self._dropped: deque[Session] = deque()

    def ask(
        self,
        answer: type[Answer],
        method: str,
        path: str,
        body: Any = None,
        *,
        extra_seconds: float = 0.0,
        **params: Any,
    ) -> Answer:
        """Send one request and return its answer, checked.

        Raises:
            WorldError: the server says that something does not fit the world.
            ServerError: the server cannot be reached, refuses, or answers something else.
        """
        response = self.request(method, path, body, timeout=self.timeout + extra_seconds, **params)
        with self.expecting(answer.__name__, _describe(response)):
            return answer.model_validate_json(response.content)

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float | None = None, **params: Any
    ) -> httpx.Response:
        """Send one request and return its raw answer. Raises as ``ask`` does."""
        if self._http.is_closed:
            raise ServerError(f"{self.url}: this connection was closed; call kinema.connect again")
        seconds = timeout or self.timeout
        content = None if body is None else to_json(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(
                method, path, content=content, params=params, headers=headers, timeout=seconds
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise ServerError(f"{self.url}: no answer to {method} {path} within {seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(
                f"{self.url}: the server cannot be reached ({error or type(error).__name__}); see whether "
                "`kinema serve` runs there"
            ) from error
        if not response.is_success:
            raise self._refusal(response)
        return response

    def _refusal(self, response: httpx.Response) -> Exception:
        if response.has_redirect_location:
            location = response.headers["location"].removesuffix(response.request.url.path)
            detail = f"it redirects to {location}; connect to that address"
            return ServerError(f"{self.url}: {detail}", response.status_code)
        with suppress(ValueError, KeyError, TypeError):
            detail = json.loads(response.content)["detail"]
            if isinstance(detail, str):
                return refusal(response.status_code, detail, self.url)
        got = _describe(response)
        detail = f"expected an answer of `kinema serve`, got {got}; another program answers there"
        return ServerError(f"{self.url}: {detail}", response.status_code)

    @contextmanager
    def expecting(self, what: str, got: str) -> Iterator[None]:
        """Raise ServerError for an answer that is not of the expected form."""
        try:
            yield
        except ServerError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, struct.error) as error:
            problem = " ".join(str(error).split())[:200]
            raise ServerError(
                f"{self.url}: expected {what} from `kinema serve`, got {got}; another program answers there, "
                f"or another version of kinema ({problem})"
            ) from error

    def open(self, answer: type[Answer], path: str, body: Any) -> Answer:
        """Send a request that opens sessions, after closing those that nobody holds any more."""
        while self._dropped:
            self.close_session(self._dropped.popleft())
        return self.ask(answer, "POST", path, body)

    def session(self, session_id: str) -> "Session":
        """Register a session that was just opened: it is closed with this connection."""
        session = self._sessions[session_id] = Session(self, session_id)
        return session

    def drop(self, session: "Session") -> None:
        """Close a session before the next one is opened: garbage collection may not wait for an answer."""
        self._dropped.append(session)

    def close_session(self, session: "Session", *, is_gone: bool = False) -> bool:
        """Close a session; return False if the server ``is_gone`` and its sessions with it."""
        if self._sessions.pop(session.id, None) is None:
            return True
        if not is_gone:
            try:
                self.request("DELETE", f"/v1/sessions/{session.id}", timeout=CLOSE_SECONDS)
            except ServerError as error:
                is_gone = error.status is None  # Else the server closed it already.
            except WorldError:
                pass
        session.hang_up(is_gone=is_gone)
        return not is_gone

    def close(self) -> None:
        """Close every session that was opened here, then the connection."""
        is_gone = self._http.is_closed
        for session in list(self._sessions.values()):
            is_gone = not self.close_session(session, is_gone=is_gone)
        self._http.close()


class Session:
    """One session at a server; its WebSocket opens with the first message, and anew after a failure."""

    def __init__(self, connection: Connection, session_id: str):
        self.id = session_id
        self._connection = connection
        self._lock = threading.Lock()
        self._stream: ClientConnection | None = None
        # Not a generator: Python would close one after its threads have ended, and closing waits for them.
        self._stack = ExitStack()

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}"

    def say(self, message: Mapping[str, Any]) -> tuple[StreamState, dict[str, np.ndarray]]:
        """Send a message and return the state that answers it, with its frames by camera.

        Raises:
            WorldError: the message does not fit the world; the session is unchanged.
            ServerError: the server is gone, or the session, or the answer is not kinema's.
        """
        connection = self._connection
        text = to_json(message)
        with self._lock:
            stream = self._stream or self._open()
            try:
                stream.send(text)
                answer: Any = stream.recv(connection.timeout)
                with connection.expecting("a step", _describe_message(answer)):
                    head, frames = unpack(answer)
            except BaseException as error:
                # After an interrupt, too: the next answer would be that of this message.
                self.hang_up(is_gone=isinstance(error, OSError))
                if not isinstance(error, (OSError, WebSocketException)) or isinstance(error, ServerError):
                    raise
                reason = str(error) or type(error).__name__
                raise ServerError(
                    f"{connection.url}: the server has gone in mid-step ({reason}); connect again, and begin "
                    "another session where this one is lost"
                ) from error
        if isinstance(head, StreamError):
            raise refusal(head.status, head.error, connection.url)
        return head, frames

    def hang_up(self, *, is_gone: bool = False) -> None:
        """Close the WebSocket, without waiting for a server that ``is_gone``."""
        stream, self._stream = self._stream, None
        with suppress(OSError, WebSocketException):
            if stream is not None and is_gone:
                stream.close_socket()
            self._stack.close()

    def _open(self) -> ClientConnection:
        connection = self._connection
        try:
            stream = self._stack.enter_context(
                connect_stream(
                    f"ws{connection.url.removeprefix('http')}{self.path}/stream",
                    additional_headers=connection.headers,
                    open_timeout=connection.timeout,
                    close_timeout=CLOSE_SECONDS,
                    max_size=None,
                    proxy=True if connection.use_proxy else None,
                    compression=None,
                )
            )
        except (OSError, WebSocketException, ValueError, ImportError) as error:
            if isinstance(error, InvalidStatus):
                # The refusal of a WebSocket has no text; that of a request says why.
                connection.request("GET", self.path, format="none")
            raise ServerError(
                f"{connection.url}: no stream of the session ({error or type(error).__name__}); see whether "
                "`kinema serve` runs there"
            ) from error
        self._stream = stream
        return stream


def refusal(status: int, detail: str, url: str) -> Exception:
    """Make the error for a refused request: for status 422 the one that a world in this process raises."""
    return WorldError(detail) if status == 422 else ServerError(f"{url}: {detail}", status)


def _parse_address(url: str, token: str | None) -> tuple[httpx.URL, str | None]:
    """Split a link into the address and the token, which may also be passed."""
    try:
        address = httpx.URL(url.strip())
    except (httpx.InvalidURL, AttributeError) as error:
        raise ServerError(f"{url!r} is no address ({error}); {EXAMPLE}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ServerError(f"{url!r} is no address (it begins with http:// or https://); {EXAMPLE}")
    if address.port is not None and not 0 < address.port < 65536:
        raise ServerError(f"{url!r} is no address (a port is 1 to 65535); {EXAMPLE}")
    in_link = parse_qs(address.fragment).get("token", [None])[0]
    token = (token or in_link or "").strip()
    if not token.isascii() or not token.isprintable():
        raise ServerError("token: a character of it cannot be sent; give the one that the server prints")
    return address.copy_with(query=None, fragment=None), token or None


def _describe(response: httpx.Response) -> str:
    kind = response.headers.get("content-type", "no content type").partition(";")[0]
    text = " ".join(response.content[:2000].decode("utf-8", "replace").split())[:80]
    return f"{response.status_code} {response.reason_phrase}, {kind}: {text!r}"


def _describe_message(message: Any) -> str:
    return f"a text {message[:80]!r}" if isinstance(message, str) else f"{len(message)} bytes"
