"""The DeepMind Control Suite, drawn by MuJoCo (``dm_control/...``)."""

from kinema.kits import Environments, Kit
from kinema.kits.dmc.environment import arguments, tell_rate

KIT = Kit(
    name="dmc",
    environments=Environments(
        namespace="dm_control",
        module="shimmy",
        requirement="kinema[dmc]",
        arguments=arguments,
        prepare=tell_rate,
    ),
)
