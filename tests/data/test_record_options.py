"""Whatever is typed behind ``kinema record`` is done, or refused in words: no traceback."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kinema.cli import main
from kinema.data import Dataset
from kinema.data.workers import JobError, describe

from .test_record import __name__ as ENVS

words = st.text(st.characters(exclude_characters="\0"), max_size=8)
folders = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
numbers = st.one_of(
    st.integers(-2, 4).map(str),
    st.sampled_from(
        ["0x10", "1e3", "nan", "inf", "-inf", "1e-300", "1e300", str(2**63), str(-(2**70)), "", "1,2"]
    ),
    words,
)
json_texts = st.one_of(
    words,
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
        lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(words, inner, max_size=2)),
        max_leaves=3,
    ).map(json.dumps),
    st.sampled_from(['{"size": 0.2}', '{"gate": 0}', '{"render_mode": "human"}', '{"max_episode_steps": 2}']),
)
policies = st.one_of(
    st.sampled_from(
        ["random", "zero", "random@0.5", "random@", "@", "json:dumps", "json:nope", ":", "nope:x"]
    ),
    st.sampled_from(["os:getcwd", f"{ENVS}:ThreeSteps", f"{ENVS}:WrongShape", f"{ENVS}:Lazy", "zero@nan"]),
    words,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "--policy": policies,
        "--policy-args": json_texts,
        "--env-args": json_texts,
        "--seed": numbers,
        "--workers": numbers,
        "--max-steps": st.one_of(st.sampled_from(["0", "-1", "1", "3", "nan"]), words),
        "--task": words,
        "--render": st.one_of(st.sampled_from(["auto", "always", "never"]), words),
        "--camera-size": st.one_of(st.sampled_from(["0", "-5", "16", "17", "x", "1e2"]), words),
        "--info-keys": st.one_of(
            st.sampled_from(["clock", "body.last", "body", "nope", ",", "clock,"]), words
        ),
        "--fps": numbers,
        "--codec": st.one_of(st.sampled_from(["auto", "av1", "h264", "lossless", "image"]), words),
    },
)
environments = st.one_of(
    st.sampled_from(
        [
            f"{ENVS}:{name}"
            for name in ("ShowsAction-v0", "Nested-v0", "Numbers-v0", "Limited-v0", "Stacked-v0")
        ]
    ),
    st.sampled_from(
        ["CartPol-v1", "ALE/Pong-v5", "CartPole", "nope:X-v0", "sys/x", "__main__/x", ".a:b", "a/"]
    ),
    words,
)


def in_this_process(
    make: Callable[[], Any], jobs: range, *, num_workers: int, is_stopped: Callable[[], bool]
) -> Iterator[Any]:
    """Do what workers do, errors included, without the second that a process takes to start."""
    try:
        task = make()
    except Exception as error:
        raise JobError(None, describe(error), "") from error
    with contextlib.closing(task):
        for job in jobs:
            try:
                yield task(job)
            except Exception as error:
                raise JobError(job, describe(error), "") from error


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(env=environments, episodes=st.one_of(st.sampled_from(["1", "2"]), numbers), more=options, out=folders)
@example(env=f"{ENVS}:Limited-v0", episodes="1", more={"--fps": "nan"}, out="x")
@example(env=f"{ENVS}:Limited-v0", episodes="1", more={"--fps": "1e300"}, out="x")
@example(env=f"{ENVS}:Limited-v0", episodes="1", more={"--fps": "10", "--task": "\ud800"}, out="x")
@example(env=f"{ENVS}:Limited-v0", episodes="1", more={"--fps": "10", "--codec": "av1"}, out="a:b")
def test_no_option_ends_in_a_traceback(
    env: str,
    episodes: str,
    more: dict[str, str],
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.setattr("kinema.data.record.run_in_order", in_this_process)
        patch.chdir(folder)
        root = Path(out)
        if not root.resolve().is_relative_to(Path(folder).resolve()):
            root = Path("x")
        given_options = {"--max-steps": "3", "--fps": "10"} | more
        arguments = [f"--episodes={episodes}", *(f"{key}={value}" for key, value in given_options.items())]
        try:
            code = main(["record", *arguments, f"--out={root}", "--", env])
        except SystemExit as stopped:
            code = stopped.code
        printed = capfd.readouterr().err
        assert "Traceback" not in printed
        assert code in (0, 2)
        if code == 0:
            assert Dataset.open(root).num_episodes == int(episodes)
            assert np.isfinite(Dataset.open(root).fps)
        else:
            assert printed
