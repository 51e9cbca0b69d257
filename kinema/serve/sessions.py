"""The sessions that clients have open: bounded, each used by one request at a time, closed when forgotten."""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np

from kinema.serve.beside import Beside
from kinema.serve.limits import Limits, Refusal
from kinema.serve.metrics import Metrics
from kinema.simulation.session import Simulation
from kinema.simulation.step import Step


@dataclasses.dataclass(eq=False)
class Session:
    """A simulation that a client has open."""

    simulation: Simulation
    client: str
    """Address of who opened it."""
    step: Step
    """The last step."""
    seed: int
    last_action: np.ndarray | None = None
    """``A``, the last action, where there is one: plans begin with it."""
    beside: Beside | None = None
    """The real simulator at the same place, where there is one."""
    id: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(16))
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    num_waiting: int = 0
    expires_at: float = 0.0
    """On the clock of ``Sessions``; later by every use."""


class Sessions:
    """The open sessions, at most ``capacity``."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        *,
        session_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """``session_bytes`` is what one takes. Raises ValueError where not even one is within the limits."""
        self._limits, self._metrics, self._clock = limits, metrics, clock
        in_memory = int(limits.max_memory_gb * 2**30 / session_bytes)
        if in_memory < 1:
            raise ValueError(
                f"max_memory_gb={limits.max_memory_gb:g}: one session of this world takes "
                f"{session_bytes / 2**30:.2f} GB; give more"
            )
        self.capacity = min(limits.max_sessions, in_memory)
        self._sessions: dict[str, Session] = {}
        self._num_reserved: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def find(self, session_id: str) -> Session:
        """Return an open session. Raises Refusal (404) where there is none."""
        session = self._sessions.get(session_id)
        if session is None:
            raise Refusal(
                404,
                f"no such session: it was closed, or nobody used it for {self._limits.idle_minutes:g} "
                "minutes; open another",
                reason="session",
            )
        return session

    @contextlib.contextmanager
    def room(self, client: str, num: int = 1) -> Iterator[None]:
        """Hold room for sessions that are being made. Raises Refusal where there is none."""
        held = self._num_reserved.total()
        if len(self) + held + num > self.capacity:
            raise Refusal(
                503,
                f"{len(self) + held} of {self.capacity} sessions are open, so there is no room for {num} "
                "more; close some, or try again later",
                reason="sessions",
                retry_after=10.0,
            )
        own = sum(session.client == client for session in self._sessions.values())
        if own + self._num_reserved[client] + num > self._limits.max_sessions_per_client:
            raise Refusal(
                429,
                f"you have {own} of {self._limits.max_sessions_per_client} sessions open, so there is no "
                f"room for {num} more; close some",
                reason="client-sessions",
                retry_after=10.0,
            )
        self._num_reserved[client] += num
        try:
            yield
        finally:
            self._num_reserved[client] -= num
            if not self._num_reserved[client]:
                del self._num_reserved[client]

    def add(self, session: Session) -> Session:
        """Open a session that was made."""
        self._prolong(session)
        self._sessions[session.id] = session
        self._metrics.opened.inc()
        self._metrics.sessions.set(len(self))
        return session

    def close(self, session_id: str) -> None:
        """Close a session. Raises Refusal (404) where there is none."""
        self.find(session_id)
        self._remove(session_id)

    @contextlib.asynccontextmanager
    async def use(self, session_id: str) -> AsyncIterator[Session]:
        """A session for oneself; whoever comes later waits. Raises Refusal: 404 where there is none, 429
        where too many wait for it."""
        session = self.find(session_id)
        if session.num_waiting >= self._limits.max_waiting:
            raise Refusal(
                429,
                f"{session.num_waiting} requests wait for this session already; wait for their answers first",
                reason="waiting",
                retry_after=1.0,
            )
        session.num_waiting += 1
        try:
            async with session.lock:
                self.find(session_id)
                yield session
        finally:
            session.num_waiting -= 1
            self._prolong(session)

    def abandon(self, session_id: str) -> None:
        """Close a session soon, unless it is used again: its client broke off. It may be closed already."""
        if session_id in self._sessions:
            soon = self._clock() + self._limits.abandoned_seconds
            session = self._sessions[session_id]
            session.expires_at = min(session.expires_at, soon)

    def expire(self) -> None:
        """Close the sessions that nobody used for long."""
        now = self._clock()
        for session in list(self._sessions.values()):
            if session.expires_at < now and not session.num_waiting:
                self._remove(session.id)
                self._metrics.expired.inc()

    def close_all(self) -> None:
        for session_id in list(self._sessions):
            self._remove(session_id)

    def _prolong(self, session: Session) -> None:
        session.expires_at = self._clock() + 60.0 * self._limits.idle_minutes

    def _remove(self, session_id: str) -> None:
        session = self._sessions.pop(session_id)
        if session.beside is not None:
            session.beside.close()
        self._metrics.sessions.set(len(self))
