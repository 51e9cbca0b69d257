"""A complete training configuration, which a recipe returns."""

import dataclasses
from typing import Literal

from kinema.data.segments import SegmentsConfig
from kinema.model.manifold import ManifoldConfig
from kinema.model.objective import DynamicsObjectiveConfig
from kinema.model.tokens import DynamicsConfig
from kinema.tokenizers import ConvTokenizerConfig, TokenizerObjectiveConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of updates of one kind."""

    updates: int
    """Optimizer steps."""
    batch: int
    """Segments (or pairs of frames) in a batch."""
    length: int = 2
    """Frames in a segment."""
    own_context_share: float = 0.0
    """Share of segments whose context is the network's own prediction."""
    own_context_steps: int = 1
    """Most steps of that prediction; each update draws from 1 to this."""

    def __post_init__(self) -> None:
        for name, least in (("updates", 0), ("batch", 1), ("length", 2), ("own_context_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Phases one after the other under one learning rate: a linear warm-up, a plateau, a linear decay."""

    phases: tuple[Phase, ...]
    learning_rate: float
    """Learning rate of the plateau."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon learns the dynamics in fewer updates; convolutions are AdamW's."""
    warmup: int = 200
    """Updates of warm-up."""
    decay_share: float = 0.4
    """Share of all updates in which the rate falls to a hundredth."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is kept in the end."""
    weight_decay: float = 1e-4

    @property
    def updates(self) -> int:
        """Updates of all phases."""
        return sum(phase.updates for phase in self.phases)

    def phase_at(self, update: int) -> Phase:
        """The phase of the update with this index."""
        for phase in self.phases:
            if update < phase.updates:
                return phase
            update -= phase.updates
        raise IndexError(update)

    def rate_at(self, update: int) -> float:
        """Learning rate of the update with this index."""
        left = (self.updates - update) / max(1.0, self.decay_share * self.updates)
        return self.learning_rate * min(1.0, (update + 1) / max(1, self.warmup), max(0.01, left))

    def shortened(self, share: float) -> "Schedule":
        """The same with a share of the updates in each phase, one at least."""
        phases = tuple(
            dataclasses.replace(phase, updates=max(1, round(share * phase.updates))) for phase in self.phases
        )
        return dataclasses.replace(self, phases=phases, warmup=max(1, round(share * self.warmup)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that training needs besides the data."""

    segments: SegmentsConfig
    num_held_out: int
    """Episodes at the end of the dataset that are kept out of training, for evaluation."""
    tokenizer: ConvTokenizerConfig | None
    """None for a world of vectors alone."""
    tokenizer_objective: TokenizerObjectiveConfig
    tokenizer_schedule: Schedule
    dynamics: DynamicsConfig
    dynamics_objective: DynamicsObjectiveConfig
    dynamics_schedule: Schedule
    manifold: ManifoldConfig | None = None
    """None: simulated frames are not held to a manifold."""
    manifold_schedule: Schedule | None = None
    """Needed with a manifold; a batch is of frames."""
    decoder_schedule: Schedule | None = None
    """Needed where the decoder takes a guide; a batch is of pairs of frames."""
    still_change: float = 0.0
    """Simulated latents that differ from the frame before by less (root mean square) stay as they were."""
    surprising_share: float = 0.0
    """Share of the segments for the dynamics that are drawn by how much in them changes in ways that the
    linear response does not predict."""
    num_denoising_steps: int = 1
    """Network calls for a frame that the trained world makes unless asked otherwise."""
    context_tau: float = 1.0
    """Noise time that past frames are said to have in a rollout; 1 says that they are clean."""
    num_support: int = 0
    """Points that say where actions and proprioception were recorded; what is beyond is then taken for the
    nearest that was. For robots that go where they are told: others are to leave what was recorded."""

    def __post_init__(self) -> None:
        if (self.manifold is None) != (self.manifold_schedule is None):
            raise ValueError("manifold and manifold_schedule: give both or neither")
        takes_guide = self.tokenizer is not None and self.tokenizer.guide_dim > 0
        if takes_guide != (self.decoder_schedule is not None):
            raise ValueError("decoder_schedule and the tokenizer's guide_dim: give both or neither")

    def schedule(self, part: str) -> Schedule | None:
        """Schedule of the tokenizer, manifold, decoder or dynamics."""
        return getattr(self, f"{part}_schedule")

    def shortened(self, share: float) -> "Recipe":
        """The same with a share of the updates in each phase of all schedules."""
        if share == 1.0:
            return self
        schedules = {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}
        return dataclasses.replace(
            self, **{name: value.shortened(share) for name, value in schedules.items()}
        )
