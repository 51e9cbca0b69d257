"""An agent's day: a scripted client moves PushT's block, in rounds of look, imagine, compare and act.

It speaks to ``kinema mcp`` as a language model's program would, and knows no more than the tools tell: it
proposes pushes, has their futures imagined all at once, asks which of them ends nearest to the goal, and
carries that one out in the real simulator.

    python examples/agent_over_mcp.py --out docs/agent      # needs kinema[mcp,pusht]
"""

import asyncio
import base64
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from mcp import Client, StdioServerParameters

REACH = 105.0
"""From the block's centre to where a push begins: outside the block, whichever way it lies."""
DETOUR = 135.0
"""The agent goes around the block at this distance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    goal: tuple[float, float] = (256.0, 256.0)
    """Where the block's centre of mass is to be, in the units of the actions."""
    tolerance: float = 20.0
    """How near is there."""
    row: int = 3
    """Row of the recorded episode to start at."""
    num_candidates: int = 12
    """Pushes that are imagined in a round."""
    max_rounds: int = 12
    """Rounds before it gives up."""
    seed: int = 0
    """Of the proposals."""
    out: Path | None = None
    """Folder for the transcript and its pictures."""


class Transcript:
    """What was asked and answered, as Markdown, with some of the pictures."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.lines: list[str] = []
        self.pictures: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        self.lines += [f"\n## {text}\n"]

    def call(self, name: str, arguments: dict[str, Any], result: Any, picture: str | None) -> None:
        text = "\n".join(part.text for part in result.content if part.type == "text")
        data = json.dumps(_short(result.structured_content))
        self.lines.append(f"**{name}** `{json.dumps(_short(arguments))}`\n\n> {text}\n>\n> `{data}`\n")
        images = [part for part in result.content if part.type == "image"]
        if picture is not None and images:
            self.pictures[picture] = base64.b64decode(images[-1].data)
            self.lines.append(f"![{picture}]({picture}.png)\n")

    def write(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, data in self.pictures.items():
                (self.folder / f"{name}.png").write_bytes(data)
            (self.folder / "transcript.md").write_text("\n".join(self.lines), encoding="utf-8")


async def solve(client: Client, config: AgentConfig, transcript: Transcript) -> tuple[bool, int]:
    """Whether the block came to the goal, and in how many rounds."""
    rng = np.random.default_rng(config.seed)
    goal = np.array(config.goal)

    async def call(name: str, picture: str | None = None, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(name, arguments)
        transcript.call(name, arguments, result, picture)
        if result.is_error:
            raise RuntimeError(f"{name}: {result.content}")
        return result.structured_content or {}

    transcript.lines.append(
        f"# An agent's day\n\nA scripted client moves the block to {config.goal} in the real simulator, "
        f"{config.tolerance:g} units or nearer. Written by "
        "`python examples/agent_over_mcp.py --out docs/agent`.\n"
    )
    await call("list_worlds")
    started = await call("start", "start", episode=0, row=config.row, environment=True)
    session = started["session"]
    for number in range(1, config.max_rounds + 1):
        transcript.heading(f"Round {number}")
        seen = (await call("look", session=session))["environment"]["state"]
        agent, block = np.array(seen["agent"]), np.array(seen["block"])
        pushes = [push(agent, block, goal, rng) for _ in range(config.num_candidates)]
        picture = "imagined" if number == 1 else None
        await call("imagine", picture, session=session, sequences=pushes, hold=4)
        ranking = (await call("compare", session=session, goal={"state": {"block": goal.tolist()}}))[
            "ranking"
        ]
        best = next(entry["future"] for entry in ranking if entry["future"] >= 0)
        acted = await call("act", f"round-{number}", session=session, actions=pushes[best], hold=4)
        block = acted["environment"]["state"]["block"]
        distance = np.inf if block is None else float(np.linalg.norm(np.array(block) - goal))
        transcript.lines.append(f"The block is {distance:.0f} units from the goal.\n")
        if distance < config.tolerance:
            transcript.lines.append(f"**Done in {number} rounds.**\n")
            await call("close", session=session)
            return True, number
    return False, config.max_rounds


def push(
    agent: np.ndarray, block: np.ndarray, goal: np.ndarray, rng: np.random.Generator
) -> list[list[float]]:
    """Waypoints of a push about towards the goal: around the block, behind it, through it."""
    towards = np.arctan2(*(goal - block)[::-1]) + rng.normal(0.0, 0.35)
    direction = np.array([np.cos(towards), np.sin(towards)])
    # Not always through the middle: a push beside it turns the block.
    beside = rng.normal(0.0, 14.0) * np.array([-direction[1], direction[0]])
    behind = block - REACH * direction + beside
    way = [around(agent, block, behind)] if np.linalg.norm(agent - behind) > 60.0 else []
    length = min(float(np.linalg.norm(goal - block)), 90.0) * rng.uniform(0.5, 1.2)
    through = block + (length - 40.0) * direction + beside
    return np.clip([*way, behind, through, through], 15.0, 497.0).round(1).tolist()


def around(agent: np.ndarray, block: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """A point on the way to behind the block that keeps clear of it."""
    start, end = (np.arctan2(*(point - block)[::-1]) for point in (agent, behind))
    middle = start + ((end - start + np.pi) % (2 * np.pi) - np.pi) / 2
    return block + DETOUR * np.array([np.cos(middle), np.sin(middle)])


def _short(value: Any) -> Any:
    """Numbers with few digits, long lists cut."""
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: "..." if key == "session" else _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value[:4]] + (["..."] if len(value) > 4 else [])
    return value


async def run(config: AgentConfig) -> tuple[bool, int]:
    """Start ``kinema mcp`` and solve the goal."""
    command = StdioServerParameters(command=sys.executable, args=["-m", "kinema", "mcp", "pusht"])
    transcript = Transcript(config.out)
    async with Client(command) as client:
        solved, rounds = await solve(client, config, transcript)
    transcript.write()
    return solved, rounds


if __name__ == "__main__":
    has_solved, num_rounds = asyncio.run(run(tyro.cli(AgentConfig)))
    print(f"{'solved' if has_solved else 'not solved'} in {num_rounds} rounds")
    sys.exit(not has_solved)
