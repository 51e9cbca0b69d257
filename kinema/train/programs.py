"""The programs of ``kinema train``: a world from nothing, a finished one that goes on learning, additions.

Each checks the facts before anything is learned, yields its stages, and writes what came of them.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import torch
import tyro

from kinema.data.dimensions import Dimension, find_dimensions
from kinema.data.layout import picture_shape
from kinema.data.lerobot import Dataset
from kinema.data.mixture import Source, shares_of
from kinema.data.segments import SegmentsConfig, load_segments
from kinema.model.world import ACTING_FILE, CONFIG_FILE, HEADS_FILE, CameraConfig, WorldConfig
from kinema.policies.cloned import CLONE_FILE
from kinema.recipes import RECIPES, Recipe, Scale, sized
from kinema.recipes.added import Part, added, further
from kinema.recipes.budget import LADDER, Plan, parse_budget
from kinema.simulation.starts import check_dataset
from kinema.simulation.world import World, load
from kinema.train import facts
from kinema.train.added import Addition
from kinema.train.checkpoint import read_state
from kinema.train.facts import Identity
from kinema.train.hindsight import REWARD, require_rewards
from kinema.train.loop import CHECKPOINT, LoopConfig, Run, Stage
from kinema.train.mixed import Mixture
from kinema.train.plan import disk_bytes, make_plan, say_cost, say_quality, stage_costs
from kinema.train.stages import Job, Recording, further_stages, new_world_stages
from kinema.train.trust import fit_trust

SUPPORTS = ("action_support.", "proprio_support.")
"""Weights that say where actions and proprioception were recorded begin with these."""
ADDED_FILES = {"heads": HEADS_FILE, "clone": CLONE_FILE, "act": ACTING_FILE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder of a LeRobot dataset, or its Hub id."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Finished world (a bundled one, a folder, a Hub id) to begin with. It is not changed: the result goes to
    --out. With --heads, --clone or --act these are added to it; otherwise it goes on learning."""
    budget: Annotated[str | None, tyro.conf.arg(metavar="TIME")] = None
    """Time for the whole training, such as 90m, 6h or 2d. This machine is measured, then sizes and updates
    are planned."""
    size: Annotated[str | None, tyro.conf.arg(metavar="{" + ",".join(LADDER) + "}")] = None
    """Size of frames and networks; by default the largest that the budget allows, or small without one."""
    plan: bool = False
    """Print the plan of the training and stop; nothing is written."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="{" + ",".join(RECIPES) + "}")] = None
    """Name of another recipe than the one for all datasets, which --size and --budget scale."""
    name: str | None = None
    """Name of the world; the name of its folder by default."""
    heads: bool = False
    """Add heads to a finished world: reward, termination, steps to a goal. The world is the one of --from, or
    the one in --out."""
    clone: bool = False
    """Add a policy that does what the recordings did (behaviour cloning)."""
    act: bool = False
    """Add what the network of the world needs to act: to find actions that lead to a goal frame."""
    parts: tuple[Part, ...] = ("dynamics",)
    """Parts of --from that go on learning, one after the other. Heads and clones do not fit another manifold,
    and what a network needs to act does not fit another dynamics."""
    kinds: tuple[str, ...] = ()
    """Kinds of the dimensions that `kinema data` shows with a wrong one, each as KEY.DIMENSION=KIND, such as
    observation.state.3=angle. DIMENSION is a name or a number; KIND is continuous, angle (radians, degrees),
    discrete or one-hot."""
    also: tuple[str, ...] = ()
    """More datasets (folders or Hub ids) to learn from, also of other robots, cameras and rates. NAME:WEIGHT
    draws their segments by weight, against 1 for all others; without weights every row counts the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts != ("dynamics",) and (self.from_ is None or self.adds):
            raise ValueError("--parts is for a finished world that goes on learning: name it with --from")
        if self.also and self.adds:
            raise ValueError(f"--also: {' and '.join(self.adds)} are learned from one dataset")
        if self.also and self.budget is not None:
            raise ValueError("--budget: it is planned for one dataset; choose a --size for a mixture")
        if self.kinds and (self.from_ is not None or self.adds):
            raise ValueError("--kinds is for a new world: a finished one keeps its kinds")
        if self.size is not None and self.size not in LADDER:
            raise ValueError(f"--size {self.size}: choose one of {', '.join(LADDER)}")
        if self.recipe_name not in RECIPES:
            raise ValueError(f"recipe '{self.recipe}': choose one of {', '.join(RECIPES)}")
        if self.recipe is not None and (self.size or self.budget):
            raise ValueError(f"--recipe {self.recipe}: it has its own sizes; leave out --size and --budget")
        if self.budget is not None:
            parse_budget(self.budget)
            if self.from_ is not None or self.adds:
                raise ValueError("--budget: it is for a new world; leave it out with --from and additions")
            if self.update_share != 1.0:
                raise ValueError("--update-share: the budget decides the updates; leave out one of both")

    @property
    def recipe_name(self) -> str:
        """Name of the recipe, whose updates a budget may change."""
        return self.recipe or self.size or "small"

    @property
    def adds(self) -> tuple[str, ...]:
        """Names of what is added to a finished world, which then stays as it is."""
        return tuple(name for name in ("heads", "clone", "act") if getattr(self, name))


@runtime_checkable
class Program(Protocol):
    """One of the things that the command can do."""

    def is_finished(self) -> bool:
        """True where the folder holds the result of this very run. Raises CheckpointError where it holds
        another one."""
        ...

    def prepare(self, run: Run) -> None:
        """Check the facts, and say what the training takes. Nothing is written before."""
        ...

    def stages(self, run: Run) -> Iterator[Stage]:
        """The stages, one after the other; each is at its end before the next is asked for."""
        ...

    def finish(self, run: Run) -> None:
        """Write what was learned."""
        ...


def choose_program(config: TrainConfig) -> Program:
    """The program that the options ask for."""
    if config.adds:
        return AddingProgram(config)
    return NewProgram(config) if config.from_ is None else FurtherProgram(config, config.from_)


class NewProgram:
    """Learn a world from nothing."""

    def __init__(self, config: TrainConfig):
        self.config = config
        sources = [Source(config.data, None), *map(Source.parse, config.also)]
        self.datasets = [Dataset.open(source.name) for source in sources]
        self.dataset = self.datasets[0]
        self.dimensions = find_dimensions(self.dataset, config.kinds)
        self._prints = [facts.fingerprint(dataset) for dataset in self.datasets]
        self.plan: Plan | None = None
        self.mixture: Mixture | None = None
        if config.budget is None:
            recipes = [RECIPES[config.recipe_name](dataset) for dataset in self.datasets]
            recipe = recipes[0]
            if config.also:
                others = [find_dimensions(dataset) for dataset in self.datasets[1:]]
                self.mixture = Mixture.of(sources, self.datasets, recipes, [self.dimensions, *others])
                recipe = self.mixture.recipe
            recipe = recipe.shortened(config.update_share)
        else:
            # A resumed run keeps to the plan that it began with.
            kept = Identity.kept_options(config.out, "run")
            if kept.get("budget") == config.budget and kept.get("plan"):
                self.plan = Plan.from_json(kept["plan"])
            recipe = sized(self.dataset, self.plan.scale if self.plan else Scale.of("mini"))
        self._use(recipe)

    def _use(self, recipe: Recipe) -> None:
        config, self.recipe = self.config, recipe
        options = {"data": config.data, "recipe": config.recipe_name, "seed": config.seed}
        options |= {"kinds": list(config.kinds), "accumulate": config.accumulate, "also": list(config.also)}
        options |= dataclasses.asdict(recipe)
        if config.budget is not None:
            plan = None if self.plan is None else dataclasses.asdict(self.plan)
            options |= {"budget": config.budget, "size": config.size, "plan": plan}
        self.identity = Identity("run", options, self._prints)

    def is_finished(self) -> bool:
        return _is_finished(self.config.out, self.identity, self.datasets)

    @property
    def _segments_configs(self) -> Sequence[SegmentsConfig]:
        """By dataset, which cameras and vectors of it are learned."""
        return [self.recipe.segments] if self.mixture is None else self.mixture.configs

    def prepare(self, run: Run) -> None:
        config, dataset = self.config, self.dataset
        schedules = (self.recipe.manifold_schedule, self.recipe.dynamics_schedule)
        checked = [
            facts.check_data(
                each,
                segment_length=max(phase.length for each in schedules if each for phase in each.phases),
                columns=_columns(segments.cameras or (), segments.proprio),
                num_held_out=0 if number else self.recipe.num_held_out,
            )
            for number, (each, segments) in enumerate(zip(self.datasets, self._segments_configs, strict=True))
        ]
        self.episodes, self._learned_also = checked[0], [each.learned for each in checked[1:]]
        for each in self.datasets:
            if "action" not in each.features:
                without = "its frames are learned" if self.mixture else "the world is learned"
                print(f"{each.root}: no feature 'action', so {without} without and go on by themselves")
            if each.fps != dataset.fps:
                print(f"{each.root}: {each.fps:g} fps beside {dataset.fps:g}; a step is a row of either")
        if config.budget is not None:
            self._keep_to_budget(run, config.budget)
        recipe, plan = self.recipe, self.plan
        torch.manual_seed(config.seed)
        world_config = _world_config(config, recipe, dataset, self.dimensions, self.mixture)
        self.world = World(world_config).to(run.device)
        names = ["tokenizer"] if recipe.tokenizer is not None else []
        names += [part for part in ("manifold", "decoder") if recipe.schedule(part) is not None]
        learned = list(zip(self.datasets, [self.episodes.learned, *self._learned_also], strict=True))
        _say_cost(run, recipe, self.world, learned, [*names, "dynamics"], plan)
        print(say_quality(config.budget, bool(recipe.segments.cameras)), flush=True)

    def _keep_to_budget(self, run: Run, budget: str) -> None:
        """Plan the recipe, where that was not done before, and choose the episodes that it has time for."""
        config, dataset, learned = self.config, self.dataset, self.episodes.learned
        if self.plan is None:
            self.plan = run.ranks.from_first(
                lambda: make_plan(
                    run,
                    dataset,
                    learned,
                    lambda recipe: _world_config(config, recipe, dataset, self.dimensions),
                    budget=budget,
                    size=config.size,
                )
            )
            self._use(sized(dataset, self.plan.scale))
        num_used = self.plan.scale.num_episodes
        if num_used is not None and num_used < len(learned):
            print(
                f"{dataset.root}: {num_used:,} of {len(learned):,} episodes are used; to decode and encode "
                "all would take too large a share of the budget"
            )
            evenly = np.linspace(0, len(learned) - 1, num_used).round().astype(np.int64)
            self.episodes = dataclasses.replace(self.episodes, learned=learned[evenly])

    def stages(self, run: Run) -> Iterator[Stage]:
        recordings, shares = [], None
        for number, (dataset, segments, episodes) in enumerate(
            zip(
                self.datasets,
                self._segments_configs,
                [self.episodes.learned, *self._learned_also],
                strict=True,
            )
        ):
            folder = f"frames-{number}" if number else "frames"
            recording = _record(run, dataset, segments, episodes, folder)
            if self.mixture is not None:
                unified = self.mixture.unify(recording.segments, number)
                recording = Recording(self.mixture.dataset(number), unified, recording.fingerprint)
            recordings.append(recording)
        self.identity.keep(run)
        if self.mixture is not None:
            shares = self.mixture.shares
        self.job = Job(run, self.world, self.recipe, recordings, self.episodes.held_out, shares)
        yield from new_world_stages(self.job)

    def finish(self, run: Run) -> None:
        out = self.config.out
        if self.mixture is None:  # Held-out episodes of one robot say nothing of the others' cameras.
            fit_trust(self.world, self.dataset, self.episodes.held_out.tolist())
        self.world.save(out)
        print(f"the world is in {out}: kinema simulate {out} --data {self.config.data}")
        self.job.evaluate_last()
        _remove_frames(out)


class FurtherProgram:
    """Let parts of a finished world go on learning."""

    def __init__(self, config: TrainConfig, source: str):
        self.config, self.source = config, source
        if config.out.resolve() == Path(source).resolve():
            raise ValueError(f"--out {config.out}: that is the world to go on from; name another folder")
        sources = [Source(config.data, None), *map(Source.parse, config.also)]
        self.datasets, self._shares = [Dataset.open(each.name) for each in sources], shares_of(sources)
        recipe = further(RECIPES[config.recipe_name](self.datasets[0]))
        self.recipe = recipe.shortened(config.update_share)
        options = {
            "data": [config.data, *config.also],
            "seed": config.seed,
            "from": source,
            "parts": list(config.parts),
            "accumulate": config.accumulate,
            **dataclasses.asdict(self.recipe),
        }
        self.identity = Identity("further", options, [facts.fingerprint(each) for each in self.datasets])

    def is_finished(self) -> bool:
        return _is_finished(self.config.out, self.identity, self.datasets)

    def prepare(self, run: Run) -> None:
        config, recipe = self.config, self.recipe
        world = load(self.source, device=run.device)
        for dataset in self.datasets:
            check_dataset(world, dataset)
        for part in config.parts:
            if recipe.schedule(part) is None or (part != "dynamics" and world.manifold is None):
                raise ValueError(
                    f"--parts {part}: the recipe '{config.recipe_name}' or the world '{world.name}' has none"
                )
        schedules = [recipe.schedule(part) for part in config.parts if part != "decoder"]
        length = max((phase.length for each in schedules if each for phase in each.phases), default=2)
        self.episodes = [
            facts.check_data(
                dataset,
                segment_length=length,
                columns=_columns(world.cameras, world.config.proprio_key),
                num_held_out=0 if number else recipe.num_held_out,
            )
            for number, dataset in enumerate(self.datasets)
        ]
        self.world = _extended(world, recipe)
        if "dynamics" in config.parts:
            self.world.acting = None
        learned = [each.learned for each in self.episodes]
        _say_cost(run, recipe, self.world, list(zip(self.datasets, learned, strict=True)), config.parts)

    def stages(self, run: Run) -> Iterator[Stage]:
        recordings = []
        for number, (dataset, episodes) in enumerate(zip(self.datasets, self.episodes, strict=True)):
            folder = f"frames-{number}"
            recordings.append(_record(run, dataset, _segments_of(self.world), episodes.learned, folder))
        self.identity.keep(run)
        self.job = Job(run, self.world, self.recipe, recordings, self.episodes[0].held_out, self._shares)
        yield from further_stages(self.job, self.config.parts)

    def finish(self, run: Run) -> None:
        out = self.config.out
        self.world.save(out)
        fits = "need to be learned anew" if "manifold" in self.config.parts else "fit it as well"
        print(f"the world is in {out}; heads and clones of {self.source} {fits}")
        if "dynamics" in self.config.parts:
            self.job.evaluate_last()
        _remove_frames(out)


class AddingProgram:
    """Add heads, a cloned policy or the network as a policy to a world, which stays as it is."""

    def __init__(self, config: TrainConfig):
        self.config, self.recipe, out = config, added(), config.out
        self.is_in_place = (out / CONFIG_FILE).is_file()
        if not self.is_in_place and any((out / CHECKPOINT / name).is_file() for name in WORLD_RUNS):
            raise ValueError(
                f"--out {out}: its world is not finished; run the command that began it again, then add to it"
            )
        if not self.is_in_place and config.from_ is None:
            raise ValueError(
                f"--out {out}: there is no finished world in it; train one first, or name one with --from"
            )
        self.dataset = Dataset.open(config.data)
        if config.heads:
            require_rewards(self.dataset)
        options = {"data": config.data, "seed": config.seed, "share": config.update_share}
        options |= {"accumulate": config.accumulate}
        prints = [facts.fingerprint(self.dataset)]
        self.identities = [Identity(name, options, prints) for name in config.adds]

    def is_finished(self) -> bool:
        out = self.config.out
        is_done = [identity.check(out, [self.dataset]) for identity in self.identities]
        for name in self.config.adds:
            state = read_state(out / CHECKPOINT / name) or {"update": 0}
            schedule = self.recipe.schedule(name).shortened(self.config.update_share)
            is_done.append(state["update"] == schedule.updates and (out / ADDED_FILES[name]).is_file())
        return all(is_done)

    def prepare(self, run: Run) -> None:
        source = self.config.out if self.is_in_place else self.config.from_
        assert source is not None
        self.world = load(source, device=run.device)
        check_dataset(self.world, self.dataset)
        if not self.world.action_dim and (config := self.config).adds != ("heads",):
            raise ValueError(f"--{config.adds[-1]}: world '{self.world.name}' has no actions to choose")
        rewards = (REWARD,) if self.config.heads else ()
        self.episodes = facts.check_data(
            self.dataset,
            segment_length=2,
            columns=(*_columns(self.world.cameras, self.world.config.proprio_key), *rewards),
            num_held_out=max(1, self.dataset.num_episodes // 20),
        )
        every = np.union1d(self.episodes.learned, self.episodes.held_out)
        _say_cost(run, None, self.world, [(self.dataset, every)], ())

    def stages(self, run: Run) -> Iterator[Stage]:
        if run.ranks.is_first and not self.is_in_place:
            self.world.save(self.config.out)
        recordings = [
            _record(run, self.dataset, _segments_of(self.world), episodes, f"frames-{name}")
            for name, episodes in vars(self.episodes).items()
        ]
        for identity in self.identities:
            identity.keep(run)
        yield from Addition(run, self.world, self.recipe, *recordings).stages(self.config.adds)

    def finish(self, run: Run) -> None:
        _remove_frames(self.config.out)
        print(f"{' and '.join(self.config.adds)}: learned, and in {self.config.out} beside the world")


WORLD_RUNS = ("run.json", "further.json")
"""Files that say that a world is being trained in a folder."""


def _is_finished(out: Path, identity: Identity, datasets: Sequence[Dataset]) -> bool:
    """True where a folder holds the world of this run.

    Raises:
        CheckpointError: another run, or changed data.
        ValueError: it holds another finished world.
    """
    is_this_run, has_world = identity.check(out, datasets), (out / CONFIG_FILE).is_file()
    if has_world and not is_this_run:
        raise ValueError(f"--out {out}: it holds a finished world already; name another folder")
    return has_world


def _columns(cameras: Sequence[str], proprio: str | None) -> tuple[str, ...]:
    """Keys of the features that a world learns from."""
    return (*cameras, *((proprio,) if proprio else ()), "action")


def _record(
    run: Run, dataset: Dataset, config: SegmentsConfig, episodes: np.ndarray, folder: str
) -> Recording:
    """Decode episodes; the first process does, the others read what it wrote."""
    first, stop = int(episodes[0]), int(episodes[-1]) + 1
    left_out = np.setdiff1d(np.arange(first, stop), episodes)
    config = dataclasses.replace(config, episodes=(first, stop), left_out=tuple(left_out.tolist()))
    cache = run.folder / folder
    with run.ranks.first_goes_ahead() as is_first:
        segments = load_segments(dataset, config, cache) if is_first else None
    segments = segments or load_segments(dataset, config, cache, progress=False)
    return Recording(dataset, segments, facts.name_of(facts.fingerprint(dataset), episodes))


def _segments_of(world: World) -> SegmentsConfig:
    """Cameras and sizes that a finished world learned."""
    return SegmentsConfig(
        cameras=world.cameras,
        proprio=world.config.proprio_key,
        sizes=world.config.learned_sizes,
    )


def _say_cost(
    run: Run,
    recipe: Recipe | None,
    world: World,
    episodes: Sequence[tuple[Dataset, np.ndarray]],
    names: Sequence[str],
    plan: Plan | None = None,
) -> None:
    """Print the cost of a training; of what is added to a world only the disk is counted."""
    num_rows = sum(int(dataset.lengths()[chosen].sum()) for dataset, chosen in episodes)
    costs = []
    if recipe is not None:
        costs = stage_costs(run, recipe, world.config, episodes[0][0], names, plan)
    others = {"decoding and encoding": plan.preparing, "the rest": plan.other} if plan else {}
    say_cost(costs, run, disk_bytes(world, num_rows), world.config, others)


def _remove_frames(out: Path) -> None:
    """Remove decoded frames, which are large and no longer needed."""
    for folder in (out / CHECKPOINT).glob("frames*"):
        shutil.rmtree(folder, ignore_errors=True)


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


def _world_config(
    config: TrainConfig,
    recipe: Recipe,
    dataset: Dataset,
    dimensions: Mapping[str, tuple[Dimension, ...]],
    mixture: Mixture | None = None,
) -> WorldConfig:
    features, proprio_key = dataset.features, recipe.segments.proprio
    if mixture is not None:
        features = mixture.features
        dimensions = {"action": mixture.actions.dimensions}
        dimensions |= {proprio_key: mixture.proprio.dimensions} if proprio_key else {}
    actions = tuple(
        dataclasses.replace(each, name=f"action_{each.name}") if each.name.isdecimal() else each
        for each in dimensions.get("action", ())
    )
    proprio = dimensions[proprio_key] if proprio_key else ()
    learned = recipe.segments.sizes_of(recipe.segments.cameras or ())
    native = {key: picture_shape(features[key]) for key in learned}
    return WorldConfig(
        name=config.name or config.out.resolve().name,
        fps=dataset.fps,
        cameras=tuple(
            CameraConfig(
                key=key,
                native_height=native[key][0],
                native_width=native[key][1],
                height=height,
                width=width,
            )
            for key, (height, width) in learned.items()
        ),
        proprio_key=recipe.segments.proprio,
        actions=actions,
        proprio=proprio,
        tokenizer=recipe.tokenizer,
        dynamics=dataclasses.replace(
            recipe.dynamics,
            action_dim=sum(each.num_columns for each in actions),
            proprio_dim=sum(each.num_columns for each in proprio),
        ),
        manifold=recipe.manifold,
        still_change=recipe.still_change,
        num_denoising_steps=recipe.num_denoising_steps,
        context_tau=recipe.context_tau,
        num_support=recipe.num_support,
        has_holes=mixture is not None,
    )
