"""Write files and folders whole: beside their place, flushed to the disk, then renamed.

A reader sees the old content or the new one, never a part; a failed write leaves the old one.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kinema.types import FileError

if TYPE_CHECKING:
    from torch import Tensor

ADVICE = {
    errno.ENOSPC: "make room on the disk and try again",
    errno.EFBIG: "make room on the disk and try again",
    errno.EDQUOT: "make room in your quota and try again",
    errno.EACCES: "choose a folder in which you may write, or change its permissions",
    errno.EPERM: "choose a folder in which you may write, or change its permissions",
    errno.EROFS: "choose a folder that is not read-only",
    errno.ENOTDIR: "choose another place: a file stands where a folder is needed",
    errno.EEXIST: "choose another place: a file stands where a folder is needed",
}
"""Action that helps after a failed write, by the number of the error."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` for a new file or folder, which takes the place of ``path`` when whole.

    The content is on the disk before it is renamed. A folder that was there is renamed to ``NAME.previous``
    first and deleted last, so that an interruption between the two leaves one of them.

    Raises:
        FileError: the content cannot be written; ``path`` is as it was.
    """
    target = Path(path)
    part = target.absolute().with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        yield part
        _flush(part)
        _put(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(part)
        if _is_of(error, part, target):
            raise _explained(target, error) from error
        raise


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file beside ``path``, which takes its place when whole, as ``replacing`` does."""
    with replacing(path) as part, open(part, "w+b") as file:
        yield file


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8."""
    with opened(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 1) -> None:
    """Write JSON; numbers that are not finite become null."""
    write_text(path, to_json(content, indent=indent))


def to_json(content: Any, *, indent: int | None = 1) -> str:
    """Return content as JSON text with a line break at the end; numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False) + "\n"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, "Tensor"], *, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, with the permissions that other new files have.

    Raises:
        FileError: the file cannot be written; ``path`` is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as part:
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        try:
            save_file(dict(tensors), part, metadata=metadata)
        except SafetensorError as error:
            raise _explained(Path(path), error) from error
        part.chmod(mode)  # safetensors gives its files to their owner alone.


def _is_of(error: BaseException, part: Path, target: Path) -> bool:
    """Return whether an error came from writing, and not from a file that was read meanwhile."""
    if not isinstance(error, OSError) or isinstance(error, FileError):
        return False
    if error.filename is None:
        return error.errno is not None
    place = Path(os.fsdecode(error.filename)).absolute()
    return place in (part, target.absolute()) or part in place.parents or place in part.parents


def _explained(target: Path, error: BaseException) -> FileError:
    number = getattr(error, "errno", None)
    if number is None and "No space left" in str(error):
        number = errno.ENOSPC
    reason = os.strerror(number) if number is not None else str(error)
    advice = ADVICE.get(number or 0, "make room on the disk and try again")
    explained = FileError(f"{target}: could not be written ({reason}); {advice}")
    explained.errno = number
    return explained


def _flush(path: Path) -> None:
    """Wait until a file, or each file of a folder, is on the disk."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if each.is_file():
            with open(each, "rb") as file:
                os.fsync(file.fileno())


def _put(part: Path, target: Path) -> None:
    previous = target.with_name(f"{target.name}.previous")
    if part.is_dir():
        if target.exists():
            _remove(previous)
            target.rename(previous)
        part.rename(target)
        _remove(previous)
    else:
        part.replace(target)
    with contextlib.suppress(OSError):  # Some file systems cannot flush a folder.
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
