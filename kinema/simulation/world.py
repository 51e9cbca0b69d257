"""Worlds to simulate in: load one, begin sessions."""

import copy
import difflib
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.hardware.machine import dtype_of, find_device, keep_freed_memory
from kinema.hardware.packed import can_pack, pack
from kinema.model.world import (
    CONFIG_FILE,
    WORLD_FILES,
    Pictures,
    WorldError,
    WorldModel,
    numbers,
)
from kinema.simulation.graphs import CompiledSteps
from kinema.simulation.session import (
    ACT_STEPS,
    Simulation,
    SimulationBatch,
    check_rewind,
    draw_seed,
    excess,
    name_outside,
    whole,
)
from kinema.types import Precision

BUNDLED_WORLDS = Path(__file__).parents[1] / "worlds"


class World(WorldModel):
    """A world to simulate in. ``kinema.load`` gives one."""

    uses_graphs = False
    """Whether few sessions step by graphs."""

    def __repr__(self) -> str:
        cameras = [key.rpartition(".")[2] for key in self.cameras] or ["no camera"]
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        actions = " ".join(self.config.action_names)
        return (
            f"World({self.name}: {', '.join(cameras)}, actions {actions}, {self.fps:g} fps, "
            f"{millions:.1f}M parameters)"
        )

    @property
    def networks(self) -> WorldModel:
        """What sessions run: this world; or a copy that computes by packed weights, where there are such, and
        in bfloat16, where it is to run in that. It is made anew when the weights have changed since."""
        dtype = dtype_of(self.precision, self.device)
        if dtype == torch.float32 and not can_pack(dtype, self.device.type):
            return self
        version = (dtype, self._weights_version())
        found, its_version = self.__dict__.pop("_networks", (None, None))
        if found is None or version != its_version:
            found = copy.deepcopy(self)
            pack(found, dtype)
        # Not as a module of this one: it is saved and moved by itself.
        self.__dict__["_networks"] = (found, version)
        return found

    @property
    def compiled(self) -> CompiledSteps | None:
        """The graphs, where the world ``uses_graphs`` and can be traced. They are made anew when the weights
        have changed since."""
        if not self.uses_graphs:
            return None
        version = (self.precision, self._weights_version())
        found, its_version = self.__dict__.get("_compiled", (None, None))
        if found is None or version != its_version:
            try:
                found = CompiledSteps(self)
            except WorldError as error:
                # They were not asked for, and what they gain is time alone.
                warnings.warn(f"{error}; sessions step without a graph", stacklevel=2)
                self.uses_graphs = False
                return None
            self.__dict__["_compiled"] = (found, version)
        return found

    def _weights_version(self) -> list[tuple[int, object]]:
        """What is another once a weight was changed."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return [(tensor.data_ptr(), _version(tensor)) for tensor in tensors]

    def start_batch(
        self,
        frames: Pictures,
        actions: np.ndarray | None = None,
        *,
        proprio: np.ndarray | None = None,
        generators: Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        num_denoising_steps: int | None = None,
        max_rewind: int | None = None,
        max_pictures: int | None = None,
        has_trust: bool | None = None,
    ) -> SimulationBatch:
        """Begin sessions from ``B`` recordings of ``T`` frames each.

        Args:
            frames: ``uint8 B T H W C``, or a dict of such arrays by camera; None where the world has no
                camera.
            actions: ``B T-1 A``, the actions between the frames, in the units of the dataset.
            proprio: ``B T P`` where the world knows it and the recording has it.
            generators: one for each session, each asked once for a seed; by default sessions have seeds
                0, 1, ...
            seeds: those seeds themselves, in place of generators.
            num_denoising_steps: network calls for a frame; the world's own by default.
            max_rewind: most steps that the sessions shall be able to go back, ``MAX_REWIND`` by default; with
                less they take less memory, which matters for hundreds.
            max_pictures: most past pictures to keep, which is also as far as ``rewind`` goes;
                ``KEPT_PICTURES`` by default, and no more than ``HISTORY_BYTES`` hold.
            has_trust: compute trust and expected error by a second simulation, where the world has no
                manifold; by default that is done for one session alone.

        Raises:
            WorldError: what is given does not fit the world.
        """
        check_rewind(max_rewind)
        if frames is None:
            if not self.config.has_holes:
                self.by_camera(None)
            proprio = None if proprio is None else numbers(proprio, "proprio")
            if proprio is None or proprio.ndim != 3 or not proprio.size:
                raise WorldError(
                    f"world '{self.name}' has no camera: give proprio (sessions, T, {self.proprio_dim}), T "
                    "at least 1, to start from"
                )
            batch, time = proprio.shape[:2]
            shown = [False] * len(self.cameras)
            dynamics = self.config.dynamics
            latents = torch.zeros(batch, time, dynamics.num_latents, dynamics.latent_dim, device=self.device)
        else:
            by_camera = frames if isinstance(frames, Mapping) else {"": frames}
            arrays = {key: _array(f, key or "frames") for key, f in by_camera.items()}
            wrong = [
                f"{key or 'frames'} {f.shape}"
                for key, f in arrays.items()
                if f.ndim != 5 or not f.shape[0] * f.shape[1]
            ]
            if wrong:
                raise WorldError(
                    f"frames must be (sessions, T, height, width, 3), T at least 1; got {', '.join(wrong)}"
                )
            if len({f.shape[:2] for f in arrays.values()}) != 1:
                sizes = ", ".join(f"{key} {f.shape[:2]}" for key, f in arrays.items()) or "none"
                raise WorldError(f"the cameras differ in sessions and frames: {sizes}")
            batch, time = next(iter(arrays.values())).shape[:2]
            flat = {key: f.reshape(-1, *f.shape[2:]) for key, f in arrays.items()}
            shown = ["" in flat or key in flat for key in self.cameras]
            latents = self.encode(flat.get("", flat))
            latents = latents.unflatten(0, (batch, time))
        normalized = None
        if actions is not None:
            array = self.check_actions(actions, (batch, time - 1, self.action_dim), "actions")
            normalized = self.action_normalizer.normalize(torch.from_numpy(array).to(self.device))
        for name, given in (("generators", generators), ("seeds", seeds)):
            if given is not None and len(given) != batch:
                raise WorldError(f"{name}: {batch} sessions need {batch}, got {len(given)}")
        seeds = None if seeds is None else [whole("seed", seed) for seed in seeds]
        if seeds is None:
            seeds = [draw_seed(g) for g in generators] if generators is not None else list(range(batch))
        simulation = SimulationBatch(self, seeds, num_denoising_steps, max_rewind, max_pictures)
        known, is_known = self.known_proprio(proprio, latents)
        simulation.begin(latents, known, is_known, normalized, shown)
        if has_trust or (has_trust is None and batch == 1 and self.has_error_fit):
            simulation.add_twin()
        return simulation

    def start(
        self,
        frames: Pictures,
        actions: np.ndarray | None = None,
        *,
        proprio: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        num_denoising_steps: int | None = None,
        has_trust: bool | None = None,
    ) -> Simulation:
        """Begin one session from a recording of ``T`` frames, one at least.

        Args:
            frames: ``uint8 T H W C``, or a dict of such arrays by camera; None where the world has no camera.
            actions: ``T-1 A``, the actions between the frames, in the units of the dataset.
            proprio: ``T P`` where the world knows it and the recording has it.
            generator: asked once for the session's seed; seed 0 by default.
            num_denoising_steps: network calls for a frame; the world's own by default.
            has_trust: see ``start_batch``.

        Raises:
            WorldError: what is given does not fit the world.
        """
        if isinstance(frames, Mapping):
            batched: Pictures = {key: _one_session(f) for key, f in frames.items()}
        else:
            batched = None if frames is None else _one_session(frames)
        return Simulation(
            self.start_batch(
                batched,
                None if actions is None else numbers(actions, "actions")[None],
                proprio=None if proprio is None else numbers(proprio, "proprio")[None],
                generators=None if generator is None else [generator],
                num_denoising_steps=num_denoising_steps,
                has_trust=has_trust,
            )
        )

    def outside(self, actions: Any) -> Mapping[str, float]:
        """Measure by how much actions ``T A`` leave the recorded ones, as ``Step.outside`` does; of several
        actions the largest distances."""
        rows = self.check_actions(actions, (len(actions), self.action_dim), "actions")
        normalized = self.action_normalizer.normalize(torch.from_numpy(rows).to(self.device))
        distances = excess(normalized, self.held_action(normalized)).amax(0).tolist()
        return name_outside(self.column_names[: len(distances)], distances)

    def act(
        self,
        frames: Pictures,
        goal: Any = None,
        actions: np.ndarray | None = None,
        *,
        proprio: np.ndarray | None = None,
        chunk: int | None = None,
        num_denoising_steps: int = ACT_STEPS,
        generator: torch.Generator | None = None,
    ) -> Float[np.ndarray, "C A"]:
        """What the network itself would do next: the actions ``chunk A``, in the units of the dataset, that
        lead from the last of the frames to a goal.

        ``frames``, ``actions``, ``proprio`` and ``generator`` are those of ``start``, the others those of
        ``SimulationBatch.act``; it raises what they raise.
        """
        session = self.start(frames, actions, proprio=proprio, generator=generator)
        return session.act(goal, chunk, num_denoising_steps=num_denoising_steps)


def worlds() -> list[str]:
    """Names of the worlds that are part of kinema, for ``load``."""
    return sorted(path.parent.name for path in BUNDLED_WORLDS.glob(f"*/{CONFIG_FILE}"))


def default_world() -> str:
    """Name the bundled world that commands take where none is named; empty where none is installed."""
    return next(iter(worlds()), "")


def load(source: str | Path, *, device: str | torch.device = "auto", precision: Precision = "auto") -> World:
    """A world by the name of a bundled one (``worlds()``), by its folder, or by its Hub id (``owner/name``).

    On a CPU the process then keeps the memory that tensors free: see ``hardware.keep_freed_memory``.

    Args:
        source: name, folder or Hub id.
        device: ``auto`` is CUDA, MPS or the CPU, the first of these that is there.
        precision: of the large matrix products of simulated frames; ``auto`` takes bfloat16 where the
            hardware multiplies it faster.

    Raises:
        WorldError: there is no world of that name, a file of it is missing or corrupt, or the device is not
            there.
        ImportError: a Hub id, and ``huggingface_hub`` is not installed.
    """
    device = find_device(device)
    folder = Path(source)
    bundled = BUNDLED_WORLDS / str(source)
    if not folder.is_dir() and bundled.is_dir() and bundled.parent == BUNDLED_WORLDS:
        folder = bundled
    if not folder.is_dir():
        if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
            close = difflib.get_close_matches(str(source).lower(), worlds(), n=1)
            raise WorldError(
                f"no world '{source}': neither a bundled one ({', '.join(worlds()) or 'there is none'}), nor "
                "a folder, nor a Hub id (owner/name)" + (f"; did you mean '{close[0]}'?" if close else "")
            )
        folder = _download(str(source))
    world = World.from_folder(folder).to(device)
    world.precision = precision
    if world.device.type == "cpu":
        keep_freed_memory()
        world.uses_graphs = True
    return world


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ImportError(
            f"'{hub_id}' looks like a Hub id, which needs an extra: pip install 'kinema[hub]'"
        ) from error
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(WORLD_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WorldError(f"the world '{hub_id}' could not be downloaded: {error}") from error


def _version(tensor: Tensor) -> object:
    """What is another once a tensor was changed; always, where it was made in inference mode: nobody counts
    its changes."""
    return object() if tensor.is_inference() else tensor._version


def _array(frames: Any, what: str) -> np.ndarray:
    """Frames as an array.

    Raises:
        WorldError: they are no array, or differ in size.
    """
    try:
        return np.asarray(frames)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorldError(f"{what}: expected an array, got {type(frames).__name__} ({error})") from error


def _one_session(frames: Any) -> np.ndarray:
    array = _array(frames, "frames")
    if array.ndim != 4 or not len(array):
        raise WorldError(
            f"frames must be (T, height, width, 3), T at least 1 (one picture is picture[None]); "
            f"got {array.shape}"
        )
    return array[None]
