from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.simulation.history import FIRST_ROOM, Moments

STEPS = st.lists(st.one_of(st.just("append"), st.integers(0, 5)), max_size=300)


def parts_of(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A moment of three sessions."""
    return torch.full((3, 2, 2), number, dtype=torch.float16), torch.arange(3.0) + number


def same(moments: Moments, expected: "deque[int]", rows: slice = slice(None)) -> None:
    numbers = list(expected)[rows]
    found = moments[rows]
    for part, other in zip(found, zip(*map(parts_of, numbers), strict=True), strict=bool(numbers)):
        assert torch.equal(part, torch.stack(list(other)))


@settings(deadline=None)
@given(most=st.integers(1, 150), steps=STEPS, rows=st.slices(20))
def test_they_are_as_a_bounded_queue(most: int, steps: list[str | int], rows: slice) -> None:
    moments, expected = Moments(most), deque[int](maxlen=most)
    for number, step in enumerate(steps):
        if isinstance(step, str):
            moments.append(*parts_of(number))
            expected.append(number)
        elif step <= len(expected):
            moments.pop(step)
            for _ in range(step):
                expected.pop()
        assert len(moments) == len(expected)
    same(moments, expected)
    if rows.step is None or rows.step > 0:
        same(moments, expected, rows)
    moments.clear()
    assert len(moments) == 0


def test_some_sessions_are_taken_and_go_on_by_themselves() -> None:
    moments = Moments(100)
    for number in range(90):
        moments.append(*parts_of(number))
    other = moments.select(torch.tensor([2, 0]), most=20, last=30)
    assert len(other) == 20
    taken = tuple(part[[2, 0]] for part in parts_of(90))
    other.append(*taken)
    latents, numbers = other[:]
    assert numbers[:, 0].tolist() == [float(number + 2) for number in range(71, 91)]
    assert latents.shape == (20, 2, 2, 2)
    assert len(moments) == 90
    assert len(moments.select(torch.tensor([1]), most=20, last=1)) == 1
    assert len(Moments(5).select(torch.tensor([1]), most=20, last=1)) == 0


def test_they_take_little_more_than_their_numbers() -> None:
    moments = Moments(10_000)
    for number in range(FIRST_ROOM + 1):
        moments.append(*parts_of(number))
    assert sum(ring.nbytes for ring in moments._rings) == 2 * FIRST_ROOM * (3 * 4 * 2 + 3 * 4)
