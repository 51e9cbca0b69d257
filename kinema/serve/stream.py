"""The WebSocket of one session: a JSON message in, a binary message out, in turn.

A message is ``{"op": "step", "action": [...], "format": "jpeg"}``; the other ``op`` are ``rewind``
(``num_steps``), ``change`` (``seed``, ``num_denoising_steps``) and ``look``. An answer is the length of a
JSON head (4 bytes, little endian), the head, and the frames that the head lists in ``pictures`` one after
the other, each with ``camera``, ``is_beside``, ``height``, ``width`` and ``size`` in bytes. A mistake is
answered by a head with ``error`` and ``status``, and the stream goes on. Since messages are answered one at a
time, a client that sends faster than the world steps only fills its own buffer.
"""

import json
import struct
from typing import Annotated, Any, Literal

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import Field, TypeAdapter, ValidationError

from kinema.model.world import WorldError
from kinema.serve import images, schema
from kinema.serve.limits import Refusal
from kinema.serve.service import Service
from kinema.serve.sessions import Session

GOODBYE = 1000
"""Code by which a client ends a stream on purpose; a page that is left sends another, a dead client none."""


class StepMessage(schema.StepRequest):
    op: Literal["step"]


class RewindMessage(schema.RewindRequest):
    op: Literal["rewind"]


class ChangeMessage(schema.ChangeRequest):
    op: Literal["change"]
    format: schema.Kind = "jpeg"


class LookMessage(schema.Request):
    op: Literal["look"]
    format: schema.Kind = "jpeg"


Message = Annotated[StepMessage | RewindMessage | ChangeMessage | LookMessage, Field(discriminator="op")]
MESSAGE: TypeAdapter[StepMessage | RewindMessage | ChangeMessage | LookMessage] = TypeAdapter(Message)


async def serve_stream(socket: WebSocket, service: Service, session_id: str) -> None:
    """Answer messages until the client goes or the session is closed."""
    try:
        # Waits for the session, so that clients that come and go do not fill its queue with their steps.
        async with service.sessions.use(session_id):
            pass
    except Refusal as refusal:
        await socket.close(1008, refusal.message[:100])
        return
    await socket.accept()
    try:
        while True:
            text = await socket.receive_text()
            try:
                answer = await _answer(service, session_id, text)
            except (Refusal, WorldError, ValidationError) as error:
                status = error.status if isinstance(error, Refusal) else 422
                answer = _pack({"error": explain(error), "status": status}, [])
            await socket.send_bytes(answer)
    except WebSocketDisconnect as gone:
        if gone.code != GOODBYE:
            service.sessions.abandon(session_id)
    except (KeyError, RuntimeError):
        # A binary message where there should be text; nothing is lost but this stream.
        return


def explain(error: Exception) -> str:
    """Explain an error to a client; for a message that does not fit its model, where and why."""
    if isinstance(error, ValidationError):
        parts = (f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in error.errors()[:3])
        return "; ".join(parts)
    return str(error)


async def _answer(service: Service, session_id: str, text: str) -> bytes:
    message = MESSAGE.validate_json(text)
    async with service.sessions.use(session_id) as session:
        if isinstance(message, StepMessage):
            await service.step([session], [message.action], decode=message.format != "none")
        elif isinstance(message, RewindMessage):
            await service.rewind(session, message.num_steps)
        elif isinstance(message, ChangeMessage):
            await service.change(session, message)
        elif message.format != "none":
            await service.look(session)
        return _pack(*_shown(service, session, message.format))


def _shown(service: Service, session: Session, kind: schema.Shown) -> tuple[dict[str, Any], list[bytes]]:
    head = service.state(session, "none").model_dump(exclude={"frames", "beside"})
    described, pieces = [], []
    if kind != "none":
        real = None if session.beside is None else dict(session.beside.look())
        for is_beside, frames in ((False, session.step.frame), (True, real)):
            for camera, frame in images.by_camera(frames, service.world).items():
                piece = images.encode(frame, kind)
                pieces.append(piece)
                height, width = frame.shape[:2]
                described.append(
                    {
                        "camera": camera,
                        "is_beside": is_beside,
                        "height": height,
                        "width": width,
                        "size": len(piece),
                    }
                )
    return {**head, "format": kind, "pictures": described}, pieces


def _pack(head: dict[str, Any], pieces: list[bytes]) -> bytes:
    encoded = json.dumps(head).encode()
    return b"".join([struct.pack("<I", len(encoded)), encoded, *pieces])
