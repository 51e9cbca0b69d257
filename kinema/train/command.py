"""``kinema train``: facts first, then stages one after the other, each brought to its end by ``fit``."""

import time
from pathlib import Path

from kinema.hardware.machine import find_device
from kinema.train import facts
from kinema.train.loop import Stopped, fit, open_run, say_stopped
from kinema.train.parallel import join_ranks
from kinema.train.programs import TrainConfig, choose_program


def train(config: TrainConfig) -> int:
    """Train a world, resuming an unfinished run; 0 when done, 130 when stopped with a checkpoint.

    Raises:
        DataError: the dataset cannot be read or does not fit the recipe.
        CheckpointError: a checkpoint in ``out`` is corrupt or belongs to another run.
        ValueError: an option is wrong.
    """
    started = time.monotonic()
    facts.check_output(config.out, [Path(config.data), *map(Path, config.also)])
    device = find_device(config.device)
    program = choose_program(config)
    if program.is_finished():
        print(f"{config.out}: this run is finished, nothing is left to do")
        return 0
    with join_ranks(device) as (ranks, device), open_run(config, device, ranks, started) as run:
        program.prepare(run)
        if config.plan:
            return 0
        try:
            for stage in program.stages(run):
                fit(stage, run)
        except Stopped:
            return say_stopped(config)
        if ranks.is_first:
            program.finish(run)
    return 0
