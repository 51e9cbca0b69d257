"""What a server does with a world, whatever the protocol that asks for it."""

import asyncio
import base64
import dataclasses
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinema.data import Dataset
from kinema.data.view import write_video
from kinema.kits import find_kit
from kinema.model.goals import encode_place
from kinema.policies.cloned import Clone, ClonedPolicy
from kinema.serve import images, schema
from kinema.serve.beside import Beside, find_beside, has_beside
from kinema.serve.engine import Engine
from kinema.serve.goals import Goal, StateReader
from kinema.serve.limits import Limits, Refusal
from kinema.serve.metrics import Metrics
from kinema.serve.planning import Planning
from kinema.serve.sessions import Session, Sessions
from kinema.simulation.session import BUNDLED_WORLDS, MAX_REWIND, Simulation, World, moment_bytes
from kinema.types import Episode, Seen

FIRST_ROW = 3
"""Row of an episode at which a session begins where none is asked for."""
MAX_EPISODES = 3
"""Decoded episodes that are kept."""
PIECE = 32
"""Pictures that are decoded in one piece of work, so that nobody waits long."""


class Service:
    """A world, its recordings, and the sessions that are open in it; used from one event loop."""

    def __init__(
        self,
        world: World,
        dataset: Dataset | None,
        limits: Limits,
        *,
        clone: Clone | None = None,
        num_threads: int | None = None,
    ):
        """``dataset`` holds the episodes that sessions may begin in, ``clone`` is the policy that acts,
        ``num_threads`` are PyTorch's that the networks run on. Raises ValueError where the dataset does not
        fit the world, or the memory allows no session."""
        if dataset is not None:
            missing = [key for key in world.cameras if key not in dataset.cameras]
            if missing:
                raise ValueError(f"{dataset.root}: no camera {', '.join(missing)}, which the world needs")
        self.world, self.limits = world, limits
        self.metrics = Metrics()
        self.engine = Engine(limits, self.metrics, num_threads)
        self.sessions = Sessions(limits, self.metrics, session_bytes=session_bytes(world, limits))
        columns = () if dataset is None else dataset.features
        self.kit = find_kit(world.name, columns)
        self.reader = StateReader(self.kit, world.cameras)
        self.planning = Planning(world, self.engine, self.reader, limits)
        self._policy = None if clone is None else ClonedPolicy(world, clone)
        self._dataset = dataset
        self._episodes: OrderedDict[int, Episode] = OrderedDict()
        self._reading = asyncio.Lock()
        self._filming = asyncio.Semaphore(2)
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work, in the running event loop."""
        self.engine.start()
        self._expiry = asyncio.create_task(self._expire())

    async def close(self) -> None:
        """Close every session and stop."""
        if self._expiry is not None:
            self._expiry.cancel()
        await self.planning.close()
        await self.engine.close()
        self.sessions.close_all()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(min(10.0, 15.0 * self.limits.idle_minutes))
            self.sessions.expire()

    # What there is.

    @property
    def num_episodes(self) -> int:
        return 0 if self._dataset is None else self._dataset.num_episodes

    def describe(self) -> schema.WorldInfo:
        """What a client has to know of the world."""
        world = self.world
        tokenizer = world.config.tokenizer
        center, scale = world.action_normalizer.center.tolist(), world.action_normalizer.scale.tolist()
        return schema.WorldInfo(
            name=world.name,
            fps=world.fps,
            cameras=[
                schema.CameraInfo(key=key, height=tokenizer.height, width=tokenizer.width)
                for key in world.cameras
                if tokenizer is not None
            ],
            actions=[
                schema.ActionInfo(name=name, low=middle - half, high=middle + half)
                for name, middle, half in zip(world.config.action_names, center, scale, strict=True)
            ],
            pointer=self.reader.pointer,
            proprio_key=world.config.proprio_key,
            proprio_dim=world.proprio_dim,
            num_denoising_steps=world.config.num_denoising_steps,
            max_rewind=min(MAX_REWIND, self.limits.max_pictures - 1),
            has_beside=has_beside(self.kit),
            has_heads=world.heads is not None,
            has_policy=self._policy is not None,
            quantities={
                key: "degrees" if quantity.is_angle else "in the units of the actions, x right, y down"
                for key, quantity in self.reader.quantities.items()
            },
            num_episodes=self.num_episodes,
            limits=dataclasses.asdict(self.limits),
        )

    def list_episodes(self, first: int, num: int) -> schema.Episodes:
        """Some of the recorded episodes."""
        lengths = [] if self._dataset is None else self._dataset.lengths()[first : first + num]
        return schema.Episodes(
            num=self.num_episodes,
            episodes=[
                schema.EpisodeInfo(index=first + index, num_rows=int(length))
                for index, length in enumerate(lengths)
            ],
        )

    async def episode(self, index: int) -> Episode:
        """A recorded episode. Raises Refusal (404)."""
        if not 0 <= index < self.num_episodes:
            raise Refusal(
                404,
                f"no episode {index}: this server has {self.num_episodes}, counted from 0"
                + ("" if self.num_episodes else "; start from frames instead"),
                reason="episode",
            )
        assert self._dataset is not None
        async with self._reading:
            if index not in self._episodes:
                self._episodes[index] = await asyncio.to_thread(
                    self._dataset.episode, index, self.world.cameras
                )
            self._episodes.move_to_end(index)
            while len(self._episodes) > MAX_EPISODES:
                self._episodes.popitem(last=False)
            return self._episodes[index]

    # Sessions.

    async def open(self, request: schema.Start, client: str) -> Session:
        """Begin a session. Raises Refusal, or WorldError where what is given does not fit the world."""
        self._check_denoising(request.num_denoising_steps)
        self._refuse_text(request.text)
        if (request.episode is None) == (request.frames is None and request.proprio is None):
            raise Refusal(
                422,
                "start from an episode, or else from frames (from proprio in a world without cameras)",
                reason="start",
            )
        with self.sessions.room(client):
            beside = None
            if request.episode is not None:
                episode = await self.episode(request.episode)
                first, last = self._span(request, len(episode))
                if request.beside:
                    beside = await asyncio.to_thread(
                        find_beside, self.world, self.kit, episode, first=first, last=last
                    )
                rows = slice(first, last + 1)
                frames = {key: film[rows] for key, film in episode.frames.items()}
                actions = episode.columns["action"][first:last]
                key = self.world.config.proprio_key
                proprio = episode.columns[key][rows] if key and key in episode.columns else None
            else:
                frames, actions, proprio = await asyncio.to_thread(self._given, request)

            def begin() -> Simulation:
                batch = self.world.start_batch(
                    {key: film[None] for key, film in frames.items()} or None,
                    None if actions is None else actions[None],
                    proprio=None if proprio is None else proprio[None],
                    seeds=[request.seed],
                    num_denoising_steps=request.num_denoising_steps,
                    max_pictures=self.limits.max_pictures,
                )
                return Simulation(batch)

            simulation = await self.engine.run(begin)
            step = await self.engine.run(simulation.look)
            return self.sessions.add(
                Session(
                    simulation=simulation,
                    client=client,
                    step=step,
                    seed=request.seed,
                    last_action=actions[-1] if actions is not None and len(actions) else None,
                    beside=beside,
                )
            )

    async def step(self, sessions: Sequence[Session], actions: Sequence[Any], *, decode: bool = True) -> None:
        """One step of each session, which the caller has for itself."""
        shape = (len(sessions), self.world.action_dim)
        rows = self.check_actions(actions, shape)
        beside = [
            asyncio.create_task(asyncio.to_thread(_step_beside, session.beside, row, decode))
            for session, row in zip(sessions, rows, strict=True)
            if session.beside is not None
        ]
        simulations = [session.simulation for session in sessions]
        steps = await self.engine.step(simulations, list(rows), decode=decode)
        await asyncio.gather(*beside)
        for session, step, row in zip(sessions, steps, rows, strict=True):
            session.step, session.last_action = step, row

    def check_actions(self, actions: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Actions as float32. Raises Refusal (422) where there are too many, and WorldError."""
        if len({len(row) for row in actions}) > 1:
            raise Refusal(422, "actions: rows differ in length", reason="actions")
        return self.world.check_actions(actions, shape, "actions")

    async def rewind(self, session: Session, num_steps: int) -> None:
        """Undo the last steps. Raises WorldError where it cannot go back so far."""

        def back() -> None:
            session.simulation.rewind(num_steps)
            session.step, session.last_action = session.simulation.look(), None

        await self.engine.run(back)
        if session.beside is not None:
            session.beside.rewind(num_steps)

    async def fork(self, session: Session, num: int, *, same_noise: bool, client: str) -> list[Session]:
        """Sessions that go on from here."""
        if num > self.limits.max_forks:
            raise Refusal(422, f"num={num}: at most {self.limits.max_forks} at once", reason="fork")
        with self.sessions.room(client, num):
            children: list[Session] = []
            for child in range(num):
                # One by one: nobody waits for the copying of them all.
                simulation, seed = await self.engine.run(lambda n=child: _child(session, n, same_noise))
                beside = None if session.beside is None else await asyncio.to_thread(session.beside.copy)
                children.append(
                    Session(
                        simulation=simulation,
                        client=client,
                        step=session.step,
                        seed=seed,
                        last_action=session.last_action,
                        beside=beside,
                    )
                )
            return [self.sessions.add(child) for child in children]

    async def change(self, session: Session, request: schema.ChangeRequest) -> None:
        """Other noise, or another number of network calls, from here on."""
        self._check_denoising(request.num_denoising_steps)
        await self.engine.run(
            lambda: session.simulation.change(
                seed=request.seed, num_denoising_steps=request.num_denoising_steps
            )
        )
        session.seed = session.seed if request.seed is None else request.seed

    async def look(self, session: Session) -> None:
        """See to it that the session has its present picture."""
        if session.step.frame is None and self.world.cameras:
            session.step = await self.engine.run(session.simulation.look)

    async def pictures(self, session: Session, first: int, num: int) -> dict[str, np.ndarray]:
        """Some of the past pictures by camera, ``T H W 3``."""
        simulation = session.simulation
        if not self.world.cameras:
            raise Refusal(422, f"world '{self.world.name}' has no camera", reason="camera")
        stop = min(first + min(num, PIECE), simulation.num_pictures)
        if first >= stop:
            raise Refusal(
                422,
                f"first={first}: this session keeps {simulation.num_pictures} pictures",
                reason="pictures",
            )
        found = await self.engine.run(lambda: simulation.pictures(slice(first, stop)))
        return images.by_camera(found, self.world)

    async def video(self, session: Session) -> bytes:
        """The past pictures as an mp4, several cameras side by side."""
        async with self._filming:
            pieces = [
                await self.pictures(session, first, PIECE)
                for first in range(0, session.simulation.num_pictures, PIECE)
            ]
            film = [np.concatenate(list(piece.values()), axis=2) for piece in pieces]
            return await asyncio.to_thread(_mp4, np.concatenate(film), self.world.fps)

    async def infer(self, request: schema.InferRequest) -> np.ndarray:
        """Inverse dynamics: the actions between pictures, ``T-1 A``."""
        frames = await asyncio.to_thread(self._decode, request.frames)
        proprio = _matrix(request.proprio, "proprio", self.world.proprio_dim)
        return await self.engine.run(lambda: self.world.infer(frames, proprio=proprio))

    async def plan(self, session_id: str, request: schema.PlanRequest) -> schema.Planned:
        """A plan from where a session is; the session can be used while it is searched for."""
        wanted = None if request.goal is None else await self.goal(request.goal)
        async with self.sessions.use(session_id) as session:
            search = await self.planning.start(session, wanted, request)
        return await search

    async def act(self, session: Session, request: schema.ActRequest) -> np.ndarray:
        """What the cloned policy would do next, ``C A``. Raises Refusal (404) where there is none."""
        policy = self._policy
        if policy is None:
            raise Refusal(
                404,
                f"world '{self.world.name}' has no cloned policy; learn one from recordings with `kinema "
                "train DATA --clone --world WORLD --out FOLDER`, and serve that folder",
                reason="policy",
            )
        wanted = None if request.goal is None else await self.goal(request.goal)
        if wanted is not None and wanted.state:
            raise Refusal(
                422,
                "goal: a cloned policy knows no states; give frames, or episode and row",
                reason="goal",
            )

        def act() -> np.ndarray:
            goal = None
            if wanted is not None:
                goal = encode_place(self.world, Seen(frames=wanted.frames or {}, proprio=wanted.proprio))
            before, here = session.simulation.last_places(2)
            return policy.foretell(before, here, goal)

        return await self.engine.run(act)

    async def goal(self, request: schema.GoalRequest) -> Goal:
        """A goal, checked. Raises Refusal and WorldError."""
        self._refuse_text(request.text)
        is_given = [request.episode is not None, request.frames is not None, request.state is not None]
        is_given.append(request.proprio is not None and request.frames is None)
        if sum(is_given) != 1:
            raise Refusal(
                422,
                "goal: give one of episode (with row), frames, state; or proprio in a world without cameras",
                reason="goal",
            )
        if request.state is not None:
            state = self.reader.check(request.state)
            if not state:
                raise Refusal(422, "goal: state names no quantity", reason="goal")
            return Goal(state)
        key, cameras = self.world.config.proprio_key, self.world.cameras
        if request.episode is not None:
            recorded = await self.episode(request.episode)
            row = request.row or 0
            if row >= len(recorded):
                raise Refusal(
                    422,
                    f"goal: row={row}: episode {request.episode} has rows 0 to {len(recorded) - 1}",
                    reason="row",
                )
            films = {camera: recorded.frames[camera][row : row + 1] for camera in cameras}
            proprio = recorded.columns[key][row] if key and key in recorded.columns else None
        else:
            films = {}
            if request.frames is not None:
                given = {camera: [text] for camera, text in request.frames.items()}
                films = await asyncio.to_thread(self._decode, given)
            given_proprio = None if request.proprio is None else [request.proprio]
            rows = _matrix(given_proprio, "goal.proprio", self.world.proprio_dim)
            proprio = None if rows is None else rows[0]
        if cameras and not films:
            raise Refusal(422, f"goal: frames of {', '.join(cameras)} are needed", reason="goal")
        checked = self.world.by_camera(films or None)
        return Goal({}, {camera: film[0] for camera, film in checked.items()}, proprio)

    # Answers.

    def state(self, session: Session, kind: schema.Shown) -> schema.State:
        """A session as answers show it."""
        simulation, step = session.simulation, session.step
        beside = None
        if session.beside is not None:
            beside = _shown(dict(session.beside.look()), kind) if kind != "none" else {}
        return schema.State(
            session=session.id,
            num_steps=simulation.num_steps,
            num_rewindable=simulation.num_rewindable,
            seed=session.seed,
            num_denoising_steps=simulation.num_denoising_steps,
            trust=step.trust,
            outside=dict(step.outside),
            proprio=None if step.proprio is None else step.proprio.tolist(),
            frames=_shown(images.by_camera(step.frame, self.world), kind),
            beside=beside,
        )

    async def using(self, stack: AsyncExitStack, session_ids: Sequence[str]) -> list[Session]:
        """Several sessions for oneself; in one order whoever asks, so that none waits for ever."""
        if len(set(session_ids)) < len(session_ids):
            raise Refusal(
                422, "sessions: one stands twice; a session takes one step at a time", reason="step"
            )
        held = {key: await stack.enter_async_context(self.sessions.use(key)) for key in sorted(session_ids)}
        return [held[key] for key in session_ids]

    # Requests.

    def _span(self, request: schema.Start, num_rows: int) -> tuple[int, int]:
        last = min(FIRST_ROW, num_rows - 1) if request.row is None else request.row
        if last >= num_rows:
            raise Refusal(
                422, f"row={last}: episode {request.episode} has rows 0 to {num_rows - 1}", reason="row"
            )
        return max(0, last + 1 - request.context), last

    def _given(
        self, request: schema.Start
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray | None]:
        frames = {} if request.frames is None else self._decode(request.frames)
        return (
            frames,
            _matrix(request.actions, "actions", self.world.action_dim),
            _matrix(request.proprio, "proprio", self.world.proprio_dim),
        )

    def _decode(self, frames: dict[str, list[str]]) -> dict[str, np.ndarray]:
        if not self.world.cameras:
            raise Refusal(422, f"world '{self.world.name}' has no camera: give proprio", reason="camera")
        return images.decode_frames(frames, self.world, max_frames=self.limits.max_frames)

    def _refuse_text(self, text: str | None) -> None:
        if text is not None:
            raise Refusal(
                422,
                f"text: world '{self.world.name}' knows no words (no world of this version does); leave text "
                "out, and give a picture, a recorded row or a state as the goal",
                reason="text",
            )

    def _check_denoising(self, num: int | None) -> None:
        if num is not None and num > self.limits.max_denoising_steps:
            raise Refusal(
                422, f"num_denoising_steps={num}: at most {self.limits.max_denoising_steps}", reason="steps"
            )


def session_bytes(world: World, limits: Limits) -> int:
    """What a session takes at most: its cache, and the pictures that it keeps."""
    cache = world.dynamics.new_cache(1, max_rewind=MAX_REWIND)
    # Room for pictures doubles as it is needed, and what was there is copied.
    return cache.num_bytes + 3 * limits.max_pictures * moment_bytes(world) // 2


def find_recordings(source: str, data: Path | None) -> Dataset | None:
    """The episodes that sessions may begin in: those of ``data``, or those that the world brings."""
    if data is not None:
        return Dataset.open(data)
    folder = Path(source) if Path(source).is_dir() else BUNDLED_WORLDS / source
    own = folder / "recording"
    return Dataset.open(own) if own.is_dir() else None


def _step_beside(beside: Beside, action: np.ndarray, decode: bool) -> None:
    beside.step(action)
    if decode:
        # Drawn here, while the networks work, and not when they are done and the client waits.
        beside.look()


def _child(session: Session, index: int, same_noise: bool) -> tuple[Simulation, int]:
    simulation = session.simulation
    if same_noise:
        return simulation.copy(), session.seed
    child = simulation.future(index)
    return child, child.seed


def _shown(
    pictures: dict[str, np.ndarray], kind: Literal["jpeg", "png", "raw", "none"]
) -> dict[str, schema.Picture]:
    if kind == "none":
        return {}
    return {
        key: schema.Picture(
            format=kind,
            height=picture.shape[0],
            width=picture.shape[1],
            data=base64.b64encode(images.encode(picture, kind)).decode(),
        )
        for key, picture in pictures.items()
    }


def _matrix(rows: Sequence[Sequence[float]] | None, what: str, width: int) -> np.ndarray | None:
    if rows is None:
        return None
    if len({len(row) for row in rows}) > 1:
        raise Refusal(422, f"{what}: rows differ in length", reason="rows")
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else width)


def _mp4(film: np.ndarray, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_video(path, film, fps=fps, scale=max(1, 256 // film.shape[1]))
        return path.read_bytes()
