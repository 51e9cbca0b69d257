"""PushT: a disc pushes a T-shaped block over a table (``gym_pusht/PushT-v0``)."""

from kinema.kits.kit import Kit
from kinema.kits.pusht.probe import PushTProbe


def _probe(cameras: tuple[str, ...]) -> PushTProbe | None:
    return PushTProbe(cameras[0]) if len(cameras) == 1 else None


KIT = Kit(name="pusht", columns=PushTProbe.COLUMNS, probe=_probe)
