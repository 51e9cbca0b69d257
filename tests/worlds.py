"""Small worlds for the tests: networks with random weights, and recordings whose answer is known."""

import contextlib
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kinema.data import DatasetWriter
from kinema.data.dimensions import Dimension
from kinema.model.heads import HeadsConfig
from kinema.model.manifold import ManifoldConfig
from kinema.model.tokens import DynamicsConfig, Values
from kinema.model.transformer import Dynamics
from kinema.model.world import CameraConfig, WorldConfig
from kinema.simulation.world import World
from kinema.tokenizers import ConvTokenizerConfig

SIZE = 32
FPS = 10
CAMERA = "observation.images.top"
SECOND_CAMERA = "observation.images.side"
PROPRIO = "observation.state"
LOW, HIGH = np.array([-2.0, 1.0]), np.array([6.0, 2.0])
"""Range of the two numbers of an action, unlike one another so that a mistake of units shows."""
DOT = 12


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value: as they begin, networks ignore most of their input, and a test
    that compares two of their answers could not fail."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim >= 2 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)


def dynamics_config(
    *,
    num_cameras: int = 1,
    proprio_dim: int = 0,
    action_dim: int = 2,
    grid: tuple[int, int] = (2, 2),
    patch: int = 1,
    depth: int = 4,
    time_every: int = 2,
    window: int = 3,
    noise_dim: int = 3,
    memory: int = 0,
    has_goals: bool = False,
) -> DynamicsConfig:
    return DynamicsConfig(
        grids=(grid,) * num_cameras,
        latent_dim=4,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        patch=patch,
        width=32,
        depth=depth,
        num_heads=2,
        time_every=time_every,
        window=window,
        noise_dim=noise_dim,
        memory=memory,
        has_goals=has_goals,
    )


def random_dynamics(config: DynamicsConfig, seed: int = 0) -> Dynamics:
    dynamics = Dynamics(config)
    randomize(dynamics, seed)
    randomize_response(dynamics)
    return dynamics.eval()


def randomize_response(dynamics: Dynamics) -> None:
    """Give the linear response random values, as if it had been fitted."""
    if dynamics.response is not None:
        generator = torch.Generator().manual_seed(1)
        fitted = dynamics.response
        for response in (fitted.to_proprio, fitted.to_latents, fitted.to_action):
            response.copy_(0.3 * torch.randn(response.shape, generator=generator) / len(response) ** 0.5)


def random_values(config: DynamicsConfig, batch: int, time: int, seed: int = 0) -> Values:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Values(
        random(batch, time, config.num_latents, config.latent_dim),
        random(batch, time, config.proprio_dim),
        random(batch, time, config.action_dim),
    )


def random_tau(config: DynamicsConfig, batch: int, time: int, seed: int = 0) -> torch.Tensor:
    num_modalities = len(config.grids) + (config.proprio_dim > 0) + 1
    return torch.rand(batch, time, num_modalities, generator=torch.Generator().manual_seed(seed))


def random_world(
    *,
    num_cameras: int = 1,
    proprio_dim: int = 0,
    window: int = 3,
    depth: int = 4,
    seed: int = 0,
    num_denoising_steps: int = 1,
    memory: int = 0,
    has_goals: bool = False,
    recorded_size: tuple[int, int] = (SIZE, SIZE),
) -> World:
    """A world of frames of 32 by 32 that nobody trained; it reacts to all that it is given."""
    tokenizer = ConvTokenizerConfig(
        height=SIZE,
        width=SIZE,
        latent_dim=4,
        guide_dim=4 if proprio_dim else 0,
        encoder_widths=(16, 16, 16),
        decoder_widths=(16, 16, 16),
    )
    keys = (CAMERA, SECOND_CAMERA)[:num_cameras]
    world = World(
        WorldConfig(
            name="random",
            fps=FPS,
            cameras=tuple(
                CameraConfig(key=key, native_height=recorded_size[0], native_width=recorded_size[1])
                for key in keys
            ),
            proprio_key=PROPRIO if proprio_dim else None,
            actions=(Dimension(name="right"), Dimension(name="down")),
            proprio=tuple(Dimension(name=str(index)) for index in range(proprio_dim)),
            tokenizer=tokenizer if num_cameras else None,
            dynamics=dynamics_config(
                num_cameras=num_cameras,
                proprio_dim=proprio_dim,
                window=window,
                depth=depth,
                memory=memory,
                has_goals=has_goals,
            ),
            manifold=ManifoldConfig(code_dim=2, width=16, depth=1, near_width=16, num_recorded=1024)
            if num_cameras
            else None,
            still_change=0.3,
            num_denoising_steps=num_denoising_steps,
            num_support=64,
        )
    )
    randomize(world, seed)
    if world.manifold is not None:
        world.manifold.radius.fill_(1.0)
        to_robot = world.manifold.to_robot
        generator = torch.Generator().manual_seed(seed)
        to_robot.copy_(torch.randn(to_robot.shape, generator=generator) / max(1, len(to_robot)) ** 0.5)
        assert world.manifold.recorded is not None
        codes = torch.rand(3000, 2, generator=generator) * 2 - 1
        codes = codes[codes[:, 0] > 0]
        world.manifold.recorded.fit(codes, np.arange(len(codes)))
    for support in (world.action_support, world.proprio_support):
        if support is not None:
            # Short of what tests command, so that some of it is held back.
            recorded = np.random.default_rng(seed).uniform(-0.9, 0.9, (2000, support.points.shape[1]))
            support.fit(recorded.astype(np.float32), np.arange(2000) // 20)
    actions = np.random.default_rng(seed).uniform(LOW, HIGH, (100, 2))
    world.action_normalizer.fit(actions)
    if proprio_dim:
        world.proprio_normalizer.fit(np.random.default_rng(seed).uniform(-5, 20, (100, proprio_dim)))
    return world.eval()


def random_heads(world: World, *, termination_bias: float = 0.0, seed: int = 3) -> World:
    """The world with heads that nobody trained; ``termination_bias`` makes ends of episodes rarer or more
    frequent."""
    heads = world.new_heads(
        HeadsConfig(width=16, depth=1, num_bins=9, max_steps=20, reward_range=(-1.0, 2.0))
    )
    randomize(heads, seed)
    with torch.no_grad():
        heads.step.last.bias[-1] += termination_bias
    world.heads = heads.eval()
    return world


def random_frames(*shape: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, size, size, 3), dtype=np.uint8)


def random_actions(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LOW, HIGH, (*shape, 2)).astype(np.float32)


def draw(actions: np.ndarray) -> np.ndarray:
    """The exact world's pictures ``T H W 3``: a bright square at the place that an action ``T 2`` names."""
    places = np.round((actions - LOW) / (HIGH - LOW) * (SIZE - DOT)).astype(int)
    pictures = np.full((len(actions), SIZE, SIZE, 3), 30, np.uint8)
    for picture, (x, y) in zip(pictures, places, strict=True):
        picture[y : y + DOT, x : x + DOT] = (230, 180, 60)
    return pictures


def read(pictures: np.ndarray) -> np.ndarray:
    """The action ``T 2`` that a picture of the exact world shows: undoes ``draw`` up to half a pixel."""
    light = np.clip(pictures.astype(np.float64).sum(-1) - 250.0, 0.0, None)
    total = np.maximum(light.sum((1, 2)), 1e-9)
    middle = np.arange(SIZE) - (DOT - 1) / 2
    x, y = (light.sum(1) @ middle) / total, (light.sum(2) @ middle) / total
    return LOW + np.stack([x, y], -1) / (SIZE - DOT) * (HIGH - LOW)


def write_exact_world(
    root: Path,
    *,
    lengths: Sequence[int],
    has_camera: bool = True,
    has_proprio: bool = False,
    has_reward: bool = False,
    seed: int = 0,
) -> Path:
    """Record the exact world: frame ``t + 1`` shows ``action[t]``, frame 0 a place of its own.

    The state says what the frame shows. The reward is the first number of the action, and the episodes of odd
    length end for good.
    """
    rng = np.random.default_rng(seed)
    with DatasetWriter(root, fps=FPS) as writer:
        for length in lengths:
            shown = rng.uniform(LOW, HIGH, (length + 1, 2)).astype(np.float32)
            columns = {"action": shown[1:]} | ({PROPRIO: shown[:-1]} if has_proprio else {})
            if has_reward:
                is_last = np.arange(length) == length - 1
                columns |= {"next.reward": shown[1:, 0], "next.terminated": is_last & (length % 2 == 1)}
            writer.add(
                frames={CAMERA: draw(shown[:-1])} if has_camera else {},
                columns=columns,
                task="show the last action",
            )
    return root


@contextlib.contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond ``max_bytes``: writing more fails as it does on a disk without room for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
