"""The DeepMind Control Suite, drawn by MuJoCo (``dm_control/...``)."""

from kinema.kits.kit import Kit

KIT = Kit(name="dmc")
