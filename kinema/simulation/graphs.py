"""Steps of sessions as graphs for the CPU: of the frame, of what it is recalled as, and of its picture.

A step of one session is hundreds of small operators, and to call them takes longer than what they compute.
In a graph PyTorch calls them at once. The graphs are traced from the very functions that run without them, so
they compute the same, up to rounding.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast

import jaxtyping
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.hardware.machine import dtype_of, exact
from kinema.hardware.packed import pack
from kinema.model.cache import Cache
from kinema.model.embeddings import rotate
from kinema.model.manifold import NUM_RECALLED
from kinema.model.recorded import RecordedCodes
from kinema.model.tokens import Values
from kinema.model.world import WorldError, WorldModel
from kinema.simulation.next_frame import LATENTS_STREAM, PROPRIO_STREAM, Noise, simulated_frame

EXAMPLES = 2
"""Sessions that the graphs are traced with; they take any number."""

BEYOND = 2**31
"""Slices that end behind this have no end."""

MOST_STEPPED, MOST_DRAWN = 64, 16
"""More sessions step, and are drawn, no faster by a graph: their operators are large. Those that step are
looked up among recorded codes at once, so they are no more than ``recorded.MOST_AT_ONCE``."""


class CompiledSteps:
    """What sessions of a world compute in each step, with the weights as they were when it was made."""

    def __init__(self, world: WorldModel):
        """Traces, which takes a second.

        Raises:
            WorldError: this world cannot be traced.
        """
        self._num_denoising_steps = world.config.num_denoising_steps
        # A copy without what sessions of ``World`` know of graphs, which tracing would ask for.
        world = self._world = _plain(world)
        self._needs_noise = world.config.dynamics.proprio_dim > 0 and not world.dynamics.has_exact_prior
        config = world.config.dynamics
        cache = world.dynamics.new_cache(EXAMPLES)
        num_windows, head_dim = len(cache.layers) + len(cache.far_layers), config.width // config.num_heads
        far_shape = (2, EXAMPLES, config.num_registers, config.num_heads, config.memory, head_dim)
        extra = self._num_extra = self._num_denoising_steps * config.noise_dim
        shape = (2, EXAMPLES, config.num_tokens, config.num_heads, config.window)
        # A past of which all is known: what is not is left to the eager path.
        example = [
            torch.ones(EXAMPLES, cache.frames.window, sum(cache.sizes)),
            torch.zeros(EXAMPLES, 1 + (config.memory > 0), dtype=torch.long),
            *cache.rotary(),
            torch.zeros(EXAMPLES, 1, config.action_dim),
            torch.zeros(EXAMPLES, 1, config.num_latents * config.latent_dim + extra),
            torch.zeros(EXAMPLES, 1, config.proprio_dim + extra),
            *(torch.zeros(*shape, head_dim) for _ in cache.layers),
            *(torch.zeros(far_shape) for _ in cache.far_layers),
        ]
        frame = example[0][:, 0, : cache.sizes[0]].unflatten(-1, cache.latents)
        try:
            self._step = _Graph(_Step(world), example, session_axes=[0] * 7 + [1] * num_windows)
            self._draw = None
            if world.cameras:
                proprio = torch.zeros(EXAMPLES, config.proprio_dim)
                self._draw = _Graph(_Draw(world), [frame, proprio], session_axes=[0, 0])
            self._draw_to_one = None
            recorded = _recorded_codes(world)
            if recorded is not None:
                codes = torch.zeros(EXAMPLES, NUM_RECALLED, recorded.codes.shape[-1])
                example = [frame, torch.zeros(EXAMPLES, config.proprio_dim), codes]
                self._draw_to_one = _Graph(_DrawToOne(world), example, session_axes=[0, 0, 0])
        except (AttributeError, RuntimeError) as error:
            raise WorldError(f"PyTorch cannot trace the world '{world.name}'. It says: {error}") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing in it changes.
        return self

    def can_step(self, num: int, num_denoising_steps: int) -> bool:
        """Whether ``next_frame`` is for so many network calls, and worth it for so many sessions."""
        return num <= MOST_STEPPED and num_denoising_steps == self._num_denoising_steps

    def next_frame(
        self, cache: Cache, action: Float[Tensor, "B 1 A"], noise: Noise
    ) -> tuple[Values, Float[Tensor, " B"] | None] | None:
        """What ``kinema.simulation.next_frame.next_frame`` gives, the frame then remembered in the
        cache alike; None, and nothing has changed, where that has to be asked: too little is known of the
        past to predict the proprioception."""
        config = self._world.config.dynamics
        kinds = [kind for kind in (cache.layers, cache.far_layers) if kind]
        layers = [layer for kind in kinds for layer in kind]
        given = [
            cache.frames.full_window(),
            torch.stack([of_kind[0].num_missing(len(action)) for of_kind in kinds], dim=1),
            *cache.rotary(),
            action,
            noise(config.num_latents * config.latent_dim + self._num_extra, LATENTS_STREAM),
            action.new_zeros(len(action), 1, config.proprio_dim + self._num_extra),
            *(layer.full_window() for layer in layers),
        ]
        if self._needs_noise:
            given[6] = noise(config.proprio_dim + self._num_extra, PROPRIO_STREAM)
        latents, proprio, held, doubt, away, candidates, is_known, *written = self._step(given)
        if is_known.min() < 1.0:
            return None
        for layer, frame in zip(layers, written, strict=True):
            layer.with_frame(frame)
        cache.holds_next = True
        manifold, draw_to_one = self._world.manifold, self._draw_to_one
        if manifold is not None and draw_to_one is not None:
            found = manifold.recall_near(
                latents[:, 0], proprio[:, 0], away, candidates, lambda *given: draw_to_one(given)[0]
            )
            latents = found.unsqueeze(1)
        has_doubt = manifold is not None and bool(self._world.cameras)
        return Values(latents, proprio, held), doubt if has_doubt else None

    def can_draw(self, num: int) -> bool:
        """Whether it is worth to ``draw`` so many sessions."""
        return self._draw is not None and num <= MOST_DRAWN

    def draw(
        self, latents: Float[Tensor, "B L Z"], proprio: Float[Tensor, "B P"]
    ) -> np.ndarray | dict[str, np.ndarray]:
        """What ``WorldModel.decode`` gives, where there are cameras."""
        assert self._draw is not None
        pictures = [found.numpy() for found in self._draw([latents, proprio])]
        cameras = self._world.cameras
        return pictures[0] if len(cameras) == 1 else dict(zip(cameras, pictures, strict=True))


class _Graph:
    """A module that was traced, run by PyTorch's own interpreter of graphs.

    It takes any number of sessions, which stand along the given axis of each input. For one session there is
    a graph of its own: much of a step is then a constant.
    """

    def __init__(self, module: nn.Module, example: Sequence[Tensor], session_axes: Sequence[int]):
        def of(num: int) -> list[Tensor]:
            """So many sessions as the first of the example."""
            return [
                part.index_select(axis, torch.zeros(num, dtype=torch.long))
                for part, axis in zip(example, session_axes, strict=True)
            ]

        self._first_axis = session_axes[0]
        with _tracing():
            self._traced = torch.jit.freeze(torch.jit.trace(module.eval(), tuple(example), check_trace=False))
            self._of_one = _tidied(self._traced, [of(1)])
            self._of_several = _tidied(self._traced, [of(2), of(3)])

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        graph = self._of_one if given[0].shape[self._first_axis] == 1 else self._of_several
        # What is in bfloat16 is so by the graph itself.
        with exact(given[0].device):
            return list(graph(self._traced, *given))


def _tidied(traced: torch.jit.ScriptModule, examples: Sequence[Sequence[Tensor]]) -> Callable[..., Any]:
    """The graph of a module as a function of it and its inputs, without what need not be computed at every
    call: sizes that are the same for all examples and what follows from them, slices that are all there is,
    and what was computed before."""
    graph = traced.graph.copy()
    sizes = [_sizes(traced, example) for example in examples]
    for node, *found in zip(_size_nodes(graph), *sizes, strict=True):
        if len(set(found)) == 1:
            graph.setInsertPoint(node)
            constant = graph.insertConstant(found[0])  # pyright: ignore[reportAttributeAccessIssue]
            node.output().replaceAllUsesWith(constant)
    for node in [node for node in graph.nodes() if node.kind() == "aten::slice"]:
        _, _, first, end, step = (value.toIValue() for value in node.inputs())
        if first == 0 and step == 1 and isinstance(end, int) and end >= BEYOND:
            node.output().replaceAllUsesWith(next(node.inputs()))
    graph.setInsertPoint(graph.return_node())
    for _ in range(2):
        torch._C._jit_pass_constant_propagation(graph)
        torch._C._jit_pass_peephole(graph, True)
        torch._C._jit_pass_cse(graph)
        torch._C._jit_pass_dce(graph)
    return torch._C._create_function_from_graph("tidied", graph)


def _size_nodes(graph: torch.Graph) -> list[torch.Node]:
    """Where a graph asks for a size of a tensor."""
    asking = [node for node in graph.nodes() if node.kind() in {"aten::size", "aten::numel"}]
    return [node for node in asking if node.output().type().kind() == "IntType"]


def _sizes(traced: torch.jit.ScriptModule, given: Sequence[Tensor]) -> list[int]:
    """What the sizes are that the graph of a module asks for."""
    probe = traced.graph.copy()
    sizes = probe.create("prim::ListConstruct", [node.output() for node in _size_nodes(probe)], 1)
    sizes.output().setType(torch._C.ListType.ofInts())
    probe.appendNode(sizes)
    for _ in list(probe.outputs()):
        probe.eraseOutput(0)
    probe.registerOutput(sizes.output())
    return torch._C._create_function_from_graph("sizes", probe)(traced, *given)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """While a graph is traced. Sizes are tensors then, which checks of shapes do not take for numbers."""
    checks = jaxtyping.config.jaxtyping_disable
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", checks)


class _Step(nn.Module):
    """A step as a function of tensors alone."""

    def __init__(self, world: WorldModel):
        super().__init__()
        self.world = world

    def forward(
        self,
        frames: Float[Tensor, "B S V"],
        num_missing: Tensor,
        cos: Tensor,
        sin: Tensor,
        action: Float[Tensor, "B 1 A"],
        latents_noise: Tensor,
        proprio_noise: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, ...]:
        world, action = self.world, self.world.held_action(action)
        num_layers = len(layers) // num_missing.shape[1]
        windows = [_Window(layer, num_missing[:, index // num_layers]) for index, layer in enumerate(layers)]
        cache = _Windows(world, frames, windows[:num_layers], windows[num_layers:], (cos, sin))
        noises = {LATENTS_STREAM: latents_noise, PROPRIO_STREAM: proprio_noise}
        last = cache.past()[0]
        given = Values(last.latents[:, -1:], torch.zeros_like(last.proprio[:, -1:]), action)
        levels = world.tau(action.shape[0], 1, action_tau=1.0, observation_tau=0.0, proprio_tau=0.0)
        exact = world.dynamics.exact_proprio(given, levels, cast(Cache, cache))
        is_known = torch.ones_like(frames[:, 0, 0]) if exact is None else exact[1].float()
        frame, doubt, code = simulated_frame(
            world,
            cast(Cache, cache),
            action,
            lambda _, stream: noises[stream],
            world.config.num_denoising_steps,
        )
        nothing = torch.zeros_like(frames[:, 0, 0])
        away = candidates = nothing
        recorded = _recorded_codes(world)
        if recorded is not None and code is not None:
            away, candidates = recorded.nearest(code, NUM_RECALLED)
        doubt = nothing if doubt is None else doubt
        written = cache.held or [layer.written for layer in windows]
        return frame.latents, frame.proprio, frame.action, doubt, away, candidates, is_known, *written


class _Draw(nn.Module):
    """Pictures as a function of tensors alone."""

    def __init__(self, world: WorldModel):
        super().__init__()
        self.world = world

    def forward(self, latents: Float[Tensor, "B L Z"], proprio: Float[Tensor, "B P"]) -> tuple[Tensor, ...]:
        with self.world.autocast():
            return tuple(self.world.draw(latents, proprio))


class _DrawToOne(nn.Module):
    """``Manifold.draw_to_one`` as a function of tensors alone."""

    def __init__(self, world: WorldModel):
        super().__init__()
        self.world = world

    def forward(
        self, latents: Float[Tensor, "N L Z"], proprio: Float[Tensor, "N P"], codes: Float[Tensor, "N C K"]
    ) -> tuple[Tensor]:
        assert self.world.manifold is not None
        return (self.world.manifold.draw_to_one(latents, proprio, codes),)


def _recorded_codes(world: WorldModel) -> RecordedCodes | None:
    """Those of which frames may be drawn to one."""
    if not world.cameras or world.manifold is None or not world.manifold.keeps_codes:
        return None
    return world.manifold.recorded


class _Window:
    """The keys and values of one layer, as ``LayerCache`` has them once its window is full; the first
    ``num_missing`` frames of a session are not there, and not seen."""

    def __init__(self, kept: Float[Tensor, "2 B N H S E"], num_missing: Tensor):
        self.kept, self.num_missing = kept, num_missing
        self.written = kept[..., :1, :]
        self.num_tokens = kept.shape[2]

    def attend(
        self, q_BNH1E: Tensor, k_BNH1E: Tensor, v_BNH1E: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """As ``LayerCache.attend``, and as ``kinema.model.attention.attend`` does it in single precision; but
        the frame's own keys and values are not copied behind those that are kept."""
        q, k, v = rotate(q_BNH1E, *rotary).float(), rotate(k_BNH1E, *rotary).float(), v_BNH1E.float()
        self.written = torch.stack([k, v])
        q = q * q.shape[-1] ** -0.5
        keys_BNHSE, values_BNHSE = self.kept.unbind(0)
        is_there = torch.arange(self.kept.shape[-2]) >= self.num_missing[:, None]
        of_kept = q @ keys_BNHSE.transpose(-2, -1)
        of_kept = of_kept.masked_fill(~is_there.view(-1, 1, 1, 1, self.kept.shape[-2]), -torch.inf)
        weights = torch.cat([of_kept, (q * k).sum(-1, keepdim=True)], dim=-1).softmax(-1)
        return weights[..., :-1] @ values_BNHSE + weights[..., -1:] * v


class _Windows:
    """What the dynamics asks of a ``Cache``."""

    def __init__(
        self,
        world: WorldModel,
        frames: Float[Tensor, "B S V"],
        layers: list[_Window],
        far_layers: list[_Window],
        rotary: tuple[Tensor, Tensor],
    ):
        self.layers, self.far_layers, self.holds_next = layers, far_layers, False
        self.held: list[Tensor] | None = None
        self._rotary = rotary
        config = world.config.dynamics
        latents, proprio, action, tau = frames.split(config.frame_sizes, dim=-1)
        latents = latents.unflatten(-1, (config.num_latents, config.latent_dim))
        self._past = Values(latents, proprio, action), tau

    def past(self) -> tuple[Values, Tensor]:
        return self._past

    def hold_next(self) -> None:
        self.held = self.held or [layer.written for layer in (*self.layers, *self.far_layers)]

    @property
    def last_latents(self) -> Tensor:
        return self._past[0].latents[:, -1]

    def rotary(self) -> tuple[Tensor, Tensor]:
        return self._rotary


def _plain(world: WorldModel) -> WorldModel:
    """Just the networks of a world and its units, packed."""
    plain, dtype = WorldModel(world.config), dtype_of(world.precision, world.device)
    plain.load_state_dict(world.state_dict(), strict=False)
    # Said outright, so that it is not asked for while a graph is traced.
    plain.precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    pack(plain.requires_grad_(False), dtype)
    return plain
