"""A world that another process serves, used as one in this process: ``kinema.connect(url)``."""

import base64
import io
import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import torch
from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_stream

from kinema.data.view import write_video
from kinema.model.world import Pictures, WorldError
from kinema.simulation.session import Step, draw_seed
from kinema.types import ServerError

TOKEN_VARIABLE = "KINEMA_TOKEN"


def connect(url: str, *, token: str | None = None, timeout: float = 60.0) -> "RemoteWorld":
    """A world that ``kinema serve`` has at ``url``.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        token: what the server asks for; by default KINEMA_TOKEN of the environment.
        timeout: seconds to wait for an answer.

    Raises:
        ServerError: there is no such server, or it does not let us in.
    """
    return RemoteWorld(url, token or os.environ.get(TOKEN_VARIABLE), timeout)


class RemoteWorld:
    """What of ``World`` a server offers. Close it, or use it in a ``with``, to close its sessions."""

    def __init__(self, url: str, token: str | None, timeout: float):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.url, self._headers, self._timeout = url.rstrip("/"), headers, timeout
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
            raise ServerError(f"{url!r} is no address ({error}); give http://HOST:PORT") from error
        self._lock = threading.Lock()
        self._open: set[str] = set()
        try:
            self._info = self.ask("GET", "/v1/world")
        except Exception:
            self._http.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions that were opened here, and the connection."""
        for session_id in list(self._open):
            try:
                self.close_session(session_id)
            except ServerError:
                break
        self._http.close()

    @property
    def name(self) -> str:
        return self._info["name"]

    @property
    def fps(self) -> float:
        return self._info["fps"]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Feature keys of the cameras."""
        return tuple(camera["key"] for camera in self._info["cameras"])

    @property
    def action_dim(self) -> int:
        return len(self._info["actions"])

    @property
    def proprio_dim(self) -> int:
        return self._info["proprio_dim"]

    @property
    def num_episodes(self) -> int:
        """Recorded episodes of the server that ``start_episode`` can begin in."""
        return self._info["num_episodes"]

    def start(
        self,
        frames: Pictures,
        actions: np.ndarray | None = None,
        *,
        proprio: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        num_denoising_steps: int | None = None,
    ) -> "RemoteSimulation":
        """Begin a session as ``World.start`` does; the same generator gives the same rollout as there.

        Raises:
            WorldError: what is given does not fit the world.
            ServerError: the server is gone or full.
        """
        body: dict[str, Any] = {
            "actions": None if actions is None else np.asarray(actions, float).tolist(),
            "proprio": None if proprio is None else np.asarray(proprio, float).tolist(),
            "seed": 0 if generator is None else draw_seed(generator),
            "num_denoising_steps": num_denoising_steps,
            "format": "none",
        }
        if frames is not None:
            films = frames if isinstance(frames, Mapping) else {self._only_camera(): frames}
            body["frames"] = {key: [_png(picture) for picture in np.asarray(f)] for key, f in films.items()}
        return self._opened(self.ask("POST", "/v1/sessions", body))

    def start_episode(
        self,
        index: int = 0,
        *,
        row: int | None = None,
        context: int = 4,
        generator: torch.Generator | None = None,
        num_denoising_steps: int | None = None,
    ) -> "RemoteSimulation":
        """Begin a session in a recorded episode of the server.

        Args:
            index: position of the episode.
            row: the last row that is shown; by default the 4th.
            context: rows that are shown, that one included.
            generator: asked once for the session's seed; seed 0 by default.
            num_denoising_steps: network calls for a frame; the world's own by default.

        Raises:
            WorldError: there is no such row.
            ServerError: there is no such episode, or the server is gone or full.
        """
        body = {
            "episode": index,
            "row": row,
            "context": context,
            "seed": 0 if generator is None else draw_seed(generator),
            "num_denoising_steps": num_denoising_steps,
            "format": "none",
        }
        return self._opened(self.ask("POST", "/v1/sessions", body))

    def infer(self, frames: Pictures, *, proprio: np.ndarray | None = None) -> np.ndarray:
        """The actions ``(T - 1, A)`` that led from each frame to the next, as ``World.infer`` gives them."""
        films = frames if isinstance(frames, Mapping) else {self._only_camera(): frames}
        body = {
            "frames": {key: [_png(picture) for picture in np.asarray(f)] for key, f in films.items()},
            "proprio": None if proprio is None else np.asarray(proprio, float).tolist(),
        }
        return np.array(self.ask("POST", "/v1/infer", body)["actions"], np.float32)

    # What sessions use.

    def ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """One request; what the answer holds, None where it is empty."""
        response = self.request(method, path, body, **params)
        return response.json() if response.content else None

    def request(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response:
        """One request. Raises ServerError, and WorldError for what does not fit the world."""
        try:
            with self._lock:
                response = self._http.request(method, path, json=body, params=params)
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.url}: the server cannot be reached ({error or type(error).__name__}); see whether "
                "`kinema serve` runs there"
            ) from error
        if response.is_error:
            raise _refusal(response.status_code, _detail(response), self.url)
        return response

    @contextmanager
    def stream(self, session_id: str) -> Iterator[ClientConnection]:
        """The WebSocket of a session."""
        url = f"ws{self.url.removeprefix('http')}/v1/sessions/{session_id}/stream"
        try:
            connection = connect_stream(
                url,
                additional_headers=self._headers,
                open_timeout=self._timeout,
                max_size=None,
                proxy=None,
                compression=None,
            ).__enter__()
        except (OSError, WebSocketException) as error:
            raise ServerError(f"{self.url}: no stream of the session ({error})") from error
        try:
            yield connection
        finally:
            connection.close()

    def copies(self, session_id: str, num: int, *, same_noise: bool = False) -> "list[str]":
        """Sessions that go on from another."""
        body = {"num": num, "same_noise": same_noise}
        opened = self.ask("POST", f"/v1/sessions/{session_id}/fork", body)["sessions"]
        self._open.update(opened)
        return opened

    def close_session(self, session_id: str) -> None:
        """Close a session; one that the server has closed already is no mistake."""
        self._open.discard(session_id)
        try:
            self.ask("DELETE", f"/v1/sessions/{session_id}")
        except ServerError as error:
            if error.status != 404:
                raise

    def pictures(self, session_id: str, first: int = 0) -> np.ndarray | dict[str, np.ndarray] | None:
        """The past pictures of a session from one on, ``T H W C``."""
        if not self.cameras:
            return None
        films: dict[str, list[np.ndarray]] = {key: [] for key in self.cameras}
        total = first + 1
        while first < total:
            part = self.ask("GET", f"/v1/sessions/{session_id}/pictures", first=first)
            total = part["num"]
            for key, film in films.items():
                data = np.frombuffer(base64.b64decode(part["data"][key]), np.uint8)
                film.append(data.reshape(part["shape"][key]))
            first += len(films[self.cameras[0]][-1])
        joined = {key: np.concatenate(film) for key, film in films.items()}
        return joined[self.cameras[0]] if len(joined) == 1 else joined

    def step_of(self, state: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> Step:
        """A server's answer as a step."""
        frame: Any = dict(pictures) or None
        if len(self.cameras) == 1 and frame is not None:
            frame = frame[self.cameras[0]]
        proprio = state["proprio"]
        return Step(
            frame=frame,
            proprio=None if proprio is None else np.array(proprio, np.float32),
            trust=state["trust"],
        )

    def check_actions(self, actions: Any, shape: tuple[int, ...]) -> list[Any]:
        """Actions as the server takes them. Raises WorldError."""
        array = np.asarray(actions, dtype=np.float32)
        if array.shape != shape:
            raise WorldError(f"action: expected shape {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise WorldError("action: it holds a number that is not finite")
        return array.tolist()

    def _opened(self, state: Mapping[str, Any]) -> "RemoteSimulation":
        self._open.add(state["session"])
        return RemoteSimulation(self, state["session"], state["num_steps"])

    def _only_camera(self) -> str:
        if len(self.cameras) != 1:
            raise WorldError(
                f"world '{self.name}' has {len(self.cameras)} cameras: give frames as a dict with the keys "
                f"{', '.join(self.cameras) or '(none)'}"
            )
        return self.cameras[0]


class RemoteSimulation:
    """One session at a server, with the methods of ``Simulation``. It steps over a stream of its own."""

    def __init__(self, world: RemoteWorld, session_id: str, num_steps: int):
        self.world = world
        self.id = session_id
        self.num_steps = num_steps
        """Steps simulated so far."""
        self._stream: ClientConnection | None = None
        self._connection = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the session: the server has room for another."""
        self._hang_up()
        self.world.close_session(self.id)

    def step(self, action: Any, *, decode: bool = True) -> Step:
        """Advance by one action ``(A,)`` in the units of the dataset; without ``decode`` no picture comes.

        Raises:
            WorldError: the action has another shape or is not finite; the session is unchanged.
            ServerError: the server is gone, or the session.
        """
        row = self.world.check_actions(action, (self.world.action_dim,))
        return self._say({"op": "step", "action": row, "format": "raw" if decode else "none"})

    def look(self, *, decode: bool = True) -> Step:
        """The present frame."""
        return self._say({"op": "look", "format": "raw" if decode else "none"})

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps: what follows is as if they had not been made."""
        if num_steps < 0:
            raise WorldError(f"rewind({num_steps}): it must be 0 or more")
        self._say({"op": "rewind", "num_steps": num_steps, "format": "none"})

    def change(self, *, seed: int | None = None, num_denoising_steps: int | None = None) -> None:
        """Go on with other noise, or with another number of network calls for a frame."""
        told = {"seed": seed, "num_denoising_steps": num_denoising_steps, "format": "none"}
        self._say({"op": "change", **told})

    def fork(self, num: int) -> "RemoteSimulationBatch":
        """``num`` futures from here, batched, each with its own noise."""
        if num < 1:
            raise WorldError(f"fork({num}): at least 1 future is needed")
        return RemoteSimulationBatch(self.world, self.world.copies(self.id, num), self.num_steps)

    def copy(self) -> "RemoteSimulation":
        """Another session that goes on from here with the same noise."""
        (copied,) = self.world.copies(self.id, 1, same_noise=True)
        return RemoteSimulation(self.world, copied, self.num_steps)

    def plan(
        self,
        *,
        frames: Any = None,
        episode: int | None = None,
        row: int | None = None,
        state: Mapping[str, Any] | None = None,
        **search: Any,
    ) -> np.ndarray:
        """Actions ``H A``, in the units of the dataset, that lead from here to a goal, as far as the server
        found any in time; this session stays where it is.

        Args:
            frames: the goal as a picture ``H W 3``, or several by camera.
            episode: the goal as a recorded episode of the server, at ``row``.
            row: of that episode.
            state: the goal as quantities that the server reads in pictures: ``{"block": [256, 256]}``.
            search: ``planner``, ``horizon``, ``candidates``, ``max_seconds`` and what else the server's
                documentation names.

        Raises:
            WorldError: the goal or the search does not fit the world.
            ServerError: the server is gone or busy, or found nothing in time.
        """
        goal: dict[str, Any] = {"episode": episode, "row": row, "state": state}
        if frames is not None:
            given = frames if isinstance(frames, Mapping) else {self.world._only_camera(): frames}
            goal["frames"] = {key: _png(np.asarray(picture)) for key, picture in given.items()}
        body = {"goal": {key: value for key, value in goal.items() if value is not None} or None, **search}
        planned = self.world.ask("POST", f"/v1/sessions/{self.id}/plan", body)
        return np.array(planned["actions"], np.float32)

    def pictures(self) -> np.ndarray | dict[str, np.ndarray] | None:
        """The pictures so far, ``T H W C``, the last given frame first; very old ones are forgotten."""
        return self.world.pictures(self.id)

    def save(self, path: str | Path) -> None:
        """Write the pictures so far as a video, by the suffix ``.mp4`` or ``.gif``."""
        _save(self.world, self.id, path)

    def _say(self, message: dict[str, Any]) -> Step:
        if self._stream is None:
            self._stream = self._connection.enter_context(self.world.stream(self.id))
        try:
            self._stream.send(json.dumps(message))
            answer = self._stream.recv(self.world._timeout)
        except (OSError, WebSocketException, TimeoutError) as error:
            self._hang_up()
            raise ServerError(
                f"{self.world.url}: the server has gone in mid-step ({error or type(error).__name__}); "
                "connect again, and begin another session where this one is lost"
            ) from error
        assert isinstance(answer, bytes)
        (size,) = struct.unpack_from("<I", answer)
        head = json.loads(answer[4 : 4 + size])
        if "error" in head:
            raise _refusal(head["status"], head["error"], self.world.url)
        self.num_steps = head["num_steps"]
        pictures, place = {}, 4 + size
        for shown in head["pictures"]:
            data = np.frombuffer(answer, np.uint8, shown["size"], place)
            place += shown["size"]
            if not shown["is_beside"]:
                pictures[shown["camera"]] = data.reshape(shown["height"], shown["width"], 3).copy()
        return self.world.step_of(head, pictures)

    def _hang_up(self) -> None:
        self._stream = None
        self._connection.close()


class RemoteSimulationBatch:
    """Sessions at a server that step together, with the methods of ``SimulationBatch``."""

    def __init__(self, world: RemoteWorld, session_ids: Sequence[str], num_steps: int):
        self.world = world
        self.ids = list(session_ids)
        self.num_steps = num_steps
        """Steps simulated so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self.ids)

    def __getitem__(self, index: int) -> RemoteSimulation:
        """A session of its own that continues session ``index``; the batch is not changed by it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"session {index} of a batch of {len(self)}")
        (copied,) = self.world.copies(self.ids[index], 1, same_noise=True)
        return RemoteSimulation(self.world, copied, self.num_steps)

    def close(self) -> None:
        """Close the sessions: the server has room for others."""
        for session_id in self.ids:
            self.world.close_session(session_id)

    def step(self, actions: Any, *, decode: bool = True) -> Step:
        """Advance every session by its action, ``B A`` in the units of the dataset.

        Raises:
            WorldError: the actions have another shape or are not finite; the sessions are unchanged.
            ServerError: the server is gone, or a session.
        """
        rows = self.world.check_actions(actions, (len(self), self.world.action_dim))
        body = {"sessions": self.ids, "actions": rows, "format": "raw" if decode else "none"}
        states = self.world.ask("POST", "/v1/steps", body)["states"]
        self.num_steps += 1
        steps = [self.world.step_of(state, _pictures(state)) for state in states]
        frame: Any = None
        if decode and len(self.world.cameras) == 1:
            frame = np.stack([step.frame for step in steps])
        elif decode and self.world.cameras:
            frame = {key: np.stack([step.frame[key] for step in steps]) for key in self.world.cameras}
        proprios = [step.proprio for step in steps if step.proprio is not None]
        return Step(
            frame=frame,
            proprio=np.stack(proprios) if proprios else None,
            trust=None if steps[0].trust is None else np.array([step.trust for step in steps], np.float32),
        )

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps of every session."""
        if num_steps < 0:
            raise WorldError(f"rewind({num_steps}): it must be 0 or more")
        for session_id in self.ids:
            body = {"num_steps": num_steps, "format": "none"}
            self.world.ask("POST", f"/v1/sessions/{session_id}/rewind", body)
        self.num_steps -= num_steps

    def fork(self, num: int) -> "RemoteSimulationBatch":
        """``num`` futures of every session, each with its own noise from here on."""
        if num < 1:
            raise WorldError(f"fork({num}): at least 1 future is needed")
        children = [child for session_id in self.ids for child in self.world.copies(session_id, num)]
        return RemoteSimulationBatch(self.world, children, self.num_steps)

    def pictures(self, index: int) -> np.ndarray | dict[str, np.ndarray] | None:
        """The kept pictures of one session, ``T H W C``."""
        return self.world.pictures(self.ids[index])

    def save(self, path: str | Path, index: int = 0) -> None:
        """Write the kept pictures of one session as a video, by the suffix ``.mp4`` or ``.gif``."""
        _save(self.world, self.ids[index], path)


def _save(world: RemoteWorld, session_id: str, path: str | Path) -> None:
    pictures = world.pictures(session_id)
    if pictures is None:
        raise WorldError(f"world '{world.name}' has no camera, so there is nothing to save")
    if isinstance(pictures, dict):
        pictures = np.concatenate(list(pictures.values()), axis=2)
    write_video(path, pictures, fps=world.fps, scale=max(1, 256 // pictures.shape[1]))


def _pictures(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        key: np.frombuffer(base64.b64decode(shown["data"]), np.uint8).reshape(
            shown["height"], shown["width"], 3
        )
        for key, shown in state["frames"].items()
    }


def _png(picture: np.ndarray) -> str:
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise WorldError(
            f"frames must be uint8 (T, height, width, 3); got {picture.dtype} {('T', *picture.shape)}"
        )
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def _refusal(status: int, detail: str, url: str) -> Exception:
    """What does not fit the world is the same mistake as in this process; the rest is the server's."""
    return WorldError(detail) if status == 422 else ServerError(f"{url}: {detail}", status)
