import itertools

import pytest

from kinema.model.tasks import TASKS, Role, Task, passes

C, N, D = Role.CLEAN, Role.NOISE, Role.DENOISE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("simulate", [Task(N, D, C), Task(D, C, C)]),
        ("generate", [Task(D, N, N)]),
        ("act", [Task(N, N, D)]),
        ("imagine", [Task(N, N, D), Task(N, D, C), Task(D, C, C)]),
        ("infer", [Task(C, C, D)]),
        ("locate", [Task(C, D, C)]),
    ],
)
def test_steps_with_cameras_and_proprioception(name: str, expected: list[Task]) -> None:
    assert passes(TASKS[name], has_cameras=True, has_proprio=True) == expected


def test_a_world_of_vectors_observes_its_proprioception() -> None:
    def steps(name: str) -> list[Task]:
        return passes(TASKS[name], has_cameras=False, has_proprio=True)

    assert steps("simulate") == [Task(N, D, C)]
    assert steps("generate") == [Task(N, D, N)]
    assert steps("imagine") == [Task(N, N, D), Task(N, D, C)]
    assert steps("infer") == [Task(N, C, D)]
    assert steps("locate") == []


def test_imagine_is_act_then_simulate() -> None:
    for has_cameras, has_proprio in itertools.product([True, False], repeat=2):
        if has_cameras or has_proprio:
            kinds = {"has_cameras": has_cameras, "has_proprio": has_proprio}
            both = passes(TASKS["act"], **kinds) + passes(TASKS["simulate"], **kinds)
            assert passes(TASKS["imagine"], **kinds) == both


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("has_cameras", "has_proprio"), [(True, True), (True, False), (False, True)])
def test_each_step_denoises_one_part_that_is_there(name: str, has_cameras: bool, has_proprio: bool) -> None:
    for step in passes(TASKS[name], has_cameras=has_cameras, has_proprio=has_proprio):
        assert list(step).count(D) == 1
        assert has_cameras or step.observations is N
        assert has_proprio or step.proprio is N
