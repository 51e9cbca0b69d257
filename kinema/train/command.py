"""``kinema train``: from a dataset to a world, tokenizer first, then dynamics; heads and policies beside."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import nn

from kinema.data.lerobot import Dataset
from kinema.data.segments import Segments, SegmentsConfig, load_segments
from kinema.hardware.machine import find_device, uses_bfloat16
from kinema.model.acting import ActingConfig, ActingObjective
from kinema.model.decoder_objective import DecoderObjective
from kinema.model.heads import HeadsConfig, HeadsObjective
from kinema.model.manifold import Manifold, ManifoldObjective
from kinema.model.objective import DynamicsObjective
from kinema.model.parts import save_part
from kinema.model.tokens import Values
from kinema.model.world import CONFIG_FILE, CameraConfig, WorldConfig
from kinema.policies.cloned import CLONE_FILE, CloneConfig, CloneObjective, new_clone
from kinema.recipes import RECIPES, Phase, Recipe, Schedule
from kinema.simulation.session import World, load
from kinema.simulation.starts import check_dataset
from kinema.tokenizers import TokenizerObjective
from kinema.train.hindsight import Hindsight, require_rewards
from kinema.train.latents import (
    SAMPLE_ROWS,
    encode_all,
    fit_response,
    fit_support,
    fit_units,
    sample_frames,
    sample_pictures,
    surprise_by_row,
)
from kinema.train.loop import (
    Loop,
    LoopConfig,
    Stage,
    Stopped,
    check_same_run,
    open_loop,
    tell_stopped,
)
from kinema.train.progress import evaluate_progress

RADIUS_ROWS = 20_000
"""Frames from which the manifold's radius is taken."""
HEADS_SCHEDULE = Schedule(phases=(Phase(updates=6000, batch=256),), learning_rate=1e-3)
SUPPORTS = ("action_support.", "proprio_support.")
"""Weights that say where actions and proprioception were recorded begin with these."""
Part = Literal["manifold", "decoder", "dynamics"]
"""What of a finished world can go on learning."""
GO_ON: dict[Part, tuple[int, float]] = {
    "manifold": (14000, 1e-3),
    "decoder": (10000, 5e-4),
    "dynamics": (6000, 5e-4),
}
"""Updates and learning rate of a part that goes on."""
CLONE_SCHEDULE = Schedule(phases=(Phase(updates=8000, batch=256),), learning_rate=1e-3)
ACT_SCHEDULE = Schedule(phases=(Phase(updates=6000, batch=24, length=12),), learning_rate=2e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    data: Annotated[str, tyro.conf.Positional]
    """Folder of a LeRobot dataset, or its Hub id."""
    also: tuple[str, ...] = ()
    """More datasets (folders or Hub ids) from which --world goes on learning."""
    recipe: str = "base"
    """Name of the recipe."""
    name: str | None = None
    """What the world is called; the folder's name by default."""
    heads: bool = False
    """Learn no world but the heads of the finished one in --out: reward, termination, steps to a goal."""
    clone: bool = False
    """The same of a policy that does what the recordings did (behaviour cloning)."""
    act: bool = False
    """The same of what its network needs to act: to find actions that lead to a goal frame."""
    world: str | None = None
    """Begin with this finished world (a bundled one, a folder, a Hub id), and write to --out: with --heads,
    --clone or --act it stays as it is; else it goes on learning from these data, by the recipe's
    objective."""
    parts: tuple[Part, ...] = ("dynamics",)
    """What of --world goes on learning, one after the other. Heads and clones do not fit another manifold,
    and what a network needs to act no other dynamics."""

    @property
    def adds(self) -> tuple[str, ...]:
        """What is learned beside a finished world, which then stays as it is."""
        return tuple(name for name in ("heads", "clone", "act") if getattr(self, name))


def train(config: TrainConfig) -> int:
    """Train a world as the configuration says, resuming what is unfinished.

    Raises:
        DataError: the dataset cannot be read or does not fit the recipe.
        CheckpointError: a checkpoint in ``out`` is corrupt or belongs to another run.
        ValueError: an unknown recipe.
    """
    if config.also and (config.world is None or config.adds):
        raise ValueError("--also is for a finished world that goes on learning: name it with --world, alone")
    if config.parts != ("dynamics",) and (config.world is None or config.adds):
        raise ValueError("--parts are those of a finished world: name it with --world, alone")
    if config.recipe not in RECIPES:
        raise ValueError(f"recipe '{config.recipe}': choose one of {', '.join(RECIPES)}")
    # Before anything is decoded.
    config = dataclasses.replace(config, device=str(find_device(config.device)))
    try:
        if config.adds:
            return _add_to_world(config)
        return _make_world(config) if config.world is None else _go_on(config, config.world)
    except Stopped:
        return tell_stopped(config)


def _make_world(config: TrainConfig) -> int:
    """Learn a world from nothing; resumes what is unfinished."""
    started = time.monotonic()
    dataset = Dataset.open(config.data)
    recipe = _shortened(RECIPES[config.recipe](dataset), config.update_share)
    config.out.mkdir(parents=True, exist_ok=True)
    run = {
        "data": str(config.data),
        "recipe": config.recipe,
        "seed": config.seed,
        **dataclasses.asdict(recipe),
    }
    check_same_run(config.out, "run.json", run)
    segments = _load(dataset, recipe, config.out)
    torch.manual_seed(config.seed)
    world = World(_world_config(config, recipe, dataset, segments)).to(config.device)
    with open_loop(config, started) as loop:
        if world.tokenizer is not None:
            loop.run(_tokenizer_stage(world, recipe, segments))
        with torch.inference_mode():
            fit_units(world, segments)
        values = _encoded(world, segments, config)
        fit_response(world, segments, values)
        weights = surprise_by_row(world, segments, values) if recipe.surprising_share else None
        if world.manifold is not None:
            world.manifold.fit_robot(values.latents[0], values.proprio[0])
            _learn_manifold(loop, world, recipe, segments, values, weights)
        if recipe.decoder_schedule is not None:
            loop.run(_decoder_stage(world, recipe, [(segments, values)]))
        loop.run(_dynamics_stage(world, recipe, dataset, segments, values, weights, config.out))
    world.save(config.out)
    print(f"the world is in {config.out}: kinema simulate {config.out} --data {config.data}")
    return 0


def _go_on(config: TrainConfig, source: str) -> int:
    """Let parts of a finished world go on learning; resumes what is unfinished."""
    started = time.monotonic()
    if config.out.resolve() == Path(source).resolve():
        raise ValueError(f"--out {config.out}: that is the world to go on from; name another folder")
    world = load(source, device=config.device)
    dataset = Dataset.open(config.data)
    others = [Dataset.open(also) for also in config.also]
    for each in (dataset, *others):
        check_dataset(world, each)
    recipe = _shortened(_going_on(RECIPES[config.recipe](dataset)), config.update_share)
    world = _extended(world, recipe)
    if "dynamics" in config.parts:
        world.acting = None
    schedules = {
        "manifold": recipe.manifold_schedule,
        "decoder": recipe.decoder_schedule,
        "dynamics": recipe.dynamics_schedule,
    }
    for part in config.parts:
        if schedules[part] is None or (part != "dynamics" and world.manifold is None):
            raise ValueError(
                f"--parts {part}: the recipe '{config.recipe}' or the world '{world.name}' has none"
            )
    run = {
        "data": [config.data, *config.also],
        "seed": config.seed,
        "world": source,
        "parts": list(config.parts),
    }
    check_same_run(config.out, "go_on.json", {**run, **dataclasses.asdict(recipe)})
    segments = _segments_of(
        world, dataset, (0, max(1, dataset.num_episodes - recipe.num_held_out)), config.out
    )
    values = _encoded(world, segments, config)
    # The decoder alone learns from pictures; they take room.
    pictured = [(segments, values)] if "decoder" in config.parts else []
    for number, other in enumerate(others):
        more = _segments_of(world, other, (0, other.num_episodes), config.out / f"also-{number}")
        of_more = _encoded(world, more, config)
        pictured += [(more, of_more)] if pictured else []
        values, segments = values.followed_by(of_more), segments.followed_by(more)
    fit_support(world, segments)
    weights = surprise_by_row(world, segments, values) if recipe.surprising_share else None
    # Codes that a world keeps stay: as many of more recordings would be wider apart, and what lies between
    # them be drawn further.
    if world.manifold is not None and "manifold" not in config.parts and not world.manifold.keeps_codes:
        _fit_recorded(world.manifold, segments, values)
    with open_loop(config, started) as loop:
        for part in config.parts:
            if part == "manifold":
                _learn_manifold(loop, world, recipe, segments, values, weights)
            elif part == "decoder":
                loop.run(_decoder_stage(world, recipe, pictured))
            else:
                loop.run(_dynamics_stage(world, recipe, dataset, segments, values, weights, config.out))
    world.save(config.out)
    fits = "need to be learned anew" if "manifold" in config.parts else "fit it as well"
    print(f"the world is in {config.out}; heads and clones of {source} {fits}")
    return 0


def _going_on(recipe: Recipe) -> Recipe:
    """The same recipe for a world that is finished: each part learns on as it did at last, for a while."""

    def schedule(part: Part, of_recipe: Schedule) -> Schedule:
        updates, rate = GO_ON[part]
        phase = dataclasses.replace(of_recipe.phases[-1], updates=updates)
        return dataclasses.replace(of_recipe, phases=(phase,), learning_rate=rate)

    manifold, decoder = recipe.manifold_schedule, recipe.decoder_schedule
    return dataclasses.replace(
        recipe,
        manifold_schedule=None if manifold is None else schedule("manifold", manifold),
        decoder_schedule=None if decoder is None else schedule("decoder", decoder),
        dynamics_schedule=schedule("dynamics", recipe.dynamics_schedule),
    )


def _extended(world: World, recipe: Recipe) -> World:
    """The same world with room for what the recipe keeps of recordings, where it has none: codes of frames,
    and where actions and proprioception were."""
    config = world.config
    num_recorded = recipe.manifold.num_recorded if recipe.manifold is not None else 0
    if config.manifold is not None and not config.manifold.num_recorded:
        manifold = dataclasses.replace(config.manifold, num_recorded=num_recorded)
        config = dataclasses.replace(config, manifold=manifold)
    if not config.num_support:
        config = dataclasses.replace(config, num_support=recipe.num_support)
    if config == world.config:
        return world
    extended = World(config).to(world.device)
    extended.heads, extended.acting = world.heads, world.acting
    missing, unknown = extended.load_state_dict(world.state_dict(), strict=False)
    assert not unknown
    assert all(key.startswith(("manifold.recorded.", *SUPPORTS)) for key in missing)
    return extended


def _add_to_world(config: TrainConfig) -> int:
    """Learn heads, a policy, or to act, for a world that stays as it is; resumes what is unfinished."""
    started = time.monotonic()
    is_there = (config.out / CONFIG_FILE).is_file()
    if config.world is None and not is_there:
        raise ValueError(
            f"--out {config.out}: there is no finished world in it; train one first, or name one with --world"
        )
    world = load(config.out if is_there else config.world or "", device=config.device)
    dataset = Dataset.open(config.data)
    if config.heads:
        require_rewards(dataset)
    if not is_there:
        world.save(config.out)
    num_held_out = max(1, dataset.num_episodes // 20)
    for name in config.adds:
        run = {"data": str(config.data), "seed": config.seed, "share": config.update_share}
        check_same_run(config.out, f"{name}.json", run)
    with open_loop(config, started) as loop:
        lessons = [
            _hindsight(world, dataset, episodes, config)
            for episodes in (
                (0, max(1, dataset.num_episodes - num_held_out)),
                (dataset.num_episodes - num_held_out, dataset.num_episodes),
            )
        ]
        if config.heads:
            loop.run(_heads_stage(world, config, *lessons))
            world.save_parts(config.out)
        if config.clone:
            stage = _clone_stage(world, config, *lessons)
            loop.run(stage)
            assert isinstance(stage.objective, CloneObjective)
            save_part(config.out / CLONE_FILE, stage.objective.clone.config, stage.objective.clone)
        if config.act:
            loop.run(_act_stage(world, config, *lessons))
            world.save_parts(config.out)
    print(f"{' and '.join(config.adds)}: learned, and in {config.out} beside the world")
    return 0


def _tokenizer_stage(world: World, recipe: Recipe, segments: Segments) -> Stage:
    assert world.tokenizer is not None
    tokenizer = world.tokenizer
    tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (PyTorch's stub lacks it)
    objective = TokenizerObjective(tokenizer, recipe.tokenizer_objective).to(world.device)
    objective.loss.fit_rarity(*sample_pictures(segments))

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        return (segments.draw_pairs(rng, phase.batch).pictures,)

    return Stage(name="tokenizer", objective=objective, schedule=recipe.tokenizer_schedule, draw=draw)


def _learn_manifold(
    loop: Loop, world: World, recipe: Recipe, segments: Segments, values: Values, weights: np.ndarray | None
) -> None:
    """The manifold, then its radius and what it keeps of the recordings."""
    assert world.manifold is not None
    loop.run(_manifold_stage(world.manifold, recipe, segments, values, weights))
    world.manifold.fit_radius(*sample_frames(values, RADIUS_ROWS))
    _fit_recorded(world.manifold, segments, values)


def _fit_recorded(manifold: Manifold, segments: Segments, values: Values) -> None:
    if manifold.recorded is None:
        return
    print(f"choosing {len(manifold.recorded.codes):,} recorded frames to keep, up to a minute", flush=True)
    episode = segments.first_rows(np.arange(segments.num_rows))
    manifold.fit_recorded(values.latents[0], values.proprio[0], episode)


def _manifold_stage(
    manifold: Manifold, recipe: Recipe, segments: Segments, values: Values, weights: np.ndarray | None
) -> Stage:
    assert recipe.manifold_schedule is not None

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        rows = segments.draw_rows(
            rng, phase.batch, phase.length, weights=weights, weighted_share=recipe.surprising_share
        )
        frame, other = rng.integers(0, phase.length, (2, phase.batch))
        each = np.arange(phase.batch)
        frame, other = torch.from_numpy(rows[each, frame]), torch.from_numpy(rows[each, other])
        latents, proprio = values.latents[0], values.proprio[0]
        return latents[frame].float(), latents[other].float(), proprio[frame].float(), proprio[other].float()

    objective = ManifoldObjective(manifold)
    return Stage(name="manifold", objective=objective, schedule=recipe.manifold_schedule, draw=draw)


def _decoder_stage(world: World, recipe: Recipe, recordings: Sequence[tuple[Segments, Values]]) -> Stage:
    """Each batch is of one of the recordings, drawn by how many rows they have."""
    assert world.tokenizer is not None
    assert world.manifold is not None
    assert recipe.decoder_schedule is not None
    objective = DecoderObjective(
        world.tokenizer, world.manifold, recipe.tokenizer_objective, world.config.dynamics.grids
    ).to(world.device)
    objective.loss.fit_rarity(*sample_pictures(recordings[0][0]))
    rows_up_to = np.cumsum([segments.num_rows for segments, _ in recordings])

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        chosen = 0
        if len(recordings) > 1:
            chosen = int(np.searchsorted(rows_up_to, rng.integers(rows_up_to[-1]), side="right"))
        segments, values = recordings[chosen]
        pairs = segments.draw_pairs(rng, phase.batch)
        rows, cameras = torch.from_numpy(pairs.rows), torch.from_numpy(pairs.cameras)
        return pairs.pictures, values.latents[0, rows].float(), values.proprio[0, rows].float(), cameras

    return Stage(name="decoder", objective=objective, schedule=recipe.decoder_schedule, draw=draw)


def _dynamics_stage(
    world: World,
    recipe: Recipe,
    dataset: Dataset,
    segments: Segments,
    values: Values,
    weights: np.ndarray | None,
    out: Path,
) -> Stage:
    # Without recalling, which makes an update half as slow again.
    objective = DynamicsObjective(
        world.dynamics, recipe.dynamics_objective, lambda *frames: world.draw_near(*frames)[0]
    )

    def evaluate(update: int) -> dict[str, float]:
        held_out = range(dataset.num_episodes - recipe.num_held_out, dataset.num_episodes)
        world.save(out)
        return evaluate_progress(world, dataset, held_out, out / "progress" / f"{update:07d}.png")

    return Stage(
        name="dynamics",
        objective=objective,
        schedule=recipe.dynamics_schedule,
        draw=_dynamics_draw(recipe, segments, values, weights),
        evaluate=evaluate,
    )


def _dynamics_draw(
    recipe: Recipe, segments: Segments, values: Values, weights: np.ndarray | None
) -> Callable[[np.random.Generator, Phase], tuple[Any, ...]]:
    """Segments for the dynamics."""

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        rows = segments.draw_rows(
            rng, phase.batch, phase.length, weights=weights, weighted_share=recipe.surprising_share
        )
        drawn = values.map(lambda x: x[0, torch.from_numpy(rows)].float())
        own_steps = int(rng.integers(1, phase.own_context_steps + 1))
        return drawn, torch.from_numpy(segments.has_action[rows]), phase.own_context_share, own_steps

    return draw


def _hindsight(world: World, dataset: Dataset, episodes: tuple[int, int], config: TrainConfig) -> Hindsight:
    """Episodes as a finished world has them."""
    segments = _segments_of(world, dataset, episodes, config.out)
    return Hindsight(world, dataset, segments, _encoded(world, segments, config), first=episodes[0])


def _encoded(world: World, segments: Segments, config: TrainConfig) -> Values:
    use_bfloat16 = uses_bfloat16(config.precision, world.device)
    return encode_all(world, segments, use_bfloat16, config.out / "latents")


def _segments_of(world: World, dataset: Dataset, episodes: tuple[int, int], out: Path) -> Segments:
    """Episodes at the sizes that a finished world learned."""
    return load_segments(
        dataset,
        SegmentsConfig(
            cameras=world.cameras,
            proprio=world.config.proprio_key,
            sizes=world.config.learned_sizes,
            episodes=episodes,
        ),
        out / "frames-{}-{}".format(*episodes),
    )


def _heads_stage(world: World, config: TrainConfig, lessons: Hindsight, held_out: Hindsight) -> Stage:
    if not lessons.num_terminations:
        print("no recorded episode ended for good, so the heads will foretell that none ever does")
    torch.manual_seed(config.seed)
    heads_config = HeadsConfig(reward_range=lessons.reward_range)
    world.heads = world.new_heads(heads_config).to(world.device)
    objective = HeadsObjective(world.heads)

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        return (lessons.draw_heads(rng, phase.batch, heads_config),)

    def evaluate(update: int) -> dict[str, float]:
        batch = held_out.draw_heads(np.random.default_rng(0), SAMPLE_ROWS, heads_config)
        return _held_out(objective, batch.to(world.device))

    schedule = _shortened_schedule(HEADS_SCHEDULE, config.update_share)
    return Stage(name="heads", objective=objective, schedule=schedule, draw=draw, evaluate=evaluate)


def _clone_stage(world: World, config: TrainConfig, lessons: Hindsight, held_out: Hindsight) -> Stage:
    torch.manual_seed(config.seed)
    clone_config = CloneConfig()
    objective = CloneObjective(new_clone(world, clone_config).to(world.device))

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        return (lessons.draw_clone(rng, phase.batch, clone_config),)

    def evaluate(update: int) -> dict[str, float]:
        batch = held_out.draw_clone(np.random.default_rng(0), SAMPLE_ROWS, clone_config)
        return _held_out(objective, batch.to(world.device))

    schedule = _shortened_schedule(CLONE_SCHEDULE, config.update_share)
    return Stage(name="clone", objective=objective, schedule=schedule, draw=draw, evaluate=evaluate)


def _act_stage(world: World, config: TrainConfig, lessons: Hindsight, held_out: Hindsight) -> Stage:
    torch.manual_seed(config.seed)
    acting_config = ActingConfig()
    world.acting = world.new_acting(acting_config).to(world.device)
    objective = ActingObjective(world.acting, world.dynamics)
    schedule = _shortened_schedule(ACT_SCHEDULE, config.update_share)
    length = schedule.phases[0].length
    sample = lessons.draw_acting(np.random.default_rng(0), SAMPLE_ROWS // length, length, acting_config)
    last = sample.frames.action[:, 1:].flatten(0, 1)
    world.acting.fit(sample.actions[:, 1:].flatten(0, 1).to(world.device), last.to(world.device))

    def draw(rng: np.random.Generator, phase: Phase) -> tuple[Any, ...]:
        return (lessons.draw_acting(rng, phase.batch, phase.length, acting_config),)

    def evaluate(update: int) -> dict[str, float]:
        batch = held_out.draw_acting(np.random.default_rng(0), SAMPLE_ROWS // length, length, acting_config)
        return _held_out(objective, batch.to(world.device))

    return Stage(name="act", objective=objective, schedule=schedule, draw=draw, evaluate=evaluate)


@torch.no_grad()
def _held_out(objective: nn.Module, batch: Any) -> dict[str, float]:
    """Loss and metrics of a batch that was not learned from."""
    device = next(objective.parameters()).device
    loss, metrics = objective(batch, generator=torch.Generator(device).manual_seed(0))
    return {f"held_out_{key}": value.item() for key, value in {"loss": loss, **metrics}.items()}


def _world_config(config: TrainConfig, recipe: Recipe, dataset: Dataset, segments: Segments) -> WorldConfig:
    names = dataset.features["action"].get("names")
    if not isinstance(names, list) or len(names) != recipe.dynamics.action_dim:
        names = [f"action_{index}" for index in range(recipe.dynamics.action_dim)]
    return WorldConfig(
        name=config.name or config.out.resolve().name,
        fps=dataset.fps,
        cameras=tuple(
            CameraConfig(key=key, native_height=native[0], native_width=native[1], height=height, width=width)
            for (key, native), (height, width) in zip(
                segments.native_sizes.items(),
                recipe.segments.sizes_of(list(segments.native_sizes)).values(),
                strict=True,
            )
        ),
        proprio_key=recipe.segments.proprio,
        action_names=tuple(names),
        tokenizer=recipe.tokenizer,
        dynamics=recipe.dynamics,
        manifold=recipe.manifold,
        still_change=recipe.still_change,
        num_denoising_steps=recipe.num_denoising_steps,
        context_tau=recipe.context_tau,
        num_support=recipe.num_support,
    )


def _load(dataset: Dataset, recipe: Recipe, out: Path) -> Segments:
    last = dataset.num_episodes - recipe.num_held_out
    return load_segments(
        dataset, dataclasses.replace(recipe.segments, episodes=(0, max(1, last))), out / "frames"
    )


def _shortened_schedule(schedule: Schedule, share: float) -> Schedule:
    phases = tuple(
        dataclasses.replace(phase, updates=max(1, round(share * phase.updates))) for phase in schedule.phases
    )
    warmup = max(1, round(share * schedule.warmup))
    return dataclasses.replace(schedule, phases=phases, warmup=warmup)


def _shortened(recipe: Recipe, share: float) -> Recipe:
    def shorten(schedule: Schedule) -> Schedule:
        return _shortened_schedule(schedule, share)

    if share == 1.0:
        return recipe
    return dataclasses.replace(
        recipe,
        tokenizer_schedule=shorten(recipe.tokenizer_schedule),
        manifold_schedule=shorten(recipe.manifold_schedule) if recipe.manifold_schedule else None,
        decoder_schedule=shorten(recipe.decoder_schedule) if recipe.decoder_schedule else None,
        dynamics_schedule=shorten(recipe.dynamics_schedule),
    )
