"""Plans for sessions: a search in a thread of its own, whose every step waits for its turn with the
networks.

So nobody waits longer for a plan of somebody else than one step of ``PIECE`` candidates takes, and a plan
that takes too long ends with the best that was found.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from kinema import planners
from kinema.model.goals import encode_place
from kinema.planners import PLANNERS, SearchConfig, WorldScore
from kinema.planners.scores import normalize_actions, resolve_measure, restore_actions
from kinema.serve import images, schema
from kinema.serve.engine import Engine
from kinema.serve.goals import Goal, StateReader
from kinema.serve.limits import Limits, Refusal, closing
from kinema.serve.sessions import Session
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World
from kinema.types import Seen

PIECE = 16
"""Candidates that are simulated together."""
DEFAULT_SECONDS = 5.0
ELITE_SHARE = 0.2
"""Share of the candidates that are elites, as in ``SearchConfig``."""


class Planning:
    """The plans that are searched for; used from one event loop."""

    def __init__(self, world: World, engine: Engine, reader: StateReader, limits: Limits):
        self._world, self._engine, self._reader, self._limits = world, engine, reader, limits
        self._threads = ThreadPoolExecutor(limits.max_plans, thread_name_prefix="kinema-plan")
        self._running: set[_Turns] = set()

    @property
    def num_running(self) -> int:
        """Plans that are searched for now."""
        return len(self._running)

    async def start(
        self,
        session: Session,
        wanted: Goal | None,
        request: schema.PlanRequest,
        *,
        is_patient: bool = False,
    ) -> "asyncio.Future[schema.Planned]":
        """Begin a search from where a session is now, which the caller has for itself until this returns.
        What is returned waits for the plan, whatever becomes of the session. A search that ``is_patient``
        scores its first candidates however long that takes, so that there is a plan.

        Raises:
            Refusal: too many plans are searched for, or (when waited for, too) nothing was found in time
                (503); what is asked for does not fit (422).
            WorldError: the world has not what the goal needs.
        """
        limits = self._limits
        seconds = request.max_seconds or min(DEFAULT_SECONDS, limits.max_plan_seconds)
        if seconds > limits.max_plan_seconds:
            raise Refusal(
                422,
                f"max_seconds={seconds:g}: at most {limits.max_plan_seconds:g}",
                reason="plan",
            )
        if self.num_running >= limits.max_plans:
            raise Refusal(
                503,
                f"{self.num_running} plans are searched for already, which is the most; try again in a "
                "moment",
                reason="plans",
                retry_after=1.0,
            )
        turns = _Turns(self._engine, seconds, is_patient)
        self._running.add(turns)
        try:
            goal, measure = await self._goal(wanted, request, turns)
            goal.check(self._world)
            # Not a copy: it would have room for all the steps that the session can go back.
            origin: SimulationBatch = await turns.take(lambda: session.simulation.fork(1, max_rewind=0))
            score = _Best(WorldScore(origin, goal, max_batch=PIECE, run=turns.wait), turns)
            last_action = session.last_action
        except _OutOfTimeError:
            self._running.discard(turns)
            raise _nothing_found(request.horizon, seconds) from None
        except BaseException:
            self._running.discard(turns)
            raise
        return asyncio.ensure_future(self._search(score, turns, last_action, measure, request))

    def stop(self) -> None:
        """End every search."""
        for turns in self._running:
            turns.stop()

    async def close(self) -> None:
        """End every search, and wait for their threads."""
        self.stop()
        await asyncio.to_thread(self._threads.shutdown)

    async def _search(
        self,
        score: "_Best",
        turns: "_Turns",
        last_action: np.ndarray | None,
        measure: Any,
        request: schema.PlanRequest,
    ) -> schema.Planned:
        planner = PLANNERS[request.planner](_search_config(request))
        start = np.zeros(self._world.config.dynamics.action_dim)
        if last_action is not None:
            start = np.clip(normalize_actions(self._world, last_action), -1.0, 1.0)
        starts = np.repeat(start[None], request.horizon, axis=0)

        def search() -> bool:
            try:
                planner.plan(score, starts, np.random.default_rng(request.seed))
            except _OutOfTimeError:
                return False
            return True

        try:
            is_complete = await asyncio.get_running_loop().run_in_executor(self._threads, search)
        finally:
            turns.stop()
            self._running.discard(turns)
        if score.best is None:
            raise _nothing_found(request.horizon, turns.allowed)
        return schema.Planned(
            actions=restore_actions(self._world, score.best).tolist(),
            score=score.best_score,
            score_of_start=score.first_score,
            measure=measure,
            num_candidates=score.num_candidates,
            num_steps=score.num_steps,
            seconds=round(turns.seconds, 3),
            is_complete=is_complete,
        )

    async def _goal(
        self, wanted: Goal | None, request: schema.PlanRequest, turns: "_Turns"
    ) -> tuple[planners.Goal, str]:
        """The goal as it is planned for, and what it measures."""
        weights: dict[str, Any] = {"reward_weight": request.reward_weight, "min_trust": request.min_trust}
        if wanted is None:
            if not request.reward_weight:
                raise Refusal(
                    422, "nothing to plan for: give a goal, a reward_weight, or both", reason="goal"
                )
            return planners.Goal(**weights), "reward"
        if wanted.state:
            return planners.Goal(target=self._distance_to(wanted), **weights), "state"
        measure = resolve_measure(self._world, request.measure)
        target = await turns.take(lambda: self._encode(wanted, measure))
        return planners.Goal(target=target, measure=measure, **weights), measure

    def _distance_to(self, wanted: Goal) -> planners.Distance:
        """Measure distances from a state, as the frames show it."""

        def distance(sessions: SimulationBatch) -> np.ndarray:
            frames = images.by_camera(sessions.look().frame, self._world)
            return np.asarray(self._reader.score(self._reader.distances(frames, wanted)))

        return distance

    def _encode(self, wanted: Goal, measure: str) -> Tensor:
        proprio = wanted.proprio
        if proprio is None and measure == "latents" and self._world.cameras:
            # Latents are compared without it, and to find it in the frame takes half a second.
            proprio = np.zeros(self._world.proprio_dim, np.float32)
        return encode_place(self._world, Seen(frames=dict(wanted.frames or {}), proprio=proprio))


class _OutOfTimeError(Exception):
    """The time of a search is over."""


class _Turns:
    """The turns of one search with the networks, until its time is over."""

    def __init__(self, engine: Engine, seconds: float, is_patient: bool):
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self.allowed = seconds
        self._began = self._loop.time()
        self._deadline = self._began + seconds
        self._is_stopped = False
        self.is_patient = is_patient
        """True while turns are taken though the time is over."""
        self._pending: concurrent.futures.Future[Any] | None = None

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return self._loop.time() - self._began

    async def take(self, work: Callable[[], Any]) -> Any:
        """One piece of work, in its turn. Raises _OutOfTimeError."""
        try:
            async with asyncio.timeout_at(None if self.is_patient else self._deadline):
                return await self._engine.run(work)
        except TimeoutError:
            raise _OutOfTimeError from None

    def wait(self, work: Callable[[], Any]) -> Any:
        """The same from the thread of the search. Raises Refusal (503) where the search was stopped."""
        self._pending = asyncio.run_coroutine_threadsafe(self.take(work), self._loop)
        if self._is_stopped:  # Perhaps before there was anything to cancel.
            self._pending.cancel()
        try:
            return self._pending.result()
        except concurrent.futures.CancelledError:
            raise closing() from None

    def stop(self) -> None:
        """Let the search end at once, whoever waits for it."""
        self._is_stopped = True
        if self._pending is not None:
            self._pending.cancel()


class _Best:
    """A score that keeps the best candidate of all that were scored, for a search that may not end."""

    def __init__(self, score: WorldScore, turns: _Turns):
        self._score, self._turns = score, turns
        self.best: np.ndarray | None = None
        self.best_score, self.first_score = -np.inf, -np.inf
        self.num_candidates = 0

    @property
    def num_steps(self) -> int:
        return self._score.num_steps

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [self._keep(candidates[first : first + PIECE]) for first in range(0, len(candidates), PIECE)]
        )

    def _keep(self, candidates: np.ndarray) -> np.ndarray:
        scores = self._score(candidates)
        if self.best is None:
            self.first_score, self._turns.is_patient = float(scores[0]), False
        top = int(scores.argmax())
        if scores[top] > self.best_score:
            self.best, self.best_score = candidates[top], float(scores[top])
        self.num_candidates += len(candidates)
        return scores


def _search_config(request: schema.PlanRequest) -> SearchConfig:
    return SearchConfig(
        horizon=request.horizon,
        num_knots=min(request.num_knots, request.horizon),
        candidates=request.candidates,
        iterations=request.iterations,
        elites=max(2, round(ELITE_SHARE * request.candidates)),
    )


def _nothing_found(horizon: int, seconds: float) -> Refusal:
    return Refusal(
        503,
        f"within max_seconds={seconds:g} no plan of {horizon} actions was simulated to "
        "its end; give more time or a shorter horizon, or try again when fewer ask",
        reason="plan-time",
        retry_after=1.0,
    )
