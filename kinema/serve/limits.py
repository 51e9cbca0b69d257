"""Limits on clients, and the error by which a request over a limit is refused."""

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.responses import JSONResponse


class Refusal(Exception):
    """A request that is refused: an HTTP status, what is wrong and what to do about it."""

    def __init__(self, status: int, message: str, *, reason: str, retry_after: float | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        """One word, for the metrics."""
        self.retry_after = retry_after
        """Seconds after which it may be tried again."""

    def response(self) -> JSONResponse:
        """Make the answer of HTTP."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            headers["Connection"] = "close"
        return JSONResponse({"detail": self.message}, self.status, headers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    max_sessions: int = 64
    """Sessions open at a time."""
    max_sessions_per_client: int = 48
    """Sessions open at a time for one address, so that no client takes them all."""
    max_memory_gb: float = 4.0
    """Memory for the pasts of the sessions; where it is the tighter bound, there are fewer sessions."""
    max_pictures: int = 3000
    """Past frames that a session keeps, which is also as far as its video goes back."""
    max_queue: int = 256
    """Requests that wait for the networks at a time; further ones are answered 503."""
    max_waiting: int = 8
    """Requests that wait for one session at a time; further ones are answered 429."""
    max_batch: int = 64
    """Sessions that step in one batch."""
    max_actions: int = 1000
    """Actions in one request."""
    max_forks: int = 32
    """Futures of one request."""
    max_frames: int = 64
    """Frames by camera in one request."""
    max_plans: int = 4
    """Plans that are searched for at a time; further ones are answered 503."""
    max_plan_seconds: float = 30.0
    """Time that a plan may take."""
    max_denoising_steps: int = 16
    """Network calls for a frame that a client may ask for."""
    max_body_mb: float = 16.0
    """Size of a request."""
    body_seconds: float = 20.0
    """Time in which a request has to arrive."""
    idle_minutes: float = 15.0
    """A session that nobody uses for so long is closed."""
    abandoned_seconds: float = 30.0
    """A session whose client broke off in a request or stream is closed after so long, unless it is used
    again."""
    requests_per_second: float = 400.0
    """Requests of one address; further ones are answered 429. A stream (WebSocket) counts once."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: it must be above 0")


class RateLimiter:
    """A bucket of tokens for each client: a second's worth at once, then as many a second."""

    MAX_CLIENTS = 4096
    """Clients that are remembered; the longest unseen is forgotten first."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic):
        self._per_second = per_second
        self._size = max(1.0, per_second)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count one request. Raises Refusal (429) where there were too many."""
        now = self._clock()
        tokens, last = self._buckets.pop(client, (self._size, now))
        tokens = min(self._size, tokens + (now - last) * self._per_second)
        is_allowed = tokens >= 1.0
        self._buckets[client] = (tokens - is_allowed, now)
        while len(self._buckets) > self.MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not is_allowed:
            raise Refusal(
                429,
                f"more than {self._per_second:g} requests a second; wait, or step by WebSocket, where a "
                "whole stream counts as one request",
                reason="rate",
                retry_after=1.0,
            )


def closing() -> Refusal:
    """Make the refusal of a server that stops."""
    return Refusal(503, "the server is closing; connect again later", reason="closing", retry_after=1.0)
