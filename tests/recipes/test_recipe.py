import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.recipes import Phase, Schedule

PHASES = st.lists(
    st.builds(Phase, updates=st.integers(0, 30), batch=st.integers(1, 4)), min_size=1, max_size=4
)


@settings(deadline=None)
@given(phases=PHASES)
def test_phases_follow_one_another(phases: list[Phase]) -> None:
    schedule = Schedule(phases=tuple(phases), learning_rate=0.1)
    expected = [phase for phase in phases for _ in range(phase.updates)]
    assert schedule.updates == len(expected)
    assert [schedule.phase_at(update) for update in range(schedule.updates)] == expected
    with pytest.raises(IndexError):
        schedule.phase_at(schedule.updates)


def test_the_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(
        phases=(Phase(updates=60, batch=1), Phase(updates=40, batch=1)),
        learning_rate=2.0,
        warmup=10,
        decay_share=0.4,
    )
    rates = [schedule.rate_at(update) for update in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(1.0)
    assert rates[9:61] == pytest.approx([2.0] * 52)
    assert rates[80] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(2.0 / 40)
    assert rates[:10] == sorted(rates[:10])
    assert rates[60:] == sorted(rates[60:], reverse=True)


@settings(deadline=None)
@given(updates=st.integers(1, 500), warmup=st.integers(0, 300), decay_share=st.floats(0.0, 1.0))
def test_the_rate_is_always_above_zero_and_never_above_the_plateau(
    updates: int, warmup: int, decay_share: float
) -> None:
    schedule = Schedule(
        phases=(Phase(updates=updates, batch=1),),
        learning_rate=1.0,
        warmup=warmup,
        decay_share=decay_share,
    )
    assert all(0 < schedule.rate_at(update) <= 1.0 for update in range(updates))


@pytest.mark.parametrize(("field", "value", "least"), [("updates", -1, 0), ("batch", 0, 1), ("length", 1, 2)])
def test_a_wrong_phase_names_the_field(field: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{field}={value}: at least {least} is needed"):
        dataclasses.replace(Phase(updates=1, batch=1), **{field: value})
