"""The tools that a language model gets. Errors say what to do next: the model reads them."""

import base64
import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any, NoReturn

import numpy as np
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent
from pydantic import BaseModel, ConfigDict, Field

from kinema.data.view import contact_sheet
from kinema.model.world import WorldError
from kinema.serve import images, schema
from kinema.serve.goals import Goal
from kinema.serve.limits import Refusal
from kinema.serve.service import Service
from kinema.serve.sessions import Session
from kinema.simulation.session import Simulation
from kinema.types import Frames

CLIENT = "mcp"
CONTEXT = 4
"""Real frames that the simulator is shown after acting."""
MAX_STEPS = 200
"""Steps of one imagined or executed sequence."""
COLUMNS = 6
"""Pictures of a future that are shown."""
PICTURE_HEIGHT = 256
"""Pictures are enlarged to about so much: models see small ones badly."""

SessionId = Annotated[str, Field(description="The session, as start gave it.")]
Sequence_ = Annotated[
    list[schema.Row], Field(min_length=1, max_length=MAX_STEPS, description="Actions, one after the other.")
]
Hold = Annotated[
    int, Field(ge=1, le=MAX_STEPS, description="Each action is repeated for so many steps: give waypoints.")
]


class GoalInput(BaseModel):
    """One of: a name, a state, a recorded row, a picture."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="One of named_goals of list_worlds.")
    state: dict[str, float | list[float]] | None = Field(
        None, description="Quantities of list_worlds, such as {'block': [x, y]}; those left out do not count."
    )
    episode: int | None = Field(None, description="With row: what a recorded episode showed there.")
    row: int | None = None
    image: str | None = Field(None, description="A PNG or JPEG file in base64, of the world's picture size.")
    only: list[str] | None = Field(None, description="Compare only these quantities of the state.")


@dataclasses.dataclass
class _Future:
    actions: np.ndarray
    frames: Frames
    trust: float | None


@dataclasses.dataclass
class _Work:
    """What is remembered of a session beside the session."""

    real: list[tuple[Frames, np.ndarray | None]] = dataclasses.field(default_factory=list)
    """The last real frames and their proprioception, where an environment is attached."""
    real_actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    futures: list[_Future] = dataclasses.field(default_factory=list)
    """What was imagined last."""


class Tools:
    """Tools over a service."""

    def __init__(self, service: Service):
        self._service = service
        self._reader = service.reader
        self._work: dict[str, _Work] = {}

    @property
    def all(self) -> list[Callable[..., Awaitable[CallToolResult]]]:
        """Every tool, in the order in which they are used."""
        tools = [self.list_worlds, self.start, self.look, self.imagine, self.compare, self.plan]
        return [*tools, self.act, self.simulate, self.rewind, self.close]

    async def list_worlds(self) -> CallToolResult:
        """The world that is served: its actions with their ranges, its cameras, the quantities that can be
        read in its pictures, the goals that have names, and the episodes to start from."""
        info = self._service.describe()
        world = {
            "name": info.name,
            "steps_a_second": info.fps,
            "cameras": [camera.model_dump() for camera in info.cameras],
            "actions": [action.model_dump() for action in info.actions],
            "quantities": info.quantities,
            "named_goals": self._reader.named_goals,
            "episodes": [episode.model_dump() for episode in self._service.list_episodes(0, 20).episodes],
            "num_episodes": info.num_episodes,
            "has_environment": info.has_beside,
        }
        names = ", ".join(f"{a.name} ({a.low:.0f} to {a.high:.0f})" for a in info.actions)
        return _answer(
            f"One world: '{info.name}', {info.fps:g} steps a second; an action is [{names}]. Next: start.",
            {"worlds": [world]},
        )

    async def start(
        self,
        episode: Annotated[int, Field(description="A recorded episode.")] = 0,
        row: Annotated[int, Field(description="The row of it to start at.")] = 3,
        environment: Annotated[
            bool, Field(description="Attach the real environment, at the same place, to act in.")
        ] = True,
        seed: int = 0,
    ) -> CallToolResult:
        """Begin a session at a row of a recorded episode. Answers its id, a picture and the state."""
        request = schema.Start.model_validate(
            {"episode": episode, "row": row, "seed": seed, "beside": environment}
            if episode >= 0 <= row and seed >= 0
            else _fail("episode, row and seed are 0 or more; see list_worlds for what there is")
        )
        session = await _told(self._service.open(request, CLIENT))
        self._work = {key: work for key, work in self._work.items() if key in self._service.sessions}
        work = self._work[session.id] = _Work()
        if session.beside is not None:
            work.real.append((session.beside.look(), session.beside.proprio()))
        return await self._shown(session, "Started.")

    async def look(self, session: SessionId) -> CallToolResult:
        """The present picture of the session, the real environment's where one is attached, and the state."""
        async with self._use(session) as held:
            return await self._shown(held, "")

    async def imagine(
        self,
        session: SessionId,
        sequences: Annotated[list[Sequence_], Field(min_length=1, max_length=32)],
        hold: Hold = 1,
    ) -> CallToolResult:
        """Try several action sequences in the simulator, each from the present, all at once; nothing is
        carried out. Answers a strip of pictures for each, with its last state and trust."""
        rows = [self._actions(sequence, hold, f"sequences[{i}]") for i, sequence in enumerate(sequences)]
        async with self._use(session) as held:
            with _Telling(), self._service.sessions.room(CLIENT, len(rows)):
                films, trusts = await self._roll_out(held, rows)
        futures = [
            _Future(actions, {key: film[-1] for key, film in films_of.items()}, trust)
            for actions, films_of, trust in zip(rows, films, trusts, strict=True)
        ]
        self._work[held.id].futures = futures
        strips = [np.concatenate(list(films_of.values()), axis=2) for films_of in films]
        labels = [str(index) for index in range(len(strips))]
        sheet = contact_sheet(strips, columns=COLUMNS, scale=max(1, 96 // strips[0].shape[1]), labels=labels)
        described = [
            {
                "future": index,
                "num_steps": len(future.actions),
                "trust": future.trust,
                "state": self._reader.read(future.frames),
            }
            for index, future in enumerate(futures)
        ]
        text = "Each row of the picture is a future, from left to right. Next: compare with a goal, then act."
        return _answer(text, {"session": held.id, "futures": described}, [sheet])

    async def compare(self, session: SessionId, goal: GoalInput) -> CallToolResult:
        """Rank the futures that were imagined last by how near they come to a goal at their end; the present
        is ranked with them, as future -1."""
        async with self._use(session) as held:
            work = self._work[held.id]
            if not work.futures:
                _fail("nothing was imagined since the last act: call imagine first")
            wanted = await self._goal(goal)
            present = {**images.by_camera(held.step.frame, self._service.world)}
        candidates = [(-1, present, held.step.trust)]
        candidates += [(i, future.frames, future.trust) for i, future in enumerate(work.futures)]
        ranked = []
        for index, frames, trust in candidates:
            distance = self._reader.distance(frames, wanted)
            score = self._reader.score(distance)
            entry = {"future": index, "score": round(score, 4), "distance": distance, "trust": trust}
            ranked.append(entry)
        ranked.sort(key=lambda entry: entry["score"])
        best = ranked[0]
        told = ", ".join(f"{key} {value:.1f}" for key, value in best["distance"].items())
        if best["future"] == -1:
            text = f"None is nearer to the goal than the present ({told} off). Imagine other sequences."
        else:
            text = f"Future {best['future']} comes nearest: {told} off. Next: act with its sequence."
        return _answer(text, {"session": held.id, "ranking": ranked})

    async def plan(
        self,
        session: SessionId,
        goal: GoalInput,
        horizon: Annotated[int, Field(ge=1, le=60, description="Steps of the plan.")] = 20,
        max_seconds: Annotated[
            float, Field(gt=0, le=30, description="After so long the best plan so far is the answer.")
        ] = 10.0,
        planner: Annotated[str, Field(description="cem or mppi.", pattern="^(cem|mppi)$")] = "cem",
        seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
    ) -> CallToolResult:
        """Let a planner search in the simulator for actions that lead to a goal; nothing is carried out.
        Answers the best sequence and a strip of pictures of its future: future 0 for compare."""
        service = self._service
        async with self._use(session) as held:
            wanted = await self._goal(goal)
            request = schema.PlanRequest.model_validate(
                {
                    "horizon": horizon,
                    "planner": planner,
                    "seed": seed,
                    "max_seconds": min(max_seconds, service.limits.max_plan_seconds),
                }
            )
            planned = await _told(await _told(service.planning.start(held, wanted, request)))
            actions = np.asarray(planned.actions, np.float32)
            with _Telling(), service.sessions.room(CLIENT):
                (film,), (trust,) = await self._roll_out(held, [actions])
            present = images.by_camera(held.step.frame, service.world)
        future = _Future(actions, {key: pictures[-1] for key, pictures in film.items()}, trust)
        self._work[held.id].futures = [future]
        now, then = (self._reader.distance(frames, wanted) for frames in (present, future.frames))
        told = ", ".join(f"{key} {now[key]:.1f} to {then[key]:.1f}" for key in now)
        if self._reader.score(then) < self._reader.score(now):
            text = f"The plan comes nearer to the goal: {told}. Next: act with its first actions, then look."
        else:
            text = (
                f"No plan that was tried comes nearer to the goal ({told}). Give more max_seconds or another "
                "horizon, or imagine sequences of your own."
            )
        strip = contact_sheet(
            [np.concatenate(list(film.values()), axis=2)],
            columns=COLUMNS,
            scale=max(1, 96 // next(iter(film.values())).shape[1]),
        )
        data = {
            "session": held.id,
            "actions": [[round(number, 2) for number in row] for row in planned.actions],
            "num_steps": horizon,
            "trust": trust,
            "state": self._reader.read(future.frames),
            "distance_now": now,
            "distance_planned": then,
            "num_candidates": planned.num_candidates,
            "seconds": planned.seconds,
            "is_complete": planned.is_complete,
        }
        return _answer(text, data, [strip])

    async def act(self, session: SessionId, actions: Sequence_, hold: Hold = 1) -> CallToolResult:
        """Carry actions out in the real environment. The simulator then goes on from what the environment
        showed. This cannot be undone."""
        rows = self._actions(actions, hold, "actions")
        async with self._use(session) as held:
            if held.beside is None:
                _fail(
                    "this session has no environment to act in: start one with environment=true, where "
                    "list_worlds says has_environment; or use simulate to go on in the simulator alone"
                )
            work = self._work[held.id]
            for action in rows:
                held.beside.step(action)
                work.real.append((held.beside.look(), held.beside.proprio()))
                work.real_actions.append(action)
            del work.real[:-CONTEXT], work.real_actions[: -(CONTEXT - 1)]
            work.futures = []
            held.last_action = rows[-1]
            await _told(self._ground(held, work))
            return await self._shown(held, f"Carried out {len(rows)} steps.")

    async def simulate(self, session: SessionId, actions: Sequence_, hold: Hold = 1) -> CallToolResult:
        """Go on in the simulator alone; rewind undoes it. The environment, where there is one, stays."""
        rows = self._actions(actions, hold, "actions")
        async with self._use(session) as held:
            for index, action in enumerate(rows):
                is_last = index == len(rows) - 1
                (held.step,) = await _told(
                    self._service.engine.step([held.simulation], [action], decode=is_last)
                )
            held.last_action = rows[-1]
            self._work[held.id].futures = []
            return await self._shown(held, f"Simulated {len(rows)} steps.")

    async def rewind(self, session: SessionId, num_steps: Annotated[int, Field(ge=0)]) -> CallToolResult:
        """Undo the last simulated steps; what was done in the environment stays done."""
        async with self._use(session) as held:
            simulation = held.simulation
            if num_steps > simulation.num_rewindable:
                _fail(
                    f"only {simulation.num_rewindable} simulated steps can be undone (acting cannot be); "
                    "give fewer"
                )
            await _told(self._service.engine.run(lambda: simulation.rewind(num_steps)))
            held.step, held.last_action = await _told(self._service.engine.run(simulation.look)), None
            self._work[held.id].futures = []
            return await self._shown(held, f"Went back {num_steps} steps.")

    async def close(self, session: SessionId) -> CallToolResult:
        """Close the session: the server has room for another."""
        with _Telling():
            self._service.sessions.close(session)
        self._work.pop(session, None)
        return _answer("Closed.", {"session": session})

    # How.

    def _use(self, session_id: str) -> "_Held":
        return _Held(self, session_id)

    def _actions(self, rows: list[list[float]], hold: int, where: str) -> np.ndarray:
        world = self._service.world
        if len(rows) * hold > MAX_STEPS:
            _fail(
                f"{where}: {len(rows)} actions held for {hold} steps are over {MAX_STEPS} steps; give fewer"
            )
        if any(len(row) != world.action_dim for row in rows):
            _fail(f"{where}: an action is [{', '.join(world.config.action_names)}]")
        return np.repeat(np.asarray(rows, np.float32), hold, axis=0)

    async def _roll_out(
        self, session: Session, rows: list[np.ndarray]
    ) -> tuple[list[dict[str, np.ndarray]], list[float | None]]:
        """Films of each sequence by camera, ``T H W C``, under the same noise, and trust at their ends."""
        engine = self._service.engine
        copies: list[Simulation] = [await engine.run(session.simulation.copy) for _ in rows]
        films: list[dict[str, list[np.ndarray]]] = [{} for _ in rows]
        steps = [session.step for _ in rows]
        for time in range(max(map(len, rows))):
            running = [index for index, actions in enumerate(rows) if time < len(actions)]
            made = await engine.step([copies[i] for i in running], [rows[i][time] for i in running])
            for index, step in zip(running, made, strict=True):
                steps[index] = step
                for key, frame in images.by_camera(step.frame, self._service.world).items():
                    films[index].setdefault(key, []).append(frame)
        stacked = [{key: np.stack(film) for key, film in film_of.items()} for film_of in films]
        return stacked, [step.trust for step in steps]

    async def _ground(self, session: Session, work: _Work) -> None:
        """Let the simulator go on from what the environment showed."""
        world = self._service.world
        frames = {key: np.stack([real[key] for real, _ in work.real])[None] for key in world.cameras}
        proprios = [proprio for _, proprio in work.real if proprio is not None]
        actions = np.stack(work.real_actions[-(len(work.real) - 1) :])[None]

        def begin() -> Simulation:
            batch = world.start_batch(
                frames,
                actions,
                proprio=np.stack(proprios)[None] if proprios and world.proprio_dim else None,
                seeds=[session.seed],
                max_pictures=self._service.limits.max_pictures,
            )
            return Simulation(batch)

        session.simulation = await self._service.engine.run(begin)
        session.step = await self._service.engine.run(session.simulation.look)

    async def _goal(self, goal: GoalInput) -> Goal:
        given = [goal.name, goal.state, goal.episode, goal.image]
        if sum(value is not None for value in given) != 1:
            _fail("goal: give one of name, state, episode (with row), image")
        named = self._reader.named_goals
        if goal.name is not None and goal.name not in named:
            _fail(f"goal: no name {goal.name!r}; there are {', '.join(named) or 'none in this world'}")
        state: dict[str, Any] = named[goal.name] if goal.name is not None else dict(goal.state or {})
        frames: Frames | None = None
        if goal.episode is not None:
            recorded = await _told(self._service.episode(goal.episode))
            row = goal.row or 0
            if not 0 <= row < len(recorded):
                _fail(f"goal: episode {goal.episode} has rows 0 to {len(recorded) - 1}")
            frames = self._service.world.by_camera({k: f[row : row + 1] for k, f in recorded.frames.items()})
            frames = {key: film[0] for key, film in frames.items()}
        elif goal.image is not None:
            with _Telling():
                camera = self._service.world.cameras[0]
                found = images.decode_frames({camera: [goal.image]}, self._service.world, max_frames=1)
                checked = self._service.world.by_camera(found)
            frames = {key: film[0] for key, film in checked.items()}
        if frames is not None:
            seen = self._reader.read(frames)
            state = {key: value for key, value in seen.items() if value is not None}
        if goal.only is not None:
            unknown = [key for key in goal.only if key not in self._reader.quantities]
            if unknown:
                known = ", ".join(self._reader.quantities) or "none in this world"
                _fail(f"goal: no quantity {unknown[0]!r} for only; there are {known}")
            state = {key: value for key, value in state.items() if key in goal.only}
        with _Telling():
            chosen = self._reader.check(state)
        if not chosen and frames is None:
            _fail("goal: no quantity is left to compare")
        return Goal(chosen, frames)

    async def _shown(self, session: Session, text: str) -> CallToolResult:
        await self._service.look(session)
        frames = images.by_camera(session.step.frame, self._service.world)
        pictures = list(frames.values())
        data: dict[str, Any] = {
            "session": session.id,
            "num_steps": session.simulation.num_steps,
            "trust": session.step.trust,
            "state": self._reader.read(frames),
        }
        parts = [text, "The picture is the simulator's present."]
        if session.beside is not None:
            real = session.beside.look()
            data["environment"] = {"state": self._reader.read(real)}
            pictures += real.values()
            parts[-1] = "The pictures are the simulator's present, then the real environment's."
        enlarged = [_enlarge(picture) for picture in pictures]
        return _answer(" ".join(part for part in parts if part), data, enlarged)


class _Held:
    """A session for one tool."""

    def __init__(self, tools: Tools, session_id: str):
        self._tools, self._session_id = tools, session_id
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Session:
        try:
            return await self._stack.enter_async_context(self._tools._service.sessions.use(self._session_id))
        except Refusal as refusal:
            raise ToolError(f"{refusal.message} with start, and use the session that it answers") from refusal

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


def _fail(message: str) -> NoReturn:
    raise ToolError(message)


class _Telling:
    """Tells the model what a client would be told."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, Refusal | WorldError):
            raise ToolError(str(error)) from error


async def _told(work: Awaitable[Any]) -> Any:
    with _Telling():
        return await work


def _enlarge(picture: np.ndarray) -> np.ndarray:
    scale = max(1, PICTURE_HEIGHT // picture.shape[0])
    return picture.repeat(scale, 0).repeat(scale, 1)


def _answer(text: str, data: dict[str, Any], pictures: list[np.ndarray] | None = None) -> CallToolResult:
    content: list[Any] = [TextContent(type="text", text=text)]
    for picture in pictures or []:
        encoded = base64.b64encode(images.encode(picture, "png")).decode()
        content.append(ImageContent(type="image", data=encoded, mime_type="image/png"))
    return CallToolResult(content=content, structured_content=data)
