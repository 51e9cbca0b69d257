"""Let a scripted client move PushT's block over MCP, in rounds of look, imagine, compare and act.

It speaks to ``kinema mcp`` as a language model's program would, reads the text of the answers alone, and
knows no more than the tools say: it proposes pushes, lets the simulator imagine all of them, asks which of
these futures ends nearest to the goal, and carries that push out in the real environment.

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
    """Goal of the block's centre of mass, in the units of the actions."""
    tolerance: float = 20.0
    """Distance to the goal at which it is reached."""
    row: int = 3
    """Row of the recorded episode to start at."""
    num_candidates: int = 12
    """Number of pushes that are imagined in a round."""
    max_rounds: int = 12
    """Number of rounds before it gives up."""
    seed: int = 0
    """Seed of the proposed pushes."""
    out: Path | None = None
    """Folder for the transcript and its images."""


class Transcript:
    """The calls and answers as Markdown, with some of the images."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.lines: list[str] = []
        self.images: dict[str, bytes] = {}

    def call(self, name: str, arguments: dict[str, Any], answer: dict[str, Any]) -> None:
        data = dict(answer)
        message = data.pop("message")
        asked, answered = (json.dumps(_short(value)) for value in (arguments, data))
        self.lines.append(f"**{name}** `{asked}`\n\n> {message}\n>\n> `{answered}`\n")

    def image(self, name: str, result: Any) -> None:
        """Keep the last image of an answer, for the reader of the transcript."""
        last = [part for part in result.content if part.type == "image"][-1]
        self.images[name] = base64.b64decode(last.data)
        self.lines.append(f"![{name}]({name}.png)\n")

    def write(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, data in self.images.items():
                (self.folder / f"{name}.png").write_bytes(data)
            (self.folder / "transcript.md").write_text("\n".join(self.lines), encoding="utf-8")


async def solve(client: Client, config: AgentConfig, transcript: Transcript) -> tuple[bool, int]:
    """Move the block to the goal; returns success and the number of rounds."""
    rng = np.random.default_rng(config.seed)
    goal = np.array(config.goal)

    async def call(name: str, image: str | None = None, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(name, arguments)
        text = "".join(part.text for part in result.content if part.type == "text")
        if result.is_error:
            raise RuntimeError(f"{name}: {text}")
        answer = json.loads(text)
        transcript.call(name, arguments, answer)
        if image is not None:
            transcript.image(image, result)
        return answer

    transcript.lines.append(
        f"# An agent's day\n\nA scripted client moves the block to {config.goal} in the real environment, "
        f"{config.tolerance:g} units or nearer, from the text of the answers alone. Written by "
        "`python examples/agent_over_mcp.py --out docs/agent`.\n"
    )
    (world,) = (await call("list_worlds"))["worlds"]
    low, high = (np.array([action[bound] for action in world["actions"]]) for bound in ("low", "high"))
    session = (await call("start", "start", episode=0, row=config.row, environment=True))["session"]
    for number in range(1, config.max_rounds + 1):
        transcript.lines.append(f"\n## Round {number}\n")
        seen = (await call("look", session=session))["environment"]["state"]
        agent, block = np.array(seen["agent"]), np.array(seen["block"])
        pushes = [
            np.clip(push(agent, block, goal, rng), low, high).round(1).tolist()
            for _ in range(config.num_candidates)
        ]
        await call("imagine", "imagined" if number == 1 else None, session=session, sequences=pushes, hold=4)
        compared = await call("compare", session=session, goal={"state": {"block": goal.tolist()}})
        best = next(entry["future"] for entry in compared["ranking"] if entry["future"] >= 0)
        acted = await call("act", f"round-{number}", session=session, actions=pushes[best], hold=4)
        block = acted["environment"]["state"]["block"]
        distance = np.inf if block is None else float(np.linalg.norm(np.array(block) - goal))
        transcript.lines.append(f"The block is {distance:.0f} units from the goal.\n")
        if distance < config.tolerance:
            await call("close", session=session)
            transcript.lines.append(f"**Done in {number} rounds.**\n")
            return True, number
    return False, config.max_rounds


def push(agent: np.ndarray, block: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Propose waypoints of a push roughly towards the goal: around the block, behind it, through it."""
    towards = np.arctan2(*(goal - block)[::-1]) + rng.normal(0.0, 0.35)
    direction = np.array([np.cos(towards), np.sin(towards)])
    # Not always through the middle: a push beside it turns the block.
    beside = rng.normal(0.0, 14.0) * np.array([-direction[1], direction[0]])
    behind = block - REACH * direction + beside
    way = [around(agent, block, behind)] if np.linalg.norm(agent - behind) > 60.0 else []
    length = min(float(np.linalg.norm(goal - block)), 90.0) * rng.uniform(0.5, 1.2)
    through = block + (length - 40.0) * direction + beside
    return np.array([*way, behind, through, through])


def around(agent: np.ndarray, block: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Find a point on the way to behind the block that keeps clear of the block."""
    start, end = (np.arctan2(*(point - block)[::-1]) for point in (agent, behind))
    middle = start + ((end - start + np.pi) % (2 * np.pi) - np.pi) / 2
    return block + DETOUR * np.array([np.cos(middle), np.sin(middle)])


def _short(value: Any) -> Any:
    """Shorten numbers to few digits and long lists to their beginning."""
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: "..." if key == "session" else _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value[:4]] + (["..."] if len(value) > 4 else [])
    return value


async def run(config: AgentConfig) -> tuple[bool, int]:
    """Start ``kinema mcp`` and move the block."""
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
