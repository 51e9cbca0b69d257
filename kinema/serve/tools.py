"""The tools that a language model gets: their arguments, their answers, and what they may change.

Nothing here needs PyTorch, so that a client can list the tools while the world is loaded.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

from mcp.types import CallToolResult, ToolAnnotations
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from kinema.serve.workbench import Workbench

MAX_STEPS = 200
"""Steps of one imagined or executed sequence."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
SessionId = Annotated[str, Field(description="The session, as start answered it.")]
Actions = Annotated[
    list[Annotated[list[Number], Field(min_length=1, max_length=1024)]],
    Field(min_length=1, max_length=MAX_STEPS, description="Actions, one after the other."),
]
Hold = Annotated[
    int, Field(ge=1, le=MAX_STEPS, description="Repeat each action for so many steps: give waypoints.")
]
Index = Annotated[int, Field(ge=0)]
State = dict[str, float | list[float] | None]


class GoalInput(BaseModel):
    """One of: a name, a state, a recorded row, an image."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="One of named_goals of list_worlds.")
    state: dict[str, Number | list[Number]] | None = Field(
        None, description="Quantities of list_worlds, such as {'block': [x, y]}; those left out do not count."
    )
    episode: Index | None = Field(None, description="With row: the frame that a recorded episode has there.")
    row: Index | None = None
    image: str | None = Field(None, description="A PNG or JPEG file in base64, of the world's frame size.")
    only: list[str] | None = Field(None, description="Compare only these quantities of the state.")


class Answer(BaseModel):
    message: str = Field(description="The answer in words, and the tool to call next.")


class ActionRange(BaseModel):
    name: str
    low: float = Field(description="The recorded numbers lie between this")
    high: float = Field(description="and this.")


class Camera(BaseModel):
    key: str
    height: int
    width: int


class RecordedEpisode(BaseModel):
    index: int
    num_rows: int


class ServedWorld(BaseModel):
    name: str
    steps_per_second: float
    cameras: list[Camera]
    actions: list[ActionRange] = Field(description="The numbers of an action, in this order.")
    quantities: dict[str, str] = Field(description="What state and goals can name, with its unit.")
    named_goals: dict[str, State]
    episodes: list[RecordedEpisode] = Field(description="The first recorded episodes to start from.")
    num_episodes: int
    has_environment: bool = Field(description="True where sessions can act in the real environment.")


class Worlds(Answer):
    worlds: list[ServedWorld]


class SessionAnswer(Answer):
    session: str = Field(description="Give it to the other tools.")


Rounded = Annotated[float, AfterValidator(lambda value: round(value, 4))]
Trust = Annotated[
    Rounded | None,
    Field(description="From 1 towards 0: trust in the simulated frame; null where the world computes none."),
]

Outside = Annotated[
    dict[str, Rounded],
    Field(
        description="Given numbers that lie outside the recorded ones: name and distance in units of the "
        "recorded range. Empty where none does."
    ),
]


class Environment(BaseModel):
    state: State


class Shown(SessionAnswer):
    """Where a session is. The images are the simulator's frame, then the real environment's."""

    num_steps: int = Field(description="Steps simulated since the start or the last act.")
    trust: Trust
    outside: Outside
    state: State = Field(description="Quantities read in the simulator's frame; null for what is not seen.")
    environment: Environment | None = Field(description="The real environment, where one is attached.")


class Future(BaseModel):
    future: int = Field(description="Its row in the image; -1 is the present.")
    num_steps: int
    trust: Trust
    outside: Outside
    state: State = Field(description="At its end.")


class Imagined(SessionAnswer):
    futures: list[Future]


class RankedFuture(BaseModel):
    future: int
    score: Rounded = Field(description="0 at the goal, 1 as far as can be.")
    distance: dict[str, Rounded] = Field(description="To the goal, by quantity.")
    trust: Trust


class Ranked(SessionAnswer):
    ranking: list[RankedFuture] = Field(description="The nearest first.")


class PlannedFuture(SessionAnswer):
    actions: list[list[Rounded]]
    num_steps: int
    trust: Trust
    outside: Outside
    state: State = Field(description="At the end of the plan, in the simulator.")
    distance_now: dict[str, Rounded]
    distance_planned: dict[str, Rounded]
    num_candidates: int = Field(description="Plans that were tried.")
    seconds: float
    is_complete: bool = Field(description="False where the time was over before the search was.")


class Tools:
    """The tools over a workbench that ``ready`` waits for."""

    def __init__(self, ready: "Callable[[], Awaitable[Workbench]]"):
        self._ready = ready

    @property
    def all(self) -> list[tuple[Callable[..., Awaitable[CallToolResult]], ToolAnnotations]]:
        """Every tool in the order of use, with what it may change: nothing, something, or for good."""
        reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        adds = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
        destroys = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
        return [
            (self.list_worlds, reads),
            (self.start, adds),
            (self.look, reads),
            (self.imagine, reads),
            (self.compare, reads),
            (self.plan, reads),
            (self.act, destroys),
            (self.simulate, adds),
            (self.rewind, adds),
            (self.close, destroys),
        ]

    async def list_worlds(self) -> Annotated[CallToolResult, Worlds]:
        """Describe the world: its actions with their recorded ranges, its cameras, the quantities that can be
        read in its frames, the goals that have names, and the episodes to start from."""
        return await (await self._ready()).list_worlds()

    async def start(
        self,
        episode: Annotated[Index, Field(description="A recorded episode.")] = 0,
        row: Annotated[Index, Field(description="The row of it to start at.")] = 3,
        environment: Annotated[
            bool, Field(description="Attach the real environment, at the same place, to act in.")
        ] = True,
        seed: Annotated[Index, Field(description="Of the simulator's noise.")] = 0,
    ) -> Annotated[CallToolResult, Shown]:
        """Begin a session at a row of a recorded episode. Answers its id, its frame and its state."""
        return await (await self._ready()).start(episode, row, environment, seed)

    async def look(self, session: SessionId) -> Annotated[CallToolResult, Shown]:
        """Show where the session is: its frame, the real environment's where one is attached, and the
        state."""
        return await (await self._ready()).look(session)

    async def imagine(
        self,
        session: SessionId,
        sequences: Annotated[list[Actions], Field(min_length=1, max_length=32)],
        hold: Hold = 1,
    ) -> Annotated[CallToolResult, Imagined]:
        """Try several action sequences in the simulator, each from the present, all at once; nothing is
        carried out. Answers a strip of frames for each, with its last state and trust."""
        return await (await self._ready()).imagine(session, sequences, hold)

    async def compare(self, session: SessionId, goal: GoalInput) -> Annotated[CallToolResult, Ranked]:
        """Rank the futures that were imagined last by how near they end to a goal; the present is ranked
        with them, as future -1."""
        return await (await self._ready()).compare(session, goal)

    async def plan(
        self,
        session: SessionId,
        goal: GoalInput,
        horizon: Annotated[int, Field(ge=1, le=60, description="Steps of the plan.")] = 20,
        max_seconds: Annotated[
            float, Field(gt=0, le=30, description="After so long the best plan so far is the answer.")
        ] = 10.0,
        planner: Annotated[str, Field(description="cem or mppi.", pattern="^(cem|mppi)$")] = "cem",
        seed: Annotated[int, Field(ge=0, lt=2**31, description="Of the search.")] = 0,
    ) -> Annotated[CallToolResult, PlannedFuture]:
        """Let a planner search in the simulator for actions that lead to a goal; nothing is carried out.
        Answers the best sequence and a strip of frames of its future: future 0 for compare."""
        return await (await self._ready()).plan(session, goal, horizon, max_seconds, planner, seed)

    async def act(
        self, session: SessionId, actions: Actions, hold: Hold = 1
    ) -> Annotated[CallToolResult, Shown]:
        """Carry actions out in the real environment. The simulator then goes on from the frames that the
        environment showed. This cannot be undone."""
        return await (await self._ready()).act(session, actions, hold)

    async def simulate(
        self, session: SessionId, actions: Actions, hold: Hold = 1
    ) -> Annotated[CallToolResult, Shown]:
        """Go on in the simulator alone; rewind undoes it. The environment, where there is one, stays."""
        return await (await self._ready()).simulate(session, actions, hold)

    async def rewind(
        self, session: SessionId, num_steps: Annotated[Index, Field(description="Simulated steps to undo.")]
    ) -> Annotated[CallToolResult, Shown]:
        """Undo the last simulated steps; what was done in the environment stays done."""
        return await (await self._ready()).rewind(session, num_steps)

    async def close(self, session: SessionId) -> Annotated[CallToolResult, SessionAnswer]:
        """Close the session: the server has room for another."""
        return await (await self._ready()).close(session)
