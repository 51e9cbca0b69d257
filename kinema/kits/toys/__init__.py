"""Two small worlds of known answer: a ball that flips a coin, and balls that pass behind a screen.

Each asks one thing of a world model: to sample where the future is uncertain, and to remember what is hidden.

- ``kinema_coin/Vector-v0`` and ``kinema_coin/Pixels-v0``: see ``kinema.kits.toys.coin``.
- ``kinema_screen/Pixels-v0``: see ``kinema.kits.toys.screen``.

Record them with ``--info-keys coin`` and ``--info-keys screen``: the true state then stands beside frames.
"""

from collections.abc import Callable

from kinema.kits import Environments, Kit, Probe
from kinema.kits.toys.coin import CoinProbe
from kinema.kits.toys.screen import ScreenProbe


def _environments(name: str) -> Environments:
    return Environments(
        namespace=f"kinema_{name}",
        module="kinema.kits.toys.environments",
        requirement="kinema[gym]",
        arguments=lambda given, size: (given, size),
    )


def _of_one_camera(probe: Callable[[str], Probe]) -> Callable[[tuple[str, ...]], Probe | None]:
    return lambda cameras: probe(cameras[0]) if len(cameras) == 1 else None


COIN = Kit(
    name="coin",
    columns=("info.coin",),
    probe=_of_one_camera(CoinProbe),
    environments=_environments("coin"),
)
SCREEN = Kit(
    name="screen",
    columns=("info.screen",),
    probe=_of_one_camera(ScreenProbe),
    environments=_environments("screen"),
)
