"""Models of requests and answers: the documentation of the HTTP interface is made from them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinema.planners import SearchConfig
from kinema.planners.scores import MeasureOrAuto

# Strict: true and "1" are no numbers.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e30, le=1e30)]
Row = Annotated[list[Number], Field(min_length=1, max_length=1024)]
Action = Annotated[Row, Field(description="One number for each of the world's actions, in its units.")]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**62)]
Shown = Literal["jpeg", "png", "raw", "none"]
Kind = Annotated[
    Shown,
    Field(description="Format of frames in answers; raw is H W 3 bytes, row by row; none leaves them out."),
]
NumDenoisingSteps = Annotated[int, Field(ge=1, description="Network calls for a frame.")]


Text = Annotated[
    str | None,
    Field(
        max_length=2000,
        description="The task in words, for worlds that know words; no world does yet, and all refuse it.",
    ),
]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Start(Request):
    """Begin a session in a recorded episode, or from frames of one's own."""

    episode: int | None = Field(None, ge=0, description="A recorded episode of the server, by its position.")
    row: int | None = Field(
        None, ge=0, description="The last row of the episode that is shown; by default the 4th."
    )
    context: int = Field(4, ge=1, le=64, description="Rows of the episode that are shown, that one included.")
    frames: dict[str, list[str]] | None = Field(
        None, description="Frames by camera, oldest first: JPEG or PNG files in base64."
    )
    actions: list[Row] | None = Field(None, description="The actions between the frames, one fewer.")
    proprio: list[Row] | None = Field(
        None, description="Proprioception at each frame, where the client has it."
    )
    text: Text = None
    seed: Seed = 0
    num_denoising_steps: NumDenoisingSteps | None = None
    beside: bool = Field(False, description="Run the real simulator beside, where there is one.")
    format: Kind = "jpeg"


class StepRequest(Request):
    action: Action
    format: Kind = "jpeg"


class StepsRequest(Request):
    """Several actions of one session, one after the other."""

    actions: list[Row] = Field(min_length=1)
    format: Kind = "jpeg"
    only_last: bool = Field(False, description="Show the last step only.")


class TogetherRequest(Request):
    """One action for each of several sessions."""

    sessions: list[str] = Field(min_length=1, max_length=1024)
    actions: list[Row] = Field(min_length=1)
    format: Kind = "jpeg"


class RewindRequest(Request):
    num_steps: int = Field(ge=0, description="Steps to undo.")
    format: Kind = "jpeg"


class ForkRequest(Request):
    num: int = Field(1, ge=1, description="Futures to open.")
    same_noise: bool = Field(
        False, description="Copies, which under the same actions give the same frames as this session."
    )


class ChangeRequest(Request):
    """Settings from here on; those left out stay as they are."""

    seed: Seed | None = None
    num_denoising_steps: NumDenoisingSteps | None = None


class InferRequest(Request):
    frames: dict[str, list[str]] = Field(description="As in Start.")
    proprio: list[Row] | None = None


class GoalRequest(Request):
    """A goal: one of a frame, a recorded row, a state; proprioception alone in a world without
    cameras."""

    frames: dict[str, str] | None = Field(
        None, description="One frame by camera: a JPEG or PNG file in base64."
    )
    episode: int | None = Field(None, ge=0, description="A recorded episode of the server, with row.")
    row: int | None = Field(None, ge=0, description="Row of the episode whose frame is the goal.")
    state: dict[str, Number | Row] | None = Field(
        None,
        description="Quantities that are read in the frames (quantities of /v1/world), in the units of "
        "the actions, angles in degrees; those left out do not count.",
    )
    proprio: Row | None = Field(None, description="Proprioception; beside frames, where the client has it.")
    text: Text = None


class PlanRequest(Request):
    """A search for actions; the session stays where it is."""

    goal: GoalRequest | None = Field(None, description="None to plan for reward alone.")
    planner: Literal["cem", "mppi"] = Field("cem", description="Cross-entropy method, or MPPI.")
    horizon: int = Field(SearchConfig.horizon, ge=1, le=200, description="Actions of the plan.")
    num_knots: int = Field(
        SearchConfig.num_knots, ge=1, le=200, description="Actions searched for; straight lines between them."
    )
    candidates: int = Field(
        SearchConfig.candidates, ge=2, le=512, description="Plans that are tried in an iteration."
    )
    iterations: int = Field(
        SearchConfig.iterations, ge=1, le=64, description="Times that candidates are drawn."
    )
    measure: MeasureOrAuto = Field(
        "auto",
        description="Distance of a frame from the goal: by the steps that the world's heads predict, by "
        "codes of its manifold, or by latents; auto takes the first of these that the world has.",
    )
    reward_weight: Number = Field(0.0, description="Weight of the rewards that the world's heads predict.")
    min_trust: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="While trust is under this, a plan comes no nearer to the goal and brings no reward.",
    )
    seed: Seed = Field(0, description="Seed of the search.")
    max_seconds: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None,
        description="After so long the best plan so far is the answer; by default 5, or the most that the "
        "server allows.",
    )


class Planned(BaseModel):
    """The best plan that was found."""

    actions: list[list[float]] = Field(description="In the units of the dataset.")
    score: float = Field(description="More is better.")
    score_of_start: float = Field(description="That of the plan that the search began with: stay as it is.")
    measure: Literal["steps", "codes", "latents", "state", "reward"] = Field(
        description="Measure of the scores. State: the mean over the quantities, 1 the largest distance."
    )
    num_candidates: int = Field(description="Plans that were tried.")
    num_steps: int = Field(description="Steps that were simulated for it.")
    seconds: float
    is_complete: bool = Field(description="The search ended before its time was over.")


class ActRequest(Request):
    """Choose actions by the world's cloned policy; the session stays where it is."""

    goal: GoalRequest | None = Field(None, description="A frame or a recorded row; None for no goal.")


class Acted(BaseModel):
    actions: list[list[float]] = Field(description="The next actions, in the units of the dataset.")


class Picture(BaseModel):
    format: Literal["jpeg", "png", "raw"]
    height: int
    width: int
    data: str = Field(description="In base64.")


class State(BaseModel):
    """A session after a request."""

    session: str
    num_steps: int = Field(description="Steps simulated so far.")
    num_rewindable: int = Field(description="Steps that it can go back.")
    seed: int
    num_denoising_steps: int
    trust: float | None = Field(description="From 1 towards 0; null where the world cannot tell.")
    outside: dict[str, float] = Field(
        default_factory=dict,
        description="Numbers given to the last step, to any step with only_last, or at the start, that lie "
        "outside the recorded ones: name and distance in units of the recorded range.",
    )
    proprio: list[float] | None
    frames: dict[str, Picture] = Field(description="By camera.")
    beside: dict[str, Picture] | None = Field(description="The same of the real simulator.")


class States(BaseModel):
    states: list[State]


class Opened(BaseModel):
    sessions: list[str]


class Inferred(BaseModel):
    actions: list[list[float]] = Field(description="The action between each frame and the next.")


class PastFrames(BaseModel):
    num: int = Field(description="Frames that are kept in all.")
    shape: dict[str, list[int]] = Field(description="T H W 3 of this answer, by camera.")
    data: dict[str, str] = Field(description="By camera: raw bytes in base64.")


class EpisodeInfo(BaseModel):
    index: int
    num_rows: int


class Episodes(BaseModel):
    num: int
    episodes: list[EpisodeInfo]


class CameraInfo(BaseModel):
    key: str
    height: int
    width: int


class ActionInfo(BaseModel):
    name: str
    low: float = Field(description="Smallest value that the recordings cover.")
    high: float = Field(description="Largest value that the recordings cover.")


class WorldInfo(BaseModel):
    """Description of the world."""

    name: str
    fps: float
    cameras: list[CameraInfo]
    actions: list[ActionInfo]
    pointer: list[list[float]] | None = Field(
        description="Where an action is a place in the frame: the actions of its top left and bottom right."
    )
    proprio_key: str | None
    proprio_dim: int
    num_denoising_steps: int
    max_rewind: int
    has_beside: bool
    has_heads: bool = Field(description="The world predicts rewards and steps to a goal.")
    has_policy: bool = Field(description="The server has a cloned policy to act.")
    quantities: dict[str, str] = Field(
        description="Quantities that goals of state can name, and their units."
    )
    num_episodes: int
    limits: dict[str, Any]


class Health(BaseModel):
    status: Literal["ok"]
    world: str
    sessions: int
    capacity: int
