"""A world: tokenizer and dynamics together, in the units of the dataset, saved as a folder.

Here pixels and actions as people have them become the normalised tensors of the networks, and back.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kinema.data.dimensions import Dimension
from kinema.data.files import replacing, write_tensors
from kinema.data.frames import as_rgb, resize
from kinema.hardware.machine import uses_bfloat16
from kinema.model.acting import Acting, ActingConfig
from kinema.model.heads import Heads, HeadsConfig, PlaceSizes
from kinema.model.manifold import Manifold, ManifoldConfig
from kinema.model.parts import load_part, save_part
from kinema.model.sampler import session_noise
from kinema.model.support import Support
from kinema.model.tokens import DynamicsConfig, Values
from kinema.model.transformer import Dynamics
from kinema.model.units import Normalizer
from kinema.tokenizers import ConvTokenizer, ConvTokenizerConfig, to_pixels
from kinema.types import FileError, Precision, WorldError

FORMAT = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
HEADS_FILE = "heads.safetensors"
ACTING_FILE = "acting.safetensors"
WORLD_FILES = (CONFIG_FILE, WEIGHTS_FILE, HEADS_FILE, ACTING_FILE)
"""All that a world may consist of."""
MAX_PICTURES = 256
"""Most pictures that go through the tokenizer at once; more are done in parts, in the memory of these."""

LOST_RADII = 1.5
"""A picture that lies further than so many radii from the manifold with the proprioception found for it is
looked at again without a guess."""

Pictures = np.ndarray | Mapping[str, np.ndarray] | None
"""One array where a world has one camera, else arrays by camera."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraConfig:
    key: str
    """Feature key of the camera in the dataset."""
    native_height: int
    """Height of its pictures as recorded."""
    native_width: int
    """Width of its pictures as recorded."""
    height: int | None = None
    """Height of its frames as learned; that of the tokenizer by default."""
    width: int | None = None
    """Width of its frames as learned; that of the tokenizer by default."""

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width of its frames as recorded."""
        return self.native_height, self.native_width


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    name: str
    """What the world is called."""
    fps: float
    """Steps a second of the recorded world."""
    cameras: tuple[CameraConfig, ...]
    """Cameras in the order of their tokens; empty for a world of vectors alone."""
    proprio_key: str | None
    """Feature key of the proprioception, if the world knows any."""
    actions: tuple[Dimension, ...]
    """Numbers of the action as recorded."""
    proprio: tuple[Dimension, ...] = ()
    """Numbers of the proprioception as recorded."""
    tokenizer: ConvTokenizerConfig | None
    """None for a world of vectors alone."""
    dynamics: DynamicsConfig
    manifold: ManifoldConfig | None = None
    """None: simulated frames are not held to a manifold."""
    still_change: float = 0.0
    """Simulated latents that differ from the frame before by less (root mean square) stay as they were: what
    rests goes on resting."""
    num_denoising_steps: int = 1
    """Network calls for a frame, unless a session asks for another number."""
    context_tau: float = 1.0
    """Noise time that past frames are said to have in a rollout; 1 says that they are clean."""
    has_holes: bool = False
    """Recordings lacked cameras or numbers of the world, and so may sessions: cameras that are not given are
    simulated from noise, numbers that are NaN are missing."""
    num_support: int = 0
    """Points that say where actions and proprioception were recorded: what is beyond them is taken for the
    nearest that was. 0: nothing is."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """One name for each number of the action."""
        return tuple(dimension.name for dimension in self.actions)

    @property
    def learned_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the frames of each camera as learned."""
        if self.tokenizer is None:
            return ()
        height, width = self.tokenizer.height, self.tokenizer.width
        return tuple((camera.height or height, camera.width or width) for camera in self.cameras)

    def __post_init__(self) -> None:
        # At 0.5 and below the dynamics takes a frame for unknown.
        if not 0.5 < self.context_tau <= 1.0:
            raise ValueError(f"context_tau={self.context_tau}: it must be above 0.5 and at most 1")
        for name, dimensions, size in (
            ("actions", self.actions, self.dynamics.action_dim),
            ("proprio", self.proprio, self.dynamics.proprio_dim),
        ):
            num_columns = sum(dimension.num_columns for dimension in dimensions)
            if num_columns != size:
                raise ValueError(f"{name}: they are {num_columns} numbers to the network, which has {size}")
        guide_dim = self.tokenizer.guide_dim if self.tokenizer else 0
        if guide_dim and (self.manifold is None or guide_dim != self.dynamics.latent_dim):
            raise ValueError(
                f"guide_dim={guide_dim}: the decoder is guided by the manifold's latents of the robot, of "
                f"{self.dynamics.latent_dim} channels, so it must be that with a manifold and else 0"
            )


class WorldModel(nn.Module):
    """The networks and units of one world. ``kinema.simulation.session.World`` adds the sessions."""

    error_fit: Tensor

    def __init__(self, config: WorldConfig):
        super().__init__()
        self.config = config
        dynamics = config.dynamics
        self.tokenizer = ConvTokenizer(config.tokenizer, dynamics.grids) if config.tokenizer else None
        with warnings.catch_warnings():
            # A world without actions has layers for no numbers.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.dynamics = Dynamics(dynamics)
        self.manifold = (
            Manifold(
                config.manifold,
                latents=(dynamics.num_latents, dynamics.latent_dim),
                proprio_dim=dynamics.proprio_dim,
            )
            if config.manifold
            else None
        )
        self.action_normalizer = Normalizer(config.actions)
        self.proprio_normalizer = Normalizer(config.proprio)
        num = config.num_support
        self.action_support = Support(num, dynamics.action_dim) if num and dynamics.action_dim else None
        self.proprio_support = Support(num, dynamics.proprio_dim) if num and dynamics.proprio_dim else None
        # Slope, floor and half of an unrelated error, by camera or number: see kinema.simulation.trust.
        size = (len(config.cameras) or dynamics.proprio_dim) if dynamics.noise_dim else 0
        self.register_buffer("error_fit", torch.zeros(size, 3))
        self.precision: Precision = "float32"
        """Of the large matrix products of simulated frames."""
        self.heads: Heads | None = None
        """Reward, termination and steps to a goal, where they were learned (``kinema train --heads``)."""
        self.acting: Acting | None = None
        """What its network needs to act, where that was learned (``kinema train --act``)."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def fps(self) -> float:
        return self.config.fps

    @property
    def cameras(self) -> tuple[str, ...]:
        """Feature keys of the cameras."""
        return tuple(camera.key for camera in self.config.cameras)

    @property
    def action_dim(self) -> int:
        """Numbers of an action as recorded; the network has ``config.dynamics.action_dim``."""
        return len(self.config.actions)

    @property
    def proprio_dim(self) -> int:
        """Numbers of proprioception as recorded; the network has ``config.dynamics.proprio_dim``."""
        return len(self.config.proprio)

    @property
    def column_names(self) -> list[str]:
        """For each number that the network has of actions and of proprioception, the recorded one's name."""
        config = self.config
        actions = [each.name for each in config.actions for _ in range(each.num_columns)]
        key = config.proprio_key
        return actions + [f"{key}[{each.name}]" for each in config.proprio for _ in range(each.num_columns)]

    @property
    def device(self) -> torch.device:
        return self.action_normalizer.center.device

    def autocast(self) -> torch.autocast:
        """Large matrix products in here are as ``precision`` says."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.precision, self.device)
        )

    def new_heads(self, config: HeadsConfig) -> Heads:
        """Heads of the right size for this world, with the weights that networks begin with."""
        return Heads(config, sizes=self.place_sizes, action_dim=self.config.dynamics.action_dim)

    def new_acting(self, config: ActingConfig) -> Acting:
        """The same of what its network needs to act."""
        return Acting(config, dynamics=self.dynamics, sizes=self.place_sizes)

    @property
    def place_sizes(self) -> PlaceSizes:
        """Numbers in a ``place``."""
        dynamics = self.config.dynamics
        code = self.manifold.config.code_dim if self.manifold is not None else 0
        return PlaceSizes(dynamics.num_latents * dynamics.latent_dim, dynamics.proprio_dim, code)

    @torch.inference_mode()
    def place(self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"]) -> Float[Tensor, "N G"]:
        """Frames, their proprioception normalised, as heads and policies read them: each as one vector."""
        parts = [latents.flatten(1), proprio]
        if self.manifold is not None:
            parts.append(self.manifold.encode(latents, proprio))
        return torch.cat(parts, dim=-1)

    def require_heads(self) -> Heads:
        """The heads.

        Raises:
            WorldError: this world has none; it says how to get them.
        """
        if self.heads is None:
            raise WorldError(
                f"world '{self.name}' has no heads, so it predicts no reward, termination or steps to a "
                "goal; learn them from recordings: kinema train DATA --out WORLD --heads"
            )
        return self.heads

    @property
    def has_trust(self) -> bool:
        """True where sessions compute trust in every step."""
        return self.manifold is not None

    @property
    def has_error_fit(self) -> bool:
        """True where the error of simulated frames can be expected from spread."""
        return bool((self.error_fit[:, 2:] > 0).any())

    @property
    def can_act(self) -> bool:
        """True where the network chooses actions."""
        return self.acting is not None or self.config.dynamics.has_goals

    def require_acting(self) -> Acting:
        """What the network needs to act.

        Raises:
            WorldError: this world was not taught to; it says how to.
        """
        if self.acting is None:
            raise WorldError(
                f"world '{self.name}' was not taught to act; teach it from recordings: kinema train DATA "
                "--out WORLD --act"
            )
        return self.acting

    @torch.inference_mode()
    def locate(self, latents: Float[Tensor, "N L Z"], *, is_film: bool = False) -> Float[Tensor, "N P"]:
        """The normalised proprioception that pictures show, where none is told: what fits each best, as
        far as the manifold knows.

        Args:
            latents: of the pictures.
            is_film: whether they follow each other, so that each is looked for near the one before first.
        """
        guesses = self.heads.locate(latents) if self.heads is not None else None
        proprio_dim = self.config.dynamics.proprio_dim
        if self.manifold is None or not proprio_dim:
            return latents.new_zeros(len(latents), proprio_dim) if guesses is None else guesses
        found: list[Tensor] = []
        for index, picture in enumerate(latents):
            guess = guesses[index] if guesses is not None else None
            if is_film and found:
                guess = found[-1]
            proprio, distance = self.manifold.locate(picture, guess)
            if guess is not None and distance > LOST_RADII * self.manifold.radius:
                anywhere, its_distance = self.manifold.locate(picture)
                proprio = anywhere if its_distance < distance else proprio
            found.append(proprio)
        return torch.stack(found)

    # Pixels and latents.

    @torch.inference_mode()
    def encode(self, frames: Pictures) -> Float[Tensor, "T L Z"]:
        """Latents of all cameras, for pictures ``uint8 T H W C`` of the recorded or the learned size; zeros
        for cameras that are not given, in a world with holes.

        Raises:
            WorldError: a camera is missing or unknown, or a picture has another size or type.
        """
        by_camera, dynamics = self._checked(frames), self.config.dynamics
        if not by_camera:
            return torch.zeros(0, 0, dynamics.latent_dim)
        latents, num_frames = [], _length(by_camera)
        for key, size, grid in zip(self.cameras, self.config.learned_sizes, dynamics.grids, strict=True):
            if key in by_camera:
                latents.append(self._encode_camera(resize(by_camera[key], *size)))
            else:
                shape = (num_frames, grid[0] * grid[1], dynamics.latent_dim)
                latents.append(torch.zeros(shape, device=self.device))
        return torch.cat(latents, dim=1)

    @torch.inference_mode()
    def decode(
        self, latents: Float[Tensor, "T L Z"], proprio: Float[Tensor, "T P"] | None = None
    ) -> np.ndarray | dict[str, np.ndarray] | None:
        """Pictures ``uint8 T H W C`` of the recorded size; a dict by camera where there are several.

        Normalised proprioception, where it is known, guides a decoder that takes a guide.
        """
        if self.tokenizer is None:
            return None
        drawn = []
        for start in range(0, len(latents), MAX_PICTURES):
            rows = slice(start, start + MAX_PICTURES)
            drawn.append(self.draw(latents[rows], None if proprio is None else proprio[rows]))
        pictures = [torch.cat(pieces).cpu().numpy() for pieces in zip(*drawn, strict=True)]
        return pictures[0] if len(pictures) == 1 else dict(zip(self.cameras, pictures, strict=True))

    def draw(
        self, latents: Float[Tensor, "T L Z"], proprio: Float[Tensor, "T P"] | None
    ) -> list[UInt8[Tensor, "T H W 3"]]:
        """What ``decode`` gives, as tensors of each camera, all at once."""
        if self.tokenizer is None:
            return []
        guide = None
        if self.manifold is not None and self.tokenizer.config.guide_dim and proprio is not None:
            guide = self.manifold.robot(proprio)
        pictures, first = [], 0
        for camera, grid in zip(self.config.cameras, self.config.dynamics.grids, strict=True):
            of_camera = slice(first, first + grid[0] * grid[1])
            first = of_camera.stop
            with self.autocast():
                pixels = self.tokenizer.decode(
                    latents[:, of_camera], None if guide is None else guide[:, of_camera], grid=grid
                )
            pixels = pixels.float()
            if pixels.shape[2:] != camera.native_size:
                pixels = F.interpolate(pixels, camera.native_size, mode="bilinear", antialias=True)
            # Half a level more, and then cut, is rounded.
            levels = pixels.mul_(127.5).add_(128.0).clamp_(0.0, 255.0)
            pictures.append(levels.to(torch.uint8).permute(0, 2, 3, 1))
        return pictures

    def reconstruct(
        self, frames: Pictures, *, proprio: np.ndarray | None = None, batch: int = 256
    ) -> np.ndarray | dict[str, np.ndarray] | None:
        """Pictures ``uint8 T H W C`` through the tokenizer and back; ``proprio`` (``T P``) guides the decoder
        where it takes a guide.

        Raises:
            WorldError: pictures or proprioception do not fit this world.
        """
        by_camera = self._checked(frames)
        num_frames = _length(by_camera)
        known = None if proprio is None else self.normalized_proprio(proprio, 1, num_frames)[0]
        parts = []
        for start in range(0, num_frames, batch):
            rows = slice(start, start + batch)
            latents = self.encode({key: f[rows] for key, f in by_camera.items()})
            parts.append(self.decode(latents, None if known is None else known[rows]))
        if parts and isinstance(parts[0], dict):
            return {key: np.concatenate([part[key] for part in parts]) for key in self.cameras}
        return np.concatenate(parts) if parts else None

    def by_camera(self, frames: Pictures) -> dict[str, np.ndarray]:
        """Check frames, order them as this world's cameras are, and bring them to the recorded sizes.

        Raises:
            WorldError: says which camera or size is wrong and what is right.
        """
        native = {camera.key: camera.native_size for camera in self.config.cameras}
        return {key: resize(films, *native[key]) for key, films in self._checked(frames).items()}

    def _checked(self, frames: Pictures) -> dict[str, np.ndarray]:
        """Frames ``T H W 3`` by camera, of the recorded or of the learned size; of one camera at least in a
        world with holes, else of all. Raises WorldError."""
        if frames is None:
            if self.cameras:
                raise WorldError(f"world '{self.name}': pictures of {', '.join(self.cameras)} are needed")
            return {}
        if not self.cameras:
            if isinstance(frames, Mapping) and not frames:
                return {}
            raise WorldError(f"world '{self.name}' has no camera: give proprio, and None for frames")
        if not isinstance(frames, Mapping):
            if len(self.cameras) != 1:
                raise WorldError(
                    f"world '{self.name}' has {len(self.cameras)} cameras: give frames as a dict with the "
                    f"keys {', '.join(self.cameras)}"
                )
            frames = {self.cameras[0]: frames}
        missing = [key for key in self.cameras if key not in frames]
        if missing and not (self.config.has_holes and len(missing) < len(self.cameras)):
            raise WorldError(
                f"world '{self.name}': no pictures of camera {', '.join(missing)}; "
                f"got {', '.join(frames) or 'none'}"
            )
        checked = {}
        for camera, learned in zip(self.config.cameras, self.config.learned_sizes, strict=True):
            if camera.key in missing:
                continue
            pictures = np.asarray(frames[camera.key])
            if pictures.ndim == 4 and pictures.dtype == np.uint8 and pictures.shape[3] in (1, 4):
                pictures = as_rgb(pictures, camera.key)
            native = camera.native_size
            if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
                raise WorldError(
                    f"camera '{camera.key}': frames must be uint8 of shape (T, height, width, 3), "
                    f"got {pictures.dtype} {pictures.shape}"
                )
            if pictures.shape[1:3] not in (learned, native):
                raise WorldError(
                    f"camera '{camera.key}': frames are {pictures.shape[1]}x{pictures.shape[2]} (height x "
                    f"width), but this world takes {native[0]}x{native[1]} (as recorded)"
                    + (f" or {learned[0]}x{learned[1]} (as learned)" if learned != native else "")
                )
            # Without negative strides, which PyTorch does not take.
            checked[camera.key] = np.ascontiguousarray(pictures)
        if len({len(pictures) for pictures in checked.values()}) > 1:
            sizes = ", ".join(f"{key} {len(pictures)}" for key, pictures in checked.items())
            raise WorldError(f"the cameras differ in number of frames: {sizes}")
        return checked

    def check_actions(self, actions: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
        """Actions as float32 of the expected shape. A world that takes choices takes their indices too, and
        one without actions takes None.

        Raises:
            WorldError: another shape, or a number that is not finite.
        """
        if actions is None and not self.action_dim:
            return np.zeros(shape, np.float32)
        array = numbers(actions, what)
        is_index = array.shape in (shape[:-1], (*shape[:-1], 1)) and array.shape != shape
        if is_index and self.action_normalizer.takes_choice:
            index = array.reshape(shape[:-1])
            if not np.isin(index, np.arange(self.action_dim)).all():
                raise WorldError(
                    f"{what}: a choice is a whole number from 0 to {self.action_dim - 1}, or one-hot; got "
                    f"{actions!r}"
                )
            return np.eye(self.action_dim, dtype=np.float32)[index.astype(int)]
        if array.shape != shape:
            raise WorldError(
                f"{what}: expected shape {shape} ({', '.join(self.config.action_names)} last), "
                f"got {array.shape}"
            )
        self._check_finite(array, what)
        return array

    def _check_finite(self, array: np.ndarray, what: str) -> None:
        """Raise WorldError where a number is not finite, and is not missing in a world with holes."""
        if np.isinf(array).any() or (np.isnan(array).any() and not self.config.has_holes):
            raise WorldError(f"{what}: it holds a number that is not finite")

    def _encode_camera(self, pictures: np.ndarray) -> Tensor:
        assert self.tokenizer is not None
        parts = []
        for piece in torch.from_numpy(pictures).split(MAX_PICTURES):
            parts.append(self.tokenizer.encode(to_pixels(piece.to(self.device))))
        return torch.cat(parts)

    # Simulated frames.

    def held_action(self, action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """A normalised action as sessions take it: within what was recorded."""
        return action if self.action_support is None else self.action_support.hold(action)

    def held_proprio(self, proprio: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch P"]:
        """Predicted proprioception as sessions take it: within what was recorded."""
        return proprio if self.proprio_support is None else self.proprio_support.hold(proprio)

    def draw_near(
        self,
        found: Float[Tensor, "N L Z"],
        last: Float[Tensor, "N L Z"],
        proprio: Float[Tensor, "N P"],
    ) -> tuple[Float[Tensor, "N L Z"], Float[Tensor, " N"] | None, Float[Tensor, "N K"] | None]:
        """What a session makes of the latents that the dynamics found, before it recalls (``recalled`` in
        ``kinema.simulation.next_frame``): those that hardly differ from the frame before stay, then the
        frame is drawn towards the manifold of frames that were recorded. Then how far what was found lay
        from it, in its radii, and its codes, None where there is no manifold."""
        if self.config.still_change:
            change = (found - last).square().mean(-1, keepdim=True).sqrt()
            found = torch.where(change < self.config.still_change, last, found)
        return (found, None, None) if self.manifold is None else self.manifold.draw(found, proprio)

    # Inverse dynamics.

    @torch.inference_mode()
    def infer(
        self,
        frames: Pictures,
        *,
        proprio: np.ndarray | None = None,
        num_samples: int = 8,
        generator: torch.Generator | None = None,
    ) -> np.ndarray:
        """Infer the actions ``(T - 1, A)``, in units of the dataset, that led from each frame to the next.

        Args:
            frames: ``uint8 T H W C``, or a dict by camera.
            proprio: ``T P`` where the world knows proprioception and the recording has it.
            num_samples: samples of the actions, of which the mean is returned.
            generator: source of the noise; seed 0 by default.

        Raises:
            WorldError: the frames do not fit this world, or there are fewer than two.
        """
        latents = self.encode(frames).unsqueeze(0)
        if not self.cameras:
            if proprio is None:
                raise WorldError(f"world '{self.name}' has no camera: give proprio")
            latents = torch.zeros(1, len(proprio), 0, self.config.dynamics.latent_dim)
        time = latents.shape[1]
        if time < 2:
            raise WorldError(f"infer needs at least two frames, got {time}")
        # Chunks overlap by the reach, so that every frame has the past that it would have in one long pass.
        dynamics = self.config.dynamics
        chunk = max(64, dynamics.reach)
        known, is_known = self.known_proprio(proprio, latents)
        values = Values(latents, known, torch.zeros(1, time, dynamics.action_dim))
        generator = generator or torch.Generator().manual_seed(0)
        size = 2 * dynamics.action_dim + dynamics.noise_size + dynamics.noise_dim
        noise = session_noise((time, size), [generator] * num_samples, self.device)
        actions = []
        for start in range(0, time - 1, chunk):
            begin, stop = max(0, start - dynamics.reach), min(time - 1, start + chunk)
            piece = values.map(lambda x, a=begin, b=stop + 1: x[:, a:b].expand(num_samples, *x[0, a:b].shape))
            found = self._infer_chunk(piece, noise[:, begin : stop + 1], is_known)
            actions.append(found[start - begin :])
        return np.concatenate(actions)

    def _infer_chunk(self, values: Values, noise: Tensor, knows_proprio: bool) -> np.ndarray:
        (batch, time, size), config = values.action.shape, self.config.dynamics
        unknown, start, of_context, of_target = noise.split(
            [size, size, config.noise_size, config.noise_dim], dim=-1
        )
        tau = self.tau(batch, time, action_tau=0.0, proprio_tau=float(knows_proprio))
        context = dataclasses.replace(values, action=unknown).map(lambda x: x[:, :-1])
        target = dataclasses.replace(values, action=start).map(lambda x: x[:, 1:])
        actions = self.dynamics(
            context,
            tau[:, :-1],
            target,
            tau[:, 1:],
            context_noise=of_context[:, :-1],
            target_noise=of_target[:, 1:],
        ).action.mean(0)
        return self.action_normalizer.restore(actions).cpu().numpy()

    def tau(
        self,
        batch: int,
        time: int,
        *,
        action_tau: float,
        observation_tau: float | None = None,
        proprio_tau: float = 1.0,
    ) -> Float[Tensor, "B T M"]:
        """Noise times of frames: pictures at ``context_tau`` unless said otherwise, the others as said."""
        seen = self.config.context_tau if observation_tau is None else observation_tau
        levels = [seen] * len(self.cameras) + [proprio_tau] * (self.proprio_dim > 0)
        # In a world without actions they are missing in every recording.
        action_tau *= self.config.dynamics.action_dim > 0
        return torch.tensor([*levels, action_tau], device=self.device).expand(batch, time, -1)

    def known_proprio(
        self, proprio: np.ndarray | None, latents: Float[Tensor, "B T L Z"]
    ) -> tuple[Float[Tensor, "B T P"], bool]:
        """Normalised proprioception, and whether it is known: as given, or else as the manifold finds it in
        the pictures.

        Raises:
            WorldError: another shape, or a number that is not finite.
        """
        batch, time = latents.shape[:2]
        if proprio is None and self.manifold is not None and self.cameras and self.proprio_dim:
            return torch.stack([self.locate(film, is_film=True) for film in latents]), True
        return self.normalized_proprio(proprio, batch, time), proprio is not None

    def normalized_proprio(self, proprio: np.ndarray | None, batch: int, time: int) -> Tensor:
        """``B T P`` normalised; zeros where the recording has none.

        Raises:
            WorldError: another shape, or a number that is not finite.
        """
        if proprio is None or not self.proprio_dim:
            return torch.zeros(batch, time, self.config.dynamics.proprio_dim, device=self.device)
        array = numbers(proprio, "proprio")
        if array.ndim == 2:
            array = array[None]
        if array.shape != (batch, time, self.proprio_dim):
            raise WorldError(f"proprio: expected shape {(batch, time, self.proprio_dim)}, got {array.shape}")
        self._check_finite(array, "proprio")
        return self.proprio_normalizer.normalize(torch.from_numpy(array).to(self.device))

    # On disk.

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the world: ``config.json`` and ``model.safetensors``, both beside and then renamed; its
        heads and what it needs to act, where it has any, go into files of their own.

        Args:
            folder: created where it is missing.
            dtype: of matrices on disk; ``torch.float16`` halves their size. What must be exact stays in
                single precision: units, frequencies, the response of proprioception.

        Raises:
            WorldError: they cannot be written, on a full disk for instance; a world that was there is kept.
        """
        folder = Path(folder)
        matrices = {key for key, value in self.named_parameters() if value.ndim >= 2}
        matrices |= {"dynamics.response.to_latents", "manifold.to_robot"}
        tensors = {
            key: value.to(dtype if key in matrices else value.dtype).contiguous()
            for key, value in self.state_dict().items()
            if not key.startswith(("heads.", "acting."))
        }
        config = json.dumps({"format": FORMAT, **dataclasses.asdict(self.config)}, indent=2) + "\n"
        try:
            # Neither takes its place before both are written.
            with replacing(folder / CONFIG_FILE) as part:
                part.write_text(config, encoding="utf-8")
                write_tensors(folder / WEIGHTS_FILE, tensors)
        except FileError as error:
            raise WorldError(f"{folder}: the world could not be written ({error})") from error
        self.save_parts(folder)

    def save_parts(self, folder: str | Path) -> None:
        """Write the heads and what the network needs to act, where there are any, and nothing else.

        Raises:
            PartError: they cannot be written; those that were there are kept.
        """
        for name, part in ((HEADS_FILE, self.heads), (ACTING_FILE, self.acting)):
            if part is not None:
                save_part(Path(folder) / name, part.config, part)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read a world that ``save`` wrote.

        Raises:
            WorldError: the folder or a file of it is missing or corrupt; the message names the file.
        """
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise WorldError(f"{folder}: {name} is missing, so this is not a complete world")
        config = _read_config(folder / CONFIG_FILE)
        try:
            tensors = load_file(folder / WEIGHTS_FILE)
        except (SafetensorError, OSError) as error:
            raise WorldError(
                f"{folder / WEIGHTS_FILE}: cannot be read ({error}); copy the world again"
            ) from error
        try:
            world = cls(config)
            tensors.setdefault("error_fit", world.error_fit)
            world.load_state_dict({key: value.float() for key, value in tensors.items()})
        except (RuntimeError, TypeError, ValueError) as error:
            raise WorldError(f"{folder / WEIGHTS_FILE}: does not fit {CONFIG_FILE} ({error})") from error
        if (folder / HEADS_FILE).is_file():
            world.heads = load_part(folder / HEADS_FILE, HeadsConfig, world.new_heads)
        if (folder / ACTING_FILE).is_file():
            world.acting = load_part(folder / ACTING_FILE, ActingConfig, world.new_acting)
        # As pictures and latents are laid out, or weights are brought into that order in every call.
        world.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return world.eval()


def numbers(values: Any, what: str) -> np.ndarray:
    """Numbers as a contiguous float32 array.

    Raises:
        WorldError: they are no numbers, or rows of different lengths.
    """
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")
        return np.asarray(values, dtype=np.float32, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorldError(
            f"{what}: expected an array of numbers, got {type(values).__name__} ({error})"
        ) from error


def _length(by_camera: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(by_camera.values()))) if by_camera else 0


def _add_dimensions(data: dict[str, Any]) -> None:
    """Dimensions of actions and proprioception; those of kinema 0.1.0 have names alone, and of actions."""
    if "action_names" in data:
        data["actions"] = [{"name": name} for name in data.pop("action_names")]
        data["proprio"] = [{"name": str(index)} for index in range(data["dynamics"]["proprio_dim"])]
    for name in ("actions", "proprio"):
        data[name] = tuple(Dimension(**dimension) for dimension in data[name])


def _read_config(path: Path) -> WorldConfig:
    try:
        data = json.loads(path.read_text())
        if data.pop("format") != FORMAT:
            raise ValueError(f"written by another version of kinema; this one reads format {FORMAT}")
        data["cameras"] = tuple(CameraConfig(**camera) for camera in data["cameras"])
        _add_dimensions(data)
        if data["tokenizer"]:
            tokenizer: dict[str, Any] = data["tokenizer"]
            tokenizer = {k: tuple(v) if isinstance(v, list) else v for k, v in tokenizer.items()}
            data["tokenizer"] = ConvTokenizerConfig(**tokenizer)
        # Worlds before the energy score predict one future.
        dynamics = {"noise_dim": 0, **data["dynamics"]}
        dynamics["grids"] = tuple((rows, columns) for rows, columns in dynamics["grids"])
        data["dynamics"] = DynamicsConfig(**dynamics)
        if data.get("manifold"):
            data["manifold"] = ManifoldConfig(**data["manifold"])
        return WorldConfig(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorldError(f"{path}: not a world's configuration ({error!r})") from error
