"""Episodes on disk: LeRobotDataset v3.0 read (v2.1 too), written and checked."""

from kinema.data.fold import recover
from kinema.data.layout import DataError
from kinema.data.lerobot import Dataset
from kinema.data.writer import DatasetWriter

__all__ = ["DataError", "Dataset", "DatasetWriter", "recover"]
