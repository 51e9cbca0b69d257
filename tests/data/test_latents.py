from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.data import latents as latents_module
from kinema.data.latents import Rows, write_rows
from kinema.types import FileError

from ..worlds import full_disk

ALL = torch.randn(1000, 3, 2, generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 256 rows."""
    monkeypatch.setattr(latents_module, "SHARD_BYTES", 256 * 12)


def write(folder: Path, computed: list[slice] | None = None) -> Rows:
    def compute(rows: slice) -> Tensor:
        if computed is not None:
            computed.append(rows)
        return ALL[rows].float()

    return write_rows(folder, tuple(ALL.shape), compute, "computing")


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    rows = write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert (len(rows), rows.shape) == (1000, (1000, 3, 2))
    for chosen in (np.array([3]), np.array([[999, 0], [255, 256]]), np.zeros((0, 4), dtype=np.int64)):
        assert torch.equal(rows[chosen], ALL[torch.from_numpy(chosen)])
        assert np.array_equal(rows.read(chosen), ALL.numpy()[chosen])
    assert torch.equal(rows[torch.arange(250, 260)], ALL[250:260])
    assert torch.equal(rows[::7], ALL[::7])


def test_memory_is_that_of_what_is_asked_for(tmp_path: Path) -> None:
    """Shards are mapped files, not copies."""
    rows = write(tmp_path)
    mapped = Path("/proc/self/maps")
    if not mapped.is_file():
        pytest.skip("only Linux lists what is mapped")
    assert all(str(path) in mapped.read_text() for path in tmp_path.iterdir())
    assert len(rows)


def test_rows_follow_each_other() -> None:
    joined = Rows([ALL[:10]]).followed_by(Rows([ALL[10:30], ALL[30:]]))
    assert torch.equal(joined[:], ALL)


def test_only_what_is_missing_or_damaged_is_computed_again(tmp_path: Path) -> None:
    computed: list[slice] = []
    write(tmp_path)
    write(tmp_path, computed)
    assert not computed
    path = tmp_path / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "00003.safetensors").unlink()
    assert torch.equal(write(tmp_path, computed)[:], ALL)
    assert computed == [slice(256, 512), slice(768, 1000)]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with (
        full_disk(1000),
        pytest.raises(FileError, match=r"00000\.safetensors.* could not be written .*make room"),
    ):
        write(tmp_path)
    assert not list(tmp_path.iterdir())
