"""The work of the tools of a language model. Errors say what to do next: the model reads them."""

import base64
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
from mcp.types import CallToolResult, ImageContent, TextContent

from kinema.data.drawing import contact_sheet
from kinema.serve import images, schema, tools
from kinema.serve.goals import Goal
from kinema.serve.service import Service
from kinema.serve.sessions import Session
from kinema.simulation.session import Simulation
from kinema.types import Frames, WorldError

CLIENT = "mcp"
CONTEXT = 4
"""Real frames that the simulator is given after acting."""
COLUMNS = 6
"""Frames of a future that are shown."""
FRAME_HEIGHT = 256
"""Frames are enlarged to about this height in pixels: models see small ones badly."""


@dataclasses.dataclass
class _Future:
    actions: np.ndarray
    frames: Frames
    """The last ones, by camera."""
    trust: float | None


@dataclasses.dataclass
class _Work:
    """Real and imagined frames of a session."""

    real: list[tuple[Frames, np.ndarray | None]] = dataclasses.field(default_factory=list)
    """The last real frames and their proprioception, where an environment is attached."""
    real_actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    futures: list[_Future] = dataclasses.field(default_factory=list)
    """Imagined last."""


class Workbench:
    """Does what the tools say, with a service that is started. Raises Refusal and WorldError."""

    def __init__(self, service: Service):
        self._service, self._world, self._reader = service, service.world, service.reader
        self._work: dict[str, _Work] = {}

    async def list_worlds(self) -> CallToolResult:
        info = self._service.describe()
        world = {
            "steps_per_second": info.fps,
            "named_goals": self._reader.named_goals,
            "episodes": self._service.list_episodes(0, 20).model_dump()["episodes"],
            "has_environment": info.has_beside,
        }
        names = ", ".join(f"{a.name} ({a.low:.0f} to {a.high:.0f})" for a in info.actions)
        message = (
            f"One world: '{info.name}', {info.fps:g} steps per second; an action is [{names}]. Next: start."
        )
        return _result(
            tools.Worlds.model_validate({"message": message, "worlds": [info.model_dump() | world]})
        )

    async def start(self, episode: int, row: int, environment: bool, seed: int) -> CallToolResult:
        given = {"episode": episode, "row": row, "seed": seed, "beside": environment}
        request = schema.Start.model_validate(given)
        session = await self._service.open(request, CLIENT)
        self._work = {key: work for key, work in self._work.items() if key in self._service.sessions}
        work = self._work[session.id] = _Work()
        if session.beside is not None:
            work.real.append((session.beside.look(), session.beside.proprio()))
        return await self._shown(session, "Started.")

    async def look(self, session_id: str) -> CallToolResult:
        async with self._use(session_id) as (session, _):
            return await self._shown(session, "")

    async def imagine(self, session_id: str, sequences: list[tools.Actions], hold: int) -> CallToolResult:
        rows = [self._actions(sequence, hold, f"sequences[{i}]") for i, sequence in enumerate(sequences)]
        async with self._use(session_id) as (session, work):
            videos, work.futures = await self._roll_out(session, rows)
        message = "Each row of the image is a future, from left to right. Next: compare with a goal, or act."
        message += _warning(self._world.outside(np.concatenate(rows)))
        futures = [self._described(index, future) for index, future in enumerate(work.futures)]
        labels = [str(index) for index in range(len(futures))]
        answer = tools.Imagined(message=message, session=session_id, futures=futures)
        return _result(answer, _sheets(videos, labels))

    async def compare(self, session_id: str, goal: tools.GoalInput) -> CallToolResult:
        async with self._use(session_id) as (session, work):
            if not work.futures:
                raise WorldError("nothing was imagined since the last act: call imagine first")
            wanted = await self._goal(goal)
            await self._service.look(session)
            present = images.by_camera(session.step.frame, self._world)
        candidates = [(-1, present, session.step.trust)]
        candidates += [(index, future.frames, future.trust) for index, future in enumerate(work.futures)]
        ranking = []
        for index, frames, trust in candidates:
            distance = self._reader.distance(frames, wanted)
            score = float(self._reader.score(distance))
            ranking.append(tools.RankedFuture(future=index, score=score, distance=distance, trust=trust))
        ranking.sort(key=lambda entry: entry.score)
        best = ranking[0]
        off = ", ".join(f"{key} {value:.1f}" for key, value in best.distance.items())
        message = f"Future {best.future} ends nearest to the goal: {off} off. Next: act with its sequence."
        if best.future == -1:
            message = f"None ends nearer to the goal than the present ({off} off). Imagine other sequences."
        return _result(tools.Ranked(message=message, session=session_id, ranking=ranking))

    async def plan(
        self,
        session_id: str,
        goal: tools.GoalInput,
        horizon: int,
        max_seconds: float,
        planner: str,
        seed: int,
    ) -> CallToolResult:
        settings = {"horizon": horizon, "planner": planner, "seed": seed}
        settings["max_seconds"] = min(max_seconds, self._service.limits.max_plan_seconds)
        request = schema.PlanRequest.model_validate(settings)
        async with self._use(session_id) as (session, work):
            wanted = await self._goal(goal)
            search = await self._service.planning.start(session, wanted, request, is_patient=True)
            planned = await search
            actions = np.asarray(planned.actions, np.float32)
            videos, work.futures = await self._roll_out(session, [actions])
            await self._service.look(session)
            present = images.by_camera(session.step.frame, self._world)
        future = work.futures[0]
        now, then = (self._reader.distance(frames, wanted) for frames in (present, future.frames))
        change = ", ".join(f"{key} {now[key]:.1f} to {then[key]:.1f}" for key in now)
        message = f"The plan ends nearer to the goal: {change}. Next: act with its first actions, then look."
        if self._reader.score(then) >= self._reader.score(now):
            message = (
                f"No plan that was tried ends nearer to the goal ({change}). Give more max_seconds, another "
                "horizon or seed, or imagine sequences of your own."
            )
        answer = tools.PlannedFuture(
            **self._described(0, future).model_dump(exclude={"future"}),
            message=message,
            session=session_id,
            actions=actions.round(2).tolist(),
            distance_now=now,
            distance_planned=then,
            num_candidates=planned.num_candidates,
            seconds=planned.seconds,
            is_complete=planned.is_complete,
        )
        return _result(answer, _sheets(videos))

    async def act(self, session_id: str, actions: tools.Actions, hold: int) -> CallToolResult:
        rows = self._actions(actions, hold, "actions")
        async with self._use(session_id) as (session, work):
            if session.beside is None:
                raise WorldError(
                    "this session has no environment to act in: start one with environment=true, where "
                    "list_worlds says has_environment; or use simulate to go on in the simulator alone"
                )
            for action in rows:
                session.beside.step(action)
                work.real.append((session.beside.look(), session.beside.proprio()))
                work.real_actions.append(action)
            del work.real[:-CONTEXT], work.real_actions[: -(CONTEXT - 1)]
            work.futures = []
            await self._ground(session, work)
            session.last_action = rows[-1]
            return await self._shown(session, f"Carried out {len(rows)} steps.", rows)

    async def simulate(self, session_id: str, actions: tools.Actions, hold: int) -> CallToolResult:
        rows = self._actions(actions, hold, "actions")
        async with self._use(session_id) as (session, work):
            work.futures = []
            for index, action in enumerate(rows):
                is_last = index == len(rows) - 1
                (session.step,) = await self._service.engine.step(
                    [session.simulation], [action], decode=is_last
                )
                session.last_action = action
            return await self._shown(session, f"Simulated {len(rows)} steps.", rows)

    async def rewind(self, session_id: str, num_steps: int) -> CallToolResult:
        async with self._use(session_id) as (session, work):
            simulation, engine = session.simulation, self._service.engine
            if num_steps > simulation.num_rewindable:
                raise WorldError(
                    f"only {simulation.num_rewindable} simulated steps can be undone (acting cannot be); "
                    "give fewer"
                )
            work.futures = []
            await engine.run(lambda: simulation.rewind(num_steps))
            session.step, session.last_action = await engine.run(simulation.look), None
            return await self._shown(session, f"Went back {num_steps} steps.")

    async def close(self, session_id: str) -> CallToolResult:
        self._service.sessions.close(session_id)
        self._work.pop(session_id, None)
        return _result(tools.SessionAnswer(message="Closed.", session=session_id))

    @asynccontextmanager
    async def _use(self, session_id: str) -> AsyncIterator[tuple[Session, _Work]]:
        """Hold a session, with its work, for one tool."""
        async with self._service.sessions.use(session_id) as session:
            yield session, self._work[session_id]

    def _actions(self, rows: tools.Actions, hold: int, name: str) -> np.ndarray:
        if len(rows) * hold > tools.MAX_STEPS:
            raise WorldError(
                f"{name}: {len(rows)} actions held for {hold} steps are over {tools.MAX_STEPS} steps"
            )
        if any(len(row) != self._world.action_dim for row in rows):
            raise WorldError(f"{name}: an action is [{', '.join(self._world.config.action_names)}]")
        return np.repeat(np.asarray(rows, np.float32), hold, axis=0)

    async def _roll_out(
        self, session: Session, rows: list[np.ndarray]
    ) -> tuple[list[dict[str, np.ndarray]], list[_Future]]:
        """Simulate sequences under the same noise; return frames ``T H W C`` by camera and the futures."""
        engine = self._service.engine
        with self._service.sessions.room(CLIENT, len(rows)):
            copies: list[Simulation] = [await engine.run(session.simulation.copy) for _ in rows]
            frames: list[dict[str, list[np.ndarray]]] = [{} for _ in rows]
            steps = [session.step for _ in rows]
            for time in range(max(map(len, rows))):
                running = [index for index, actions in enumerate(rows) if time < len(actions)]
                made = await engine.step([copies[i] for i in running], [rows[i][time] for i in running])
                for index, step in zip(running, made, strict=True):
                    steps[index] = step
                    for key, frame in images.by_camera(step.frame, self._world).items():
                        frames[index].setdefault(key, []).append(frame)
        videos = [{key: np.stack(each) for key, each in by_camera.items()} for by_camera in frames]
        futures = [
            _Future(actions, {key: video[-1] for key, video in by_camera.items()}, step.trust)
            for actions, by_camera, step in zip(rows, videos, steps, strict=True)
        ]
        return videos, futures

    async def _ground(self, session: Session, work: _Work) -> None:
        """Let the simulator go on from the frames that the environment showed."""
        world = self._world
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

    async def _goal(self, goal: tools.GoalInput) -> Goal:
        given = [goal.name, goal.state, goal.episode, goal.image]
        if sum(value is not None for value in given) != 1:
            raise WorldError("goal: give one of name, state, episode (with row), image")
        named, quantities = self._reader.named_goals, self._reader.quantities
        if goal.name is not None and goal.name not in named:
            names = ", ".join(named) or "none in this world"
            raise WorldError(f"goal: no name {goal.name!r}; there are {names}")
        unknown = [key for key in goal.only or [] if key not in quantities]
        if unknown:
            names = ", ".join(quantities) or "none in this world"
            raise WorldError(f"goal: no quantity {unknown[0]!r} for only; there are {names}")
        state = dict(goal.state or (named[goal.name] if goal.name is not None else {}))
        frames = await self._goal_frames(goal)
        if frames is not None:
            state = {key: value for key, value in self._reader.read(frames).items() if value is not None}
        if goal.only is not None:
            state = {key: value for key, value in state.items() if key in goal.only}
        chosen = self._reader.check(state)
        if not chosen and frames is None:
            raise WorldError("goal: no quantity is left to compare")
        return Goal(chosen, frames)

    async def _goal_frames(self, goal: tools.GoalInput) -> Frames | None:
        """Read the frames ``H W 3`` by camera of a goal that is a recorded row or an image."""
        if goal.episode is not None:
            recorded, row = await self._service.episode(goal.episode), goal.row or 0
            if row >= len(recorded):
                raise WorldError(f"goal: episode {goal.episode} has rows 0 to {len(recorded) - 1}")
            given = {key: frames[row : row + 1] for key, frames in recorded.frames.items()}
        elif goal.image is not None:
            one_camera = {key: [goal.image] for key in self._world.cameras[:1]}
            given = images.decode_frames(one_camera, self._world, max_frames=1)
        else:
            return None
        return {key: frames[0] for key, frames in self._world.by_camera(given).items()}

    def _described(self, index: int, future: _Future) -> tools.Future:
        return tools.Future(
            future=index,
            num_steps=len(future.actions),
            trust=future.trust,
            outside=dict(self._world.outside(future.actions)),
            state=self._reader.read(future.frames),
        )

    async def _shown(
        self, session: Session, message: str, actions: np.ndarray | None = None
    ) -> CallToolResult:
        """Answer with the state of a session after ``actions``, and its frames."""
        await self._service.look(session)
        outside = dict(session.step.outside)
        if actions is not None:
            outside |= self._world.outside(actions)
        frames = images.by_camera(session.step.frame, self._world)
        shown, environment = list(frames.values()), None
        explained = "The image is the simulator's present."
        if session.beside is not None:
            real = session.beside.look()
            environment = tools.Environment(state=self._reader.read(real))
            shown += real.values()
            explained = "The images are the simulator's present, then the real environment's."
        answer = tools.Shown(
            message=f"{message} {explained}".strip() + _warning(outside),
            session=session.id,
            num_steps=session.simulation.num_steps,
            trust=session.step.trust,
            outside=outside,
            state=self._reader.read(frames),
            environment=environment,
        )
        return _result(answer, [_enlarge(frame) for frame in shown])


def _result(answer: tools.Answer, frames: list[np.ndarray] | None = None) -> CallToolResult:
    """Make a result: the answer as JSON, also as text for clients that pass text alone, and images."""
    data = answer.model_dump(mode="json")
    content: list[TextContent | ImageContent] = [TextContent(type="text", text=answer.model_dump_json())]
    for frame in frames or []:
        encoded = base64.b64encode(images.encode(frame, "png")).decode()
        content.append(ImageContent(type="image", data=encoded, mime_type="image/png"))
    return CallToolResult(content=[*content], structured_content=data)


def _warning(outside: Mapping[str, float]) -> str:
    """Make the sentence about numbers outside the recorded ones that a message ends with."""
    if not outside:
        return ""
    distances = ", ".join(f"{name} by {distance:.2g}" for name, distance in outside.items())
    return (
        f" Outside the recorded numbers, in units of their range: {distances}. The simulator takes the "
        "nearest recorded ones, so do not trust it there; the environment takes them as they are."
    )


def _sheets(videos: list[dict[str, np.ndarray]], labels: list[str] | None = None) -> list[np.ndarray]:
    """Draw an image for each camera, with a strip of frames for each video."""
    sheets = []
    for camera, first in videos[0].items():
        scale = max(1, 96 // first.shape[1])
        strips = [by_camera[camera] for by_camera in videos]
        sheets.append(contact_sheet(strips, columns=COLUMNS, scale=scale, labels=labels))
    return sheets


def _enlarge(frame: np.ndarray) -> np.ndarray:
    scale = max(1, FRAME_HEIGHT // frame.shape[0])
    return frame.repeat(scale, 0).repeat(scale, 1)
