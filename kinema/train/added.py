"""Stages of additions to a finished world, which stays as it is: heads, a cloned policy, the network as a
policy."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kinema.data.lerobot import Dataset
from kinema.model.acting import ActingObjective
from kinema.model.heads import HeadsObjective
from kinema.model.parts import save_part
from kinema.policies.cloned import CLONE_FILE, CloneObjective, new_clone
from kinema.recipes import Phase
from kinema.recipes.added import AddedRecipe
from kinema.simulation.world import World
from kinema.train.hindsight import Hindsight
from kinema.train.latents import SAMPLE_ROWS
from kinema.train.loop import Run, Stage
from kinema.train.stages import Recording, build_stage, encode


class Addition:
    """A finished world, and the episodes that something is learned from and evaluated on."""

    def __init__(self, run: Run, world: World, recipe: AddedRecipe, learned: Recording, held_out: Recording):
        self.run, self.world, self.recipe = run, world, recipe
        self.learned, self.held_out = (
            Hindsight(world, each.dataset, each.segments, encode(run, world, each))
            for each in (learned, held_out)
        )

    def stages(self, names: Sequence[str]) -> Iterator[Stage]:
        """The stages with these names, one after the other; the file of each is written once it is done."""
        out, is_first = self.run.config.out, self.run.ranks.is_first
        for name in names:
            torch.manual_seed(self.run.config.seed)
            stage = {"heads": self._heads, "clone": self._clone, "act": self._act}[name]()
            yield stage
            if is_first:
                self._save(stage.module, out)

    def _save(self, module: nn.Module, out: Path) -> None:
        if isinstance(module, CloneObjective):
            save_part(out / CLONE_FILE, module.clone.config, module.clone)
        else:
            self.world.save_parts(out)

    def _heads(self) -> Stage:
        """Reward, termination and steps to a goal."""
        if not self.learned.num_terminations:
            print("no recorded episode terminated, so the heads will predict that none ever does")
        config = self.recipe.heads_for(self.learned.reward_range)
        self.world.heads = self.world.new_heads(config).to(self.world.device)
        objective = HeadsObjective(self.world.heads)

        def draw(lessons: Hindsight, rng: np.random.Generator, num: int) -> Any:
            return lessons.draw_heads(rng, num, config)

        return self._stage("heads", objective, draw)

    def _clone(self) -> Stage:
        """A policy that does what the recordings did."""
        config = self.recipe.clone
        objective = CloneObjective(new_clone(self.world, config).to(self.world.device))

        def draw(lessons: Hindsight, rng: np.random.Generator, num: int) -> Any:
            return lessons.draw_clone(rng, num, config)

        return self._stage("clone", objective, draw)

    def _act(self) -> Stage:
        """The network as a policy."""
        config, world = self.recipe.act, self.world
        world.acting = world.new_acting(config).to(world.device)
        length = self.recipe.act_schedule.phases[0].length

        def draw(lessons: Hindsight, rng: np.random.Generator, num: int) -> Any:
            return lessons.draw_acting(rng, num, length, config)

        sample = draw(self.learned, np.random.default_rng(0), SAMPLE_ROWS // length)
        last = sample.frames.action[:, 1:].flatten(0, 1)
        world.acting.fit(sample.actions[:, 1:].flatten(0, 1).to(world.device), last.to(world.device))
        return self._stage(
            "act", ActingObjective(world.acting, world.dynamics), draw, num_held_out=SAMPLE_ROWS // length
        )

    def _stage(
        self,
        name: str,
        objective: nn.Module,
        draw: Callable[[Hindsight, np.random.Generator, int], Any],
        num_held_out: int = SAMPLE_ROWS,
    ) -> Stage:
        device = self.world.device

        @torch.no_grad()
        def evaluate(update: int) -> dict[str, float]:
            """Loss and metrics of a batch that was not learned from."""
            batch = draw(self.held_out, np.random.default_rng(0), num_held_out).to(device)
            loss, metrics = objective(batch, generator=torch.Generator(device).manual_seed(0))
            return {f"held_out_{key}": value.item() for key, value in {"loss": loss, **metrics}.items()}

        def draw_learned(rng: np.random.Generator, phase: Phase) -> Any:
            return draw(self.learned, rng, phase.batch)

        schedule = self.recipe.schedule(name).shortened(self.run.config.update_share)
        # Networks of the world make these batches, so they are not made beside an update.
        return build_stage(self.run, name, objective, schedule, draw_learned, num_ahead=0, evaluate=evaluate)


def num_held_out(dataset: Dataset) -> int:
    """Episodes at the end of a dataset that nothing is learned from."""
    return max(1, dataset.num_episodes // 20)
