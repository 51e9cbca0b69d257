"""A world that another process serves, used as one in this process: ``kinema.connect(url)``."""

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kinema.data.drawing import write_video
from kinema.data.frames import join_cameras
from kinema.model.world import Pictures
from kinema.serve import schema
from kinema.serve.connection import Connection, Session
from kinema.serve.messages import decode_frames, decode_state, stack_steps, to_png, to_rows
from kinema.simulation.session import draw_seed
from kinema.simulation.step import Step
from kinema.types import WorldError

TOKEN_VARIABLE = "KINEMA_TOKEN"


def connect(url: str, *, token: str | None = None, timeout: float = 60.0) -> "RemoteWorld":
    """Connect to the world that ``kinema serve`` has at ``url``.

    Args:
        url: the address that the server prints, such as ``http://127.0.0.1:8000``, or its link with a token.
        token: the server's token; by default that of the link, then KINEMA_TOKEN of the environment.
        timeout: seconds to wait for an answer.

    Raises:
        ServerError: no kinema server is there, or it does not let us in.
    """
    if token is None and "token=" not in str(url):
        token = os.environ.get(TOKEN_VARIABLE)
    connection = Connection(url, token, timeout)
    try:
        return RemoteWorld(connection, connection.ask(schema.WorldInfo, "GET", "/v1/world"))
    except BaseException:
        connection.close()
        raise


class RemoteWorld:
    """A world at a server, with the methods of ``World`` that a server offers.

    Its sessions are closed by ``close``, at the end of a ``with``, and when the program ends.
    """

    def __init__(self, connection: Connection, info: schema.WorldInfo):
        self.connection = connection
        self._info = info
        # Also when Python ends, while the threads of the WebSockets still run.
        self._finalizer = weakref.finalize(self, connection.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RemoteWorld({self.name} at {self.connection.url})"

    def close(self) -> None:
        """Close the sessions that were opened here, and the connection."""
        self._finalizer()

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def fps(self) -> float:
        return self._info.fps

    @property
    def cameras(self) -> tuple[str, ...]:
        """Feature keys of the cameras."""
        return tuple(camera.key for camera in self._info.cameras)

    @property
    def action_dim(self) -> int:
        return len(self._info.actions)

    @property
    def proprio_dim(self) -> int:
        return self._info.proprio_dim

    @property
    def num_episodes(self) -> int:
        """Number of recorded episodes that ``start_episode`` can begin in."""
        return self._info.num_episodes

    def start(
        self,
        frames: Pictures,
        actions: np.ndarray | None = None,
        *,
        proprio: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        num_denoising_steps: int | None = None,
    ) -> "RemoteSimulation":
        """Begin a session as ``World.start`` does; the same generator gives the same rollout as there.

        Raises:
            WorldError: an argument does not fit the world.
            ServerError: the server is gone or full.
        """
        given = {"frames": None if frames is None else self.encode(frames)}
        given |= {"actions": to_rows(actions, "actions"), "proprio": to_rows(proprio, "proprio")}
        return self._start(given, generator, num_denoising_steps)

    def start_episode(
        self,
        index: int = 0,
        *,
        row: int | None = None,
        context: int = 4,
        generator: torch.Generator | None = None,
        num_denoising_steps: int | None = None,
    ) -> "RemoteSimulation":
        """Begin a session in a recorded episode of the server.

        Args:
            index: position of the episode.
            row: last row of the context; by default the 4th.
            context: number of rows given, the last one included.
            generator: draws the seed of the session; seed 0 by default.
            num_denoising_steps: network calls for a frame; by default the world's own.

        Raises:
            WorldError: there is no such row.
            ServerError: there is no such episode, or the server is gone or full.
        """
        given = {"episode": index, "row": row, "context": context}
        return self._start(given, generator, num_denoising_steps)

    def _start(
        self, given: dict[str, Any], generator: torch.Generator | None, num_denoising_steps: int | None
    ) -> "RemoteSimulation":
        seed = 0 if generator is None else draw_seed(generator)
        body = {**given, "seed": seed, "num_denoising_steps": num_denoising_steps, "format": "none"}
        state = self.connection.open(schema.State, "/v1/sessions", body)
        return RemoteSimulation(self, self.connection.session(state.session), state.num_steps)

    def infer(self, frames: Pictures, *, proprio: np.ndarray | None = None) -> np.ndarray:
        """Infer the actions ``(T - 1, A)`` between frames, in the units of the dataset."""
        body = {"frames": self.encode(frames), "proprio": to_rows(proprio, "proprio")}
        inferred = self.connection.ask(schema.Inferred, "POST", "/v1/infer", body)
        return self.actions_of(inferred)

    # Used by sessions.

    def encode(self, frames: Any) -> dict[str, list[str]]:
        """Encode frames by camera as PNG files in base64. Raises WorldError."""
        if not isinstance(frames, Mapping):
            if len(self.cameras) != 1:
                raise WorldError(
                    f"world '{self.name}' has {len(self.cameras)} cameras: give frames as a dict with the "
                    f"keys {', '.join(self.cameras) or '(none)'}"
                )
            frames = {self.cameras[0]: frames}
        return {key: to_png(each, key) for key, each in frames.items()}

    def fork(self, session: Session, num: int, *, same_noise: bool = False) -> list[Session]:
        """Open ``num`` sessions that go on from another."""
        body = {"num": num, "same_noise": same_noise}
        opened = self.connection.open(schema.Opened, f"{session.path}/fork", body)
        return [self.connection.session(session_id) for session_id in opened.sessions]

    def frames(self, session: Session) -> np.ndarray | dict[str, np.ndarray] | None:
        """Fetch the past frames of a session, ``T H W C``, in parts."""
        if not self.cameras:
            return None
        parts: list[dict[str, np.ndarray]] = []
        first, total = 0, 1
        while first < total:
            part = self.connection.ask(schema.PastFrames, "GET", f"{session.path}/pictures", first=first)
            with self.connection.expecting("frames", f"shapes {part.shape}"):
                parts.append({key: decode_frames(part.data[key], part.shape[key]) for key in self.cameras})
                if not (num := len(parts[-1][self.cameras[0]])):
                    raise ValueError("no frame")
            first, total = first + num, part.num
        return self.of_cameras({key: np.concatenate([part[key] for part in parts]) for key in self.cameras})

    def save(self, session: Session, path: str | Path) -> None:
        """Write the past frames of a session as a video, several cameras side by side."""
        frames = self.frames(session)
        if frames is None:
            raise WorldError(f"world '{self.name}' has no camera, so there is nothing to save")
        if isinstance(frames, dict):
            frames = join_cameras(frames.values())
        write_video(path, frames, fps=self.fps, scale=max(1, 256 // frames.shape[1]))

    def step_of(self, state: schema.State, frames: Mapping[str, np.ndarray]) -> Step:
        """Make the step of an answer and its frames by camera."""
        with self.connection.expecting("a step", f"frames of {', '.join(frames)}"):
            return Step(
                frame=self.of_cameras(frames) if frames else None,
                proprio=None if state.proprio is None else np.array(state.proprio, np.float32),
                trust=state.trust,
                outside=state.outside,
            )

    def of_cameras(self, frames: Mapping[str, np.ndarray]) -> Any:
        """Order frames as steps have them: the array of the one camera, or a dict by camera."""
        by_camera = {key: frames[key] for key in self.cameras}
        return by_camera[self.cameras[0]] if len(by_camera) == 1 else by_camera

    def actions_of(self, answer: schema.Inferred | schema.Planned) -> np.ndarray:
        """Return the actions ``T A`` of an answer."""
        with self.connection.expecting("actions", f"{len(answer.actions)} rows"):
            return np.array(answer.actions, np.float32).reshape(len(answer.actions), self.action_dim)


class _Remote:
    """Sessions that a world opened: closed together, and dropped with the object that holds them."""

    def __init__(self, world: RemoteWorld, sessions: Sequence[Session], num_steps: int):
        self.world, self._sessions = world, list(sessions)
        self.num_steps = num_steps
        """Number of steps simulated so far."""
        for session in sessions:
            weakref.finalize(self, world.connection.drop, session).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close at the server, which then has room for others. A server that is gone raises nothing."""
        for session in self._sessions:
            self.world.connection.close_session(session)

    def fork(self, num: int) -> "RemoteSimulationBatch":
        """Open ``num`` futures of every session, batched, each with its own noise from here on."""
        children: list[Session] = []
        try:
            for session in self._sessions:
                children += self.world.fork(session, num)
        except BaseException:
            for child in children:
                self.world.connection.drop(child)
            raise
        return RemoteSimulationBatch(self.world, children, self.num_steps)

    def _copy(self, session: Session) -> "RemoteSimulation":
        (copied,) = self.world.fork(session, 1, same_noise=True)
        return RemoteSimulation(self.world, copied, self.num_steps)


class RemoteSimulation(_Remote):
    """One session at a server, with the methods of ``Simulation``. It steps over a WebSocket of its own."""

    def __init__(self, world: RemoteWorld, session: Session, num_steps: int):
        super().__init__(world, [session], num_steps)
        self._session = session

    @property
    def id(self) -> str:
        """Id of the session at the server."""
        return self._session.id

    def step(self, action: Any, *, decode: bool = True) -> Step:
        """Advance by one action ``(A,)`` in the units of the dataset; without ``decode`` no frame comes.

        Raises:
            WorldError: the action has another shape or is not finite; the session is unchanged.
            ServerError: the server is gone, or the session.
        """
        row = to_rows(action, "action", (self.world.action_dim,))
        return self._say(op="step", action=row, format="raw" if decode else "none")

    def look(self, *, decode: bool = True) -> Step:
        """Return the present frame."""
        return self._say(op="look", format="raw" if decode else "none")

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps: the session goes on as if they had not been made."""
        self._say(op="rewind", num_steps=num_steps, format="none")

    def change(self, *, seed: int | None = None, num_denoising_steps: int | None = None) -> None:
        """Set another seed of the noise, or another number of network calls for a frame, from here on."""
        self._say(op="change", seed=seed, num_denoising_steps=num_denoising_steps, format="none")

    def copy(self) -> "RemoteSimulation":
        """Open a session that goes on from here with the same noise."""
        return self._copy(self._session)

    def plan(
        self,
        *,
        frames: Any = None,
        episode: int | None = None,
        row: int | None = None,
        state: Mapping[str, Any] | None = None,
        **search: Any,
    ) -> np.ndarray:
        """Plan actions ``H A``, in the units of the dataset, from here to a goal: the best that the server
        found in time. The session stays where it is.

        Args:
            frames: the goal as one frame ``H W 3``, or several by camera.
            episode: the goal as a recorded episode of the server, at ``row``.
            row: row of that episode.
            state: the goal as quantities that the server reads in frames: ``{"block": [256, 256]}``.
            search: ``planner``, ``horizon``, ``candidates``, ``max_seconds`` and the other settings of
                ``PlanRequest``, which ``/docs`` of the server lists.

        Raises:
            WorldError: the goal or the search does not fit the world.
            ServerError: the server is gone or busy, or found nothing in time.
        """
        goal: dict[str, Any] = {"episode": episode, "row": row, "state": state}
        if frames is not None:
            given = frames if isinstance(frames, Mapping) else {"": frames}
            one_row = {key: np.asarray(frame)[None] for key, frame in given.items()}
            encoded = self.world.encode(one_row if isinstance(frames, Mapping) else one_row[""])
            goal["frames"] = {key: png for key, (png,) in encoded.items()}
        body = {"goal": {key: value for key, value in goal.items() if value is not None} or None, **search}
        seconds = search.get("max_seconds")
        planned = self.world.connection.ask(
            schema.Planned,
            "POST",
            f"{self._session.path}/plan",
            body,
            extra_seconds=seconds if isinstance(seconds, (int, float)) and seconds > 0 else 0.0,
        )
        return self.world.actions_of(planned)

    def pictures(self) -> np.ndarray | dict[str, np.ndarray] | None:
        """Fetch the frames so far, ``T H W C``, the last given one first; very old ones are forgotten."""
        return self.world.frames(self._session)

    def save(self, path: str | Path) -> None:
        """Write the frames so far as a video, by the suffix ``.mp4`` or ``.gif``."""
        self.world.save(self._session, path)

    def _say(self, **message: Any) -> Step:
        state, frames = self._session.say(message)
        step = self.world.step_of(state, frames)
        self.num_steps = state.num_steps
        return step


class RemoteSimulationBatch(_Remote):
    """Sessions at a server that step together, with the methods of ``SimulationBatch``."""

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self._sessions)

    def __getitem__(self, index: int) -> RemoteSimulation:
        """Open a session that continues session ``index``; the batch is not changed by it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"session {index} of a batch of {len(self)}")
        return self._copy(self._sessions[index])

    @property
    def ids(self) -> list[str]:
        """Ids of the sessions at the server."""
        return [session.id for session in self._sessions]

    def step(self, actions: Any, *, decode: bool = True) -> Step:
        """Advance every session by its action, ``B A`` in the units of the dataset.

        Raises:
            WorldError: the actions have another shape or are not finite; the sessions are unchanged.
            ServerError: the server is gone, or a session.
        """
        rows = to_rows(actions, "actions", (len(self), self.world.action_dim))
        body = {"sessions": self.ids, "actions": rows, "format": "raw" if decode else "none"}
        connection = self.world.connection
        states = connection.ask(schema.States, "POST", "/v1/steps", body).states
        with connection.expecting(f"{len(self)} steps", f"{len(states)}"):
            steps = [self.world.step_of(state, decode_state(state)) for state in states]
            self.num_steps = states[0].num_steps
            return stack_steps(steps, len(self))

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps of every session."""
        body = {"num_steps": num_steps, "format": "none"}
        for session in self._sessions:
            self.world.connection.ask(schema.State, "POST", f"{session.path}/rewind", body)
        self.num_steps -= num_steps

    def pictures(self, index: int) -> np.ndarray | dict[str, np.ndarray] | None:
        """Fetch the kept frames of one session, ``T H W C``."""
        return self.world.frames(self._sessions[index])

    def save(self, path: str | Path, index: int = 0) -> None:
        """Write the kept frames of one session as a video, by the suffix ``.mp4`` or ``.gif``."""
        self.world.save(self._sessions[index], path)
