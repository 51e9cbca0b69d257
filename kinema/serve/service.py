"""The work of a server with a world, whatever the protocol that asks for it."""

import asyncio
import base64
import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal

import numpy as np

from kinema.data import Dataset
from kinema.data.drawing import encode_mp4
from kinema.data.frames import join_cameras
from kinema.kits import find_kit
from kinema.model.goals import encode_place
from kinema.policies.cloned import Clone, ClonedPolicy
from kinema.serve import images, schema
from kinema.serve.beside import Beside, find_beside, has_beside
from kinema.serve.engine import Engine
from kinema.serve.goals import StateReader
from kinema.serve.inputs import Inputs
from kinema.serve.limits import Limits, Refusal
from kinema.serve.metrics import Metrics
from kinema.serve.planning import Planning
from kinema.serve.recordings import Recordings
from kinema.serve.sessions import Session, Sessions
from kinema.simulation.session import MAX_REWIND, Simulation, moment_bytes
from kinema.simulation.step import Step
from kinema.simulation.world import World
from kinema.types import Episode, Seen

PIECE = 32
"""Frames that are decoded in one piece of work, so that nobody waits long."""


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
        self.world, self.limits = world, limits
        self.metrics = Metrics()
        self.engine = Engine(limits, self.metrics, num_threads)
        self.sessions = Sessions(limits, self.metrics, session_bytes=session_bytes(world, limits))
        columns = () if dataset is None else dataset.features
        self.kit = find_kit(world.name, columns)
        self.reader = StateReader(self.kit, world.cameras)
        self.planning = Planning(world, self.engine, self.reader, limits)
        self.metrics.plans.set_function(lambda: self.planning.num_running)
        self.recordings = Recordings(world, dataset)
        self._inputs = Inputs(world, self.recordings, self.reader, limits)
        self._policy = None if clone is None else ClonedPolicy(world, clone)
        self._filming = asyncio.Semaphore(2)
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work, in the running event loop."""
        self.engine.start()
        self._expiry = asyncio.create_task(self._expire())

    def stop(self) -> None:
        """End the work of all requests: plans, and steps that wait."""
        self.planning.stop()
        self.engine.stop()

    async def close(self) -> None:
        """Stop, and close every session."""
        if self._expiry is not None:
            self._expiry.cancel()
        await self.planning.close()
        await self.engine.close()
        self.sessions.close_all()

    async def _expire(self) -> None:
        shortest = min(60.0 * self.limits.idle_minutes, self.limits.abandoned_seconds)
        while True:
            await asyncio.sleep(min(10.0, shortest / 4))
            self.sessions.expire()

    # The world.

    @property
    def num_episodes(self) -> int:
        return len(self.recordings)

    def describe(self) -> schema.WorldInfo:
        """Describe the world to clients."""
        world = self.world
        low, high = (end.tolist() for end in world.action_normalizer.range)
        return schema.WorldInfo(
            name=world.name,
            fps=world.fps,
            cameras=[
                schema.CameraInfo(key=camera.key, height=camera.native_height, width=camera.native_width)
                for camera in world.config.cameras
            ],
            actions=[
                schema.ActionInfo(name=name, low=least, high=most)
                for name, least, most in zip(world.config.action_names, low, high, strict=True)
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
        """List some of the recorded episodes."""
        return self.recordings.list(first, num)

    async def episode(self, index: int) -> Episode:
        """Read a recorded episode. Raises Refusal (404)."""
        return await self.recordings.episode(index)

    # Sessions.

    async def open(self, request: schema.Start, client: str) -> Session:
        """Begin a session. Raises Refusal, or WorldError where the input does not fit the world."""
        self._inputs.check_denoising(request.num_denoising_steps)
        with self.sessions.room(client):
            given = await self._inputs.context(request)
            beside = None
            if request.beside and given.episode is not None:
                beside = await asyncio.to_thread(
                    find_beside, self.world, self.kit, given.episode, first=given.first, last=given.last
                )

            def begin() -> tuple[Simulation, Step]:
                batch = self.world.start_batch(
                    {key: frames[None] for key, frames in given.frames.items()} or None,
                    None if given.actions is None else given.actions[None],
                    proprio=None if given.proprio is None else given.proprio[None],
                    seeds=[request.seed],
                    num_denoising_steps=request.num_denoising_steps,
                    max_pictures=self.limits.max_pictures,
                )
                simulation = Simulation(batch)
                return simulation, simulation.look()

            simulation, step = await self.engine.run(begin)
            return self.sessions.add(
                Session(
                    simulation=simulation,
                    client=client,
                    step=step,
                    seed=request.seed,
                    last_action=given.actions[-1]
                    if given.actions is not None and len(given.actions)
                    else None,
                    beside=beside,
                )
            )

    async def step(self, sessions: Sequence[Session], actions: Sequence[Any], *, decode: bool = True) -> None:
        """One step of each session, which the caller has for itself."""
        rows = self._inputs.actions(actions, (len(sessions), self.world.action_dim))
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

    def check_many(self, actions: Sequence[Any]) -> None:
        """Check the actions of many steps before the first. Raises Refusal (422) and WorldError."""
        most = self.limits.max_actions
        if len(actions) > most:
            raise Refusal(422, f"{len(actions)} actions, at most {most} at once", reason="actions")
        self._inputs.actions(actions, (len(actions), self.world.action_dim))

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
        self._inputs.check_denoising(request.num_denoising_steps)
        await self.engine.run(
            lambda: session.simulation.change(
                seed=request.seed, num_denoising_steps=request.num_denoising_steps
            )
        )
        session.seed = session.seed if request.seed is None else request.seed

    async def look(self, session: Session) -> None:
        """Decode the present frame of a session, where it is not yet."""
        if session.step.frame is None and self.world.cameras:
            session.step = await self.engine.run(session.simulation.look)

    async def past_frames(self, session: Session, first: int, num: int) -> dict[str, np.ndarray]:
        """Some of the past frames by camera, ``T H W 3``."""
        simulation = session.simulation
        if not self.world.cameras:
            raise Refusal(422, f"world '{self.world.name}' has no camera", reason="camera")
        stop = min(first + min(num, PIECE), simulation.num_pictures)
        if first >= stop:
            raise Refusal(
                422, f"first={first}: this session keeps {simulation.num_pictures} frames", reason="frames"
            )
        found = await self.engine.run(lambda: simulation.pictures(slice(first, stop)))
        return images.by_camera(found, self.world)

    async def video(self, session: Session) -> bytes:
        """Encode the past frames as an mp4, several cameras side by side."""
        async with self._filming:
            pieces = [
                await self.past_frames(session, first, PIECE)
                for first in range(0, session.simulation.num_pictures, PIECE)
            ]
            frames = np.concatenate([join_cameras(piece.values()) for piece in pieces])
            scale, is_wanted = max(1, 256 // frames.shape[1]), True
            each = itertools.takewhile(lambda _: is_wanted, frames)
            try:
                return await asyncio.to_thread(encode_mp4, each, fps=self.world.fps, scale=scale)
            finally:  # The thread ends early where the client goes.
                is_wanted = False

    async def infer(self, request: schema.InferRequest) -> np.ndarray:
        """Infer the actions between frames, ``T-1 A`` (inverse dynamics)."""
        frames = await self._inputs.decode(request.frames)
        proprio = self._inputs.proprio(request.proprio)
        return await self.engine.run(lambda: self.world.infer(frames, proprio=proprio))

    async def plan(self, session_id: str, request: schema.PlanRequest) -> schema.Planned:
        """A plan from where a session is; the session can be used while it is searched for."""
        wanted = None if request.goal is None else await self._inputs.goal(request.goal)
        async with self.sessions.use(session_id) as session:
            search = await self.planning.start(session, wanted, request)
        return await search

    async def act(self, session: Session, request: schema.ActRequest) -> np.ndarray:
        """Choose the next actions by the cloned policy, ``C A``. Raises Refusal (404) where there is none."""
        policy = self._policy
        if policy is None:
            raise Refusal(
                404,
                f"world '{self.world.name}' has no cloned policy; learn one from recordings with `kinema "
                "train DATA --clone --from WORLD --out FOLDER`, and serve that folder",
                reason="policy",
            )
        wanted = None if request.goal is None else await self._inputs.goal(request.goal)
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
            return policy.predict(before, here, goal)

        return await self.engine.run(act)

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


def session_bytes(world: World, limits: Limits) -> int:
    """Compute the largest size of a session: its cache, and the frames that it keeps."""
    cache = world.dynamics.new_cache(1, max_rewind=MAX_REWIND)
    # Room for frames doubles as it is needed, and the old ones are copied.
    return cache.num_bytes + 3 * limits.max_pictures * moment_bytes(world) // 2


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
    frames: dict[str, np.ndarray], kind: Literal["jpeg", "png", "raw", "none"]
) -> dict[str, schema.Picture]:
    if kind == "none":
        return {}
    return {
        key: schema.Picture(
            format=kind,
            height=frame.shape[0],
            width=frame.shape[1],
            data=base64.b64encode(images.encode(frame, kind)).decode(),
        )
        for key, frame in frames.items()
    }
