import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.model.tokens import NUM_BEFORE, DynamicsConfig, Values, combine
from kinema.model.transformer import EXACT_PROPRIO, Dynamics, two_stream_mask

from ..worlds import dynamics_config, random_dynamics, random_tau, random_values

CONFIGS = {
    "one camera": dynamics_config(),
    "cameras and proprioception": dynamics_config(num_cameras=2, proprio_dim=3, grid=(2, 4), patch=2),
    "vectors alone": dynamics_config(num_cameras=0, proprio_dim=3),
    "time in every block": dynamics_config(depth=2, time_every=1),
    "registers see far": dynamics_config(memory=7, has_goals=True),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def at(values: Values, start: int, stop: int | None = None) -> Values:
    return values.map(lambda x: x[:, start : start + 1 if stop is None else stop])


def differs(one: Values, other: Values) -> torch.Tensor:
    """By frame: whether anything differs by more than rounding."""
    parts = [
        (a - b).abs().flatten(2).amax((0, 2))
        for a, b in zip(_parts(one), _parts(other), strict=True)
        if a.numel()
    ]
    return torch.stack(parts).amax(0) > 1e-5


def random_noise(config: DynamicsConfig, batch: int, time: int) -> torch.Tensor:
    """In place of the observations of frames, and extra noise behind it."""
    return torch.randn(batch, time, config.noise_size, generator=torch.Generator().manual_seed(2))


def extra_noise(config: DynamicsConfig, batch: int, time: int) -> torch.Tensor:
    return random_noise(config, batch, time)[..., config.noise_size - config.noise_dim :].flip(1)


def _parts(values: Values) -> tuple[torch.Tensor, ...]:
    return values.latents, values.proprio, values.action


def assert_close(one: Values, other: Values, tolerance: float = 1e-5) -> None:
    for a, b in zip(_parts(one), _parts(other), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def changed(values: Values, frames: slice) -> Values:
    """Other values in some frames."""
    other = values.map(torch.clone)
    for part in _parts(other):
        part[:, frames] += 1.0
    return other


@EVERY_CONFIG
def test_predictions_have_the_shapes_of_what_is_predicted(config: DynamicsConfig) -> None:
    dynamics = random_dynamics(config)
    context, target = random_values(config, 2, 5), random_values(config, 2, 4, seed=1)
    predicted = dynamics(context, random_tau(config, 2, 5), target, random_tau(config, 2, 4))
    for part, expected in zip(_parts(predicted), _parts(target), strict=True):
        assert part.shape == expected.shape
        assert part.dtype == torch.float32
        assert part.isfinite().all()


@torch.no_grad()
@EVERY_CONFIG
def test_nothing_sees_later_context(config: DynamicsConfig) -> None:
    dynamics, time = random_dynamics(config), 6
    context, target = random_values(config, 2, time), random_values(config, 2, time, seed=1)
    context_tau, target_tau = random_tau(config, 2, time), random_tau(config, 2, time, seed=1)
    predicted = dynamics(context, context_tau, target, target_tau)
    for first in range(time):
        other = dynamics(changed(context, slice(first, None)), context_tau, target, target_tau)
        # Target u is the frame after context frame u, so the first that sees a context frame has its number.
        assert differs(predicted, other).tolist() == [u >= first for u in range(time)]


@torch.no_grad()
@EVERY_CONFIG
def test_a_target_sees_no_other_target(config: DynamicsConfig) -> None:
    dynamics, time = random_dynamics(config), 5
    context, target = random_values(config, 2, time), random_values(config, 2, time, seed=1)
    context_tau, target_tau = random_tau(config, 2, time), random_tau(config, 2, time, seed=1)
    predicted = dynamics(context, context_tau, target, target_tau)
    for frame in range(time):
        other = dynamics(context, context_tau, changed(target, slice(frame, frame + 1)), target_tau)
        assert differs(predicted, other).tolist() == [u == frame for u in range(time)]


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        dynamics_config(window=2, depth=2, time_every=2),
        dynamics_config(window=2, depth=4, time_every=2),
        dynamics_config(window=2, depth=5, time_every=2),
        dynamics_config(window=3, depth=3, time_every=1),
    ],
    ids=lambda config: f"reach {config.reach}",
)
def test_the_past_matters_as_far_as_the_window_reaches_through_the_layers(config: DynamicsConfig) -> None:
    dynamics, time = random_dynamics(config), 12
    context, target = random_values(config, 1, time), random_values(config, 1, 1, seed=1)
    tau, target_tau = random_tau(config, 1, time), random_tau(config, 1, 1, seed=1)
    tau = 0.5 + tau / 2  # A frame that is mostly noise is not handed on.
    predicted = dynamics(context, tau, target, target_tau)
    for frame in range(time):
        other = dynamics(changed(context, slice(frame, frame + 1)), tau, target, target_tau)
        assert differs(predicted, other).item() == (time - frame <= config.reach)


@torch.no_grad()
@EVERY_CONFIG
@pytest.mark.parametrize("max_rewind", [0, 2])
def test_streaming_gives_what_training_gives(config: DynamicsConfig, max_rewind: int) -> None:
    """Past the window (3 frames) and through several turns of the ring (2 * (3 + max_rewind) + 1 frames)."""
    dynamics, time, batch = random_dynamics(config), 24, 2
    frames, target = random_values(config, batch, time), random_values(config, batch, time, seed=1)
    tau, target_tau = random_tau(config, batch, time), random_tau(config, batch, time, seed=1)
    noise = random_noise(config, batch, time)
    extra = extra_noise(config, batch, time)
    together = dynamics(frames, tau, target, target_tau, context_noise=noise, target_noise=extra)
    cache = dynamics.new_cache(batch, max_rewind=max_rewind)
    for t in range(time):
        dynamics.keep(at(frames, t), tau[:, t : t + 1], cache, noise[:, t : t + 1])
        # Twice: a step leaves nothing behind that the next could see, however often a frame is denoised.
        for _ in range(2):
            levels, of_frame = target_tau[:, t : t + 1], extra[:, t : t + 1]
            streamed = dynamics.step(at(target, t), levels, cache, noise=of_frame)
            assert_close(streamed, at(together, t))


@torch.no_grad()
@EVERY_CONFIG
def test_a_frame_that_was_simulated_is_remembered_by_the_pass_that_found_it(config: DynamicsConfig) -> None:
    """As if it had gone through the network once more, with the same noise."""
    dynamics, time = random_dynamics(config), 8
    frames, tau = random_values(config, 2, time), random_tau(config, 2, time)
    noise = random_noise(config, 2, time)
    once, twice = (dynamics.new_cache(2) for _ in range(2))
    calls: list[int] = []
    dynamics.get_submodule("blocks.0.space").register_forward_hook(lambda *_: calls.append(1))
    for t in range(time):
        frame, levels, given = at(frames, t), tau[:, t : t + 1], noise[:, t : t + 1]
        sought = dynamics.blind(frame, levels, given)
        found = []
        for cache, remembers in ((once, True), (twice, False)):
            calls.clear()
            step = functools.partial(dynamics.step, only_latents=bool(config.grids))
            extra = given[..., config.noise_size - config.noise_dim :]
            found.append(step(*sought, cache, noise=extra, commits=remembers))
            # Calls that come between change nothing.
            step(frame, levels, cache)
            dynamics.keep(frame, levels, cache, given)
            assert len(calls) == 2 + (not remembers)
        assert_close(*found)


@torch.no_grad()
@EVERY_CONFIG
def test_what_a_frame_shows_is_not_remembered_but_handed_on(config: DynamicsConfig) -> None:
    """Its keys and values are the same whatever it shows; the frames after it are told."""
    dynamics = random_dynamics(config)
    tau = torch.ones(1, 1, config.num_modalities)
    frame, other = (random_values(config, 1, 1, seed=seed) for seed in (0, 1))
    if config.grids:
        other = dataclasses.replace(frame, latents=other.latents)
    else:
        other = dataclasses.replace(frame, proprio=other.proprio)
    caches = [dynamics.new_cache(1) for _ in range(2)]
    for cache, shown in zip(caches, (frame, other), strict=True):
        dynamics.keep(shown, tau, cache)
    for layer, of_other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(layer.past(), of_other.past())
    found = [dynamics.step(random_values(config, 1, 1, seed=2), tau * 0.5, cache) for cache in caches]
    assert differs(*found).all()


@torch.no_grad()
@EVERY_CONFIG
def test_the_first_frame_of_all_is_predicted_from_itself(config: DynamicsConfig) -> None:
    """With one target more than context, the first has no past; in streaming, the cache is still empty."""
    dynamics, time = random_dynamics(config), 3
    context, target = random_values(config, 2, time), random_values(config, 2, time + 1, seed=1)
    tau, target_tau = random_tau(config, 2, time), random_tau(config, 2, time + 1, seed=1)
    together = dynamics(context, tau, target, target_tau)
    cache = dynamics.new_cache(2)
    assert_close(dynamics.step(at(target, 0), target_tau[:, :1], cache), at(together, 0))
    without_past = context.map(lambda x: x[:, :0])
    alone = dynamics(without_past, tau[:, :0], at(target, 0), target_tau[:, :1])
    assert_close(alone, at(together, 0))


@torch.no_grad()
@EVERY_CONFIG
def test_some_sessions_of_a_cache_go_on_by_themselves(config: DynamicsConfig) -> None:
    dynamics = random_dynamics(config)
    frames, tau = random_values(config, 3, 5), random_tau(config, 3, 5)
    cache = dynamics.new_cache(3)
    for t in range(4):
        dynamics.keep(at(frames, t), tau[:, t : t + 1], cache)
    together = dynamics.step(at(frames, 4), tau[:, 4:], cache)
    chosen = torch.tensor([2, 0, 2])
    selected = cache.select(chosen)
    apart = dynamics.step(at(frames, 4).map(lambda x: x[chosen]), tau[chosen, 4:], selected)
    assert_close(apart, together.map(lambda x: x[chosen]))
    dynamics.keep(at(frames, 0), tau[:, :1], selected)
    assert_close(dynamics.step(at(frames, 4), tau[:, 4:], cache), together)


@torch.no_grad()
@EVERY_CONFIG
def test_going_back_is_as_if_it_had_not_been(config: DynamicsConfig) -> None:
    dynamics, max_rewind = random_dynamics(config), 4
    frames, wrong = random_values(config, 1, 30), random_values(config, 1, max_rewind, seed=1)
    tau = torch.ones(1, 1, random_tau(config, 1, 1).shape[-1])
    plain, rewound = (dynamics.new_cache(1, max_rewind=max_rewind) for _ in range(2))
    for t in range(30):
        dynamics.keep(at(frames, t), tau, plain)
        dynamics.keep(at(frames, t), tau, rewound)
        num_wrong = t % (max_rewind + 1)
        for k in range(num_wrong):
            dynamics.keep(at(wrong, k), tau, rewound)
        assert rewound.num_rewindable >= num_wrong
        rewound.rewind(num_wrong)
        expected, got = (dynamics.step(at(wrong, 0), tau, cache) for cache in (plain, rewound))
        assert_close(got, expected)


@torch.no_grad()
@EVERY_CONFIG
def test_a_batch_gives_what_each_gives_alone(config: DynamicsConfig) -> None:
    dynamics = random_dynamics(config)
    context, target = random_values(config, 3, 5), random_values(config, 3, 5, seed=1)
    tau, target_tau = random_tau(config, 3, 5), random_tau(config, 3, 5, seed=1)
    together = dynamics(context, tau, target, target_tau)
    for row in range(3):

        def one(x: torch.Tensor, row: int = row) -> torch.Tensor:
            return x[row : row + 1]

        alone = dynamics(context.map(one), one(tau), target.map(one), one(target_tau))
        assert_close(together.map(one), alone)


@settings(deadline=None, max_examples=40)
@given(
    patch=st.integers(1, 3),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
)
def test_patches_put_together_again_are_the_latents(patch: int, sizes: list[tuple[int, int]]) -> None:
    config = dataclasses.replace(
        dynamics_config(),
        grids=tuple((patch * rows, patch * columns) for rows, columns in sizes),
        patch=patch,
    )
    dynamics = Dynamics(config)
    latents = random_values(config, 2, 3).latents
    patches = dynamics._patchify(latents)
    assert patches.shape == (2, 3, config.num_patches, patch**2 * config.latent_dim)
    assert torch.equal(dynamics._unpatchify(patches), latents)


def test_packed_values_are_unpacked_again() -> None:
    values = random_values(dynamics_config(num_cameras=2, proprio_dim=3), 2, 4)
    assert values.pack().shape == (2, 4, 8 * 4 + 3 + 2)
    for part, unpacked in zip(_parts(values), _parts(values.unpack(values.pack())), strict=True):
        assert torch.equal(part, unpacked)


def test_a_patch_is_a_square_of_neighbours() -> None:
    config = dynamics_config(grid=(4, 6), patch=2)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    latents = torch.stack([rows, columns, rows, columns], -1).view(1, 1, 24, 4)
    patch = Dynamics(config)._patchify(latents)[0, 0, 4].view(2, 2, 4)
    assert patch[..., 0].tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert patch[..., 1].tolist() == [[2.0, 3.0], [2.0, 3.0]]


@torch.no_grad()
def test_each_token_is_told_the_noise_of_its_own_modality() -> None:
    config = dynamics_config(num_cameras=2, proprio_dim=3, grid=(2, 4), patch=2)
    dynamics = random_dynamics(config)
    assert dynamics.config.num_modalities == 4
    assert config.num_tokens == 2 + 2 + 1 + 1 + 1
    values, tau = random_values(config, 1, 1), torch.full((1, 1, 4), 0.5)
    past = dynamics._past(values, tau, torch.zeros(1, NUM_BEFORE, values.pack().shape[-1] + 2))
    embedded = dynamics._embed(values, tau, past)
    assert embedded.shape == (1, 1, config.num_tokens, config.width)
    # Two patches of each camera, proprioception, action, register; all are told of the vectors.
    expected = [{0, 1}, {2, 3}, set(range(7)), set(range(7))]
    for modality, tokens in enumerate(expected):
        other = tau.clone()
        other[..., modality] = 0.7
        is_other = (dynamics._embed(values, other, past) - embedded).abs().amax(-1).squeeze() > 1e-6
        assert set(is_other.nonzero().flatten().tolist()) == tokens


@torch.no_grad()
@EVERY_CONFIG
def test_heads_that_say_nothing_say_that_all_stays(config: DynamicsConfig) -> None:
    """A frame of pure noise is then the one before; a clean one is itself."""
    dynamics = random_dynamics(config)
    for head in (dynamics.latents_out, dynamics.proprio_out, dynamics.action_out):
        if head is not None:
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.zeros_(head.bias)
    context, target = random_values(config, 2, 3), random_values(config, 2, 3, seed=1)
    known = torch.ones(2, 3, dynamics.config.num_modalities)
    stays = dynamics(context, known, target, torch.zeros_like(known))
    assert_close(stays, dataclasses.replace(context, action=torch.zeros_like(context.action)))
    assert_close(dynamics(context, known, target, known), target)


@torch.no_grad()
def test_every_part_of_a_frame_matters_to_every_prediction() -> None:
    config = dynamics_config(num_cameras=2, proprio_dim=3)
    dynamics = random_dynamics(config)
    context, target = random_values(config, 1, 2), random_values(config, 1, 1, seed=1)
    tau, target_tau = random_tau(config, 1, 2), random_tau(config, 1, 1, seed=1)
    predicted = dynamics(context, tau, target, target_tau)
    per_camera = config.num_latents // 2
    others = {
        "first camera": dataclasses.replace(target, latents=target.latents.clone()),
        "second camera": dataclasses.replace(target, latents=target.latents.clone()),
        "proprioception": dataclasses.replace(target, proprio=target.proprio + 1.0),
        "action": dataclasses.replace(target, action=target.action + 1.0),
    }
    others["first camera"].latents[:, :, :per_camera] += 1.0
    others["second camera"].latents[:, :, per_camera:] += 1.0
    for name, other in others.items():
        reaction = dynamics(context, tau, other, target_tau)
        for part in (reaction.latents - predicted.latents)[0, 0].split(per_camera):
            assert part.abs().max() > 1e-5, name
        assert (reaction.proprio - predicted.proprio).abs().max() > 1e-5, name
        assert (reaction.action - predicted.action).abs().max() > 1e-5, name


@torch.no_grad()
@EVERY_CONFIG
def test_frames_from_noise_are_predicted_as_targets_that_are_as_remembered(config: DynamicsConfig) -> None:
    """In one pass for what takes a context and targets else; more frames than the window reaches."""
    dynamics, num = random_dynamics(config), config.window + 3
    frames, tau, noise = (
        random_values(config, 2, num),
        random_tau(config, 2, num),
        random_noise(config, 2, num),
    )
    found = dynamics.forward_from_noise(frames, tau, noise)
    target, target_tau = dynamics.blind(frames, tau, noise)
    context = at(frames, 0, num - 1)
    extra = noise[..., config.noise_size - config.noise_dim :]
    expected = dynamics(
        context, tau[:, :-1], target, target_tau, context_noise=noise[:, :-1], target_noise=extra
    )
    assert_close(found, expected)


@torch.no_grad()
@EVERY_CONFIG
def test_copies_of_targets_are_predicted_as_alone(config: DynamicsConfig) -> None:
    dynamics, num = random_dynamics(config), config.window + 3
    context, tau = random_values(config, 2, num), random_tau(config, 2, num)
    targets = [random_values(config, 2, num + 1, seed=seed) for seed in (1, 2)]
    target_tau = random_tau(config, 2, num + 1, seed=1)
    together = dynamics(
        context, tau, targets[0].followed_by(targets[1]), target_tau.repeat(1, 2, 1), num_copies=2
    )
    for index, target in enumerate(targets):
        alone = dynamics(context, tau, target, target_tau)
        first = index * (num + 1)
        assert_close(at(together, first, first + num + 1), alone)


@settings(deadline=None)
@given(num_context=st.integers(1, 9), num_fewer=st.integers(0, 9), window=st.integers(1, 5))
def test_who_sees_whom(num_context: int, num_fewer: int, window: int) -> None:
    num_target = max(0, num_context - num_fewer)
    times, mask = two_stream_mask(num_context, num_target, window, torch.device("cpu"))
    assert times[num_context:].tolist() == list(range(num_context - num_target + 1, num_context + 1))
    for row, time in enumerate(times.tolist()):
        for column, other in enumerate(times.tolist()):
            is_past_context = column < num_context and 0 < time - other <= window
            assert mask[row, column].item() == (row == column or is_past_context)


def test_the_cache_is_as_large_as_the_window_and_the_way_back() -> None:
    config = dynamics_config(window=3, depth=4, time_every=2)
    cache = random_dynamics(config).new_cache(5, max_rewind=7)
    assert len(cache.layers) == 2
    assert cache.layers[0].buffer.shape == (2, 5, config.num_tokens, 2, 2 * (3 + 7) + 1, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 3}, "patch=3: it must divide the latent grid, here 2x2"),
        ({"grids": ()}, r"grids=\(\) and proprio_dim=0: a world needs a camera or proprioception"),
        ({"width": 34}, "width=34: it must be a multiple of 2 \\* num_heads=4"),
        ({"window": 1}, f"window=1: at least {NUM_BEFORE} is needed"),
        ({"depth": 1}, "time_every=2: no block of depth=1 would see time"),
    ],
)
def test_a_wrong_configuration_names_the_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(dynamics_config(), **fields)


@torch.no_grad()
def test_what_the_response_has_exactly_is_what_the_network_would_give() -> None:
    config = dynamics_config(proprio_dim=3)
    dynamics, frames = random_dynamics(config), random_values(config, 2, 4)
    known, sought = torch.ones(2, 1, 3), torch.tensor([0.0, 0.0, 1.0]).expand(2, 1, 3)
    cache = dynamics.new_cache(2)
    for t in range(3):
        for error, is_exact in ((0.1, False), (1e-6, t == 2)):
            assert dynamics.response is not None
            dynamics.response.proprio_error.fill_(error)
            exact = dynamics.exact_proprio(at(frames, 3), sought, cache)
            assert (exact is not None) == (error < EXACT_PROPRIO)
            if exact is not None:
                proprio, has_it = exact
                assert (has_it == is_exact).all()
                if is_exact:
                    found = dynamics.step(at(frames, 3), sought, cache).proprio
                    torch.testing.assert_close(proprio, found, atol=1e-4, rtol=0)
        dynamics.keep(at(frames, t), known, cache)


@torch.no_grad()
def test_the_response_moves_only_what_is_known() -> None:
    """Foreseen are proprioception from known actions, pictures and actions from known proprioception."""
    config = dynamics_config(proprio_dim=3)
    dynamics, frames = random_dynamics(config), random_values(config, 1, 4)
    prior = dynamics.prior(frames)
    for part, whole in ((prior.latents, frames.latents), (prior.proprio, frames.proprio)):
        assert not torch.allclose(part[:, 3], whole[:, 2])
    known = torch.ones(1, 4, 3)
    assert dynamics.response is not None
    dynamics.response.action_error.fill_(0.1)
    before = torch.nn.functional.pad(dynamics._known(frames, known), (0, 0, NUM_BEFORE, 0))[:, :-1]
    past = dynamics._past(frames, known, before)
    now, last, earlier = (frames.proprio[:, t] for t in (3, 2, 1))
    torch.testing.assert_close(past.prior.action[:, 3], dynamics.response.action(now, last, earlier))
    # Before the second frame nothing is known: the robot is taken to have rested.
    now, rest = frames.proprio[:, 1], frames.proprio[:, 0]
    torch.testing.assert_close(past.prior.action[:, 1], dynamics.response.action(now, rest, rest))
    assert (past.action_error[:, 1:] == 0.1).all()
    assert (past.prior.action[:, 0] == 0.0).all()
    assert (past.action_error[:, 0] == 1.0).all()
    hidden = torch.tensor([1.0, 0.0, 0.0]).expand(1, 4, 3)
    before = torch.nn.functional.pad(dynamics._known(frames, hidden), (0, 0, NUM_BEFORE, 0))[:, :-1]
    past = dynamics._past(frames, hidden, before)
    torch.testing.assert_close(past.prior.latents[:, 3], frames.latents[:, 2])
    torch.testing.assert_close(past.prior.proprio[:, 3], torch.zeros(1, 3))
    assert (past.proprio_error == 1.0).all()
    assert (past.prior.action == 0.0).all()
    assert (past.action_error == 1.0).all()


@pytest.mark.parametrize("error", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9, 1.0])
def test_what_is_expected_and_what_is_seen_are_combined_as_gaussians(error: float, tau: float) -> None:
    """Against the regression of samples: no other linear estimate has a smaller error."""
    generator = torch.Generator().manual_seed(0)
    expected, number = torch.tensor(0.7), 200_000
    true = expected + error * torch.randn(number, generator=generator)
    noised = tau * true + (1.0 - tau) * torch.randn(number, generator=generator)
    found = combine(expected, torch.tensor(error), noised, torch.tensor(tau))
    slope = torch.cov(torch.stack([true, noised]))[0, 1] / noised.var().clamp_min(1e-9)
    best = true.mean() + slope * (noised - noised.mean())
    torch.testing.assert_close(found, best, atol=0.05 * error + 1e-4, rtol=0)
