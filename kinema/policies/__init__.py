"""Policies for recording: ``reset(rng, info)`` begins an episode, ``act(observation, info)`` is a step."""

from kinema.policies.open_loop import RandomPolicy, ZeroPolicy
from kinema.policies.pusht_play import PushTPlay, PushTPlayConfig

__all__ = ["PushTPlay", "PushTPlayConfig", "RandomPolicy", "ZeroPolicy"]
