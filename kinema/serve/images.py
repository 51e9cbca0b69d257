"""Frames on the wire: JPEG, PNG or raw bytes out; JPEG or PNG in, checked before they are decoded."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from kinema.model.world import WorldModel
from kinema.serve.limits import Refusal

Format = Literal["jpeg", "png", "raw"]
MEDIA_TYPES: dict[Format, str] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "raw": "application/octet-stream",
}
JPEG_QUALITY = 92


def by_camera(
    frame: np.ndarray | Mapping[str, np.ndarray] | None, world: WorldModel
) -> dict[str, np.ndarray]:
    """Return the frames of a step by camera, also where there is one camera."""
    if frame is None:
        return {}
    return {world.cameras[0]: frame} if isinstance(frame, np.ndarray) else dict(frame)


def encode(frame: np.ndarray, kind: Format) -> bytes:
    """Encode one frame ``H W 3`` uint8; raw is its bytes, row by row."""
    if kind == "raw":
        return np.ascontiguousarray(frame).tobytes()
    buffer = io.BytesIO()
    if kind == "jpeg":
        # Full chroma: at 64 pixels half of it would smear every colour.
        Image.fromarray(frame).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(text: str, sizes: Sequence[tuple[int, int]], where: str) -> np.ndarray:
    """Decode a frame ``H W 3`` from base64 of a JPEG or PNG file whose height and width are among ``sizes``.

    Raises Refusal (422): the size stands in the file's head and is checked before anything is unpacked.
    """

    def refuse(problem: str) -> Refusal:
        return Refusal(422, f"{where}: {problem}; send a JPEG or PNG file in base64", reason="picture")

    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refuse("not base64") from None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            size = (image.height, image.width)
            if size not in sizes:
                allowed = " or ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
                raise refuse(
                    f"the picture is {size[0]}x{size[1]} (height x width) and this world takes {allowed}"
                )
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        raise refuse("the file is broken or of another kind") from None


def decode_frames(
    frames: Mapping[str, Sequence[str]], world: WorldModel, *, max_frames: int
) -> dict[str, np.ndarray]:
    """Decode frames ``T H W 3`` by camera. Raises Refusal (422)."""
    found = {}
    for camera, learned in zip(world.config.cameras, world.config.learned_sizes, strict=True):
        texts = frames.get(camera.key)
        if not texts:
            raise Refusal(
                422,
                f"frames: no pictures of camera '{camera.key}'; got {', '.join(frames)[:200] or 'none'}",
                reason="picture",
            )
        if len(texts) > max_frames:
            raise Refusal(
                422,
                f"frames of '{camera.key}': {len(texts)} pictures, at most {max_frames} at once",
                reason="picture",
            )
        sizes = [learned, camera.native_size]
        pictures = [decode(text, sizes, f"frames['{camera.key}'][{i}]") for i, text in enumerate(texts)]
        if len({picture.shape for picture in pictures}) > 1:
            raise Refusal(422, f"frames of '{camera.key}' differ in size", reason="picture")
        found[camera.key] = np.stack(pictures)
    return found
