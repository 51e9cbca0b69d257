"""Policies for recording: ``reset(rng, info)`` begins an episode, ``act(observation, info)`` is a step."""

from kinema.policies.open_loop import RandomPolicy, ZeroPolicy

__all__ = ["RandomPolicy", "ZeroPolicy"]
