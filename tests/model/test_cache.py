import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.model import LayerCache, Ring, rotary_table, rotate

HEAD_DIM = 4


def make_ring(window: int, max_rewind: int, sessions: int = 1) -> Ring:
    return Ring((sessions, 1, HEAD_DIM), window=window, max_rewind=max_rewind, like=torch.zeros(1))


def frame(number: float, sessions: int = 1) -> torch.Tensor:
    return torch.full((sessions, 1, HEAD_DIM), number)


@settings(deadline=None)
@given(
    window=st.integers(1, 4),
    max_rewind=st.integers(0, 5),
    operations=st.lists(st.integers(-6, 2), max_size=60),
)
def test_a_ring_is_a_list_of_frames(window: int, max_rewind: int, operations: list[int]) -> None:
    """Against the plainest model: a list from which nothing is ever dropped.

    Operations: 1 and 2 keep a frame, 0 writes one without keeping it, ``-k`` goes back by ``k`` frames or as
    far as the ring can.
    """
    ring = make_ring(window, max_rewind)
    kept: list[float] = []
    furthest = 0
    for number, operation in enumerate(operations, start=1):
        if operation < 0:
            back = min(-operation, ring.num_rewindable)
            ring.rewind(back)
            kept = kept[: len(kept) - back]
        else:
            given = ring.with_frame(frame(number))
            assert given[0, :, 0].tolist() == [*kept, number][-window - 1 :]
            if operation:
                ring.keep()
                kept.append(number)
                furthest = max(furthest, len(kept))
        assert ring.past()[0, :, 0].tolist() == kept[-window:]
        # From the furthest frame, this far back is always possible.
        assert len(kept) - ring.num_rewindable <= max(0, furthest - max_rewind)


def test_memory_stays_as_it_is() -> None:
    ring = make_ring(window=3, max_rewind=2)
    address, size = ring.buffer.data_ptr(), ring.buffer.numel()
    for number in range(1000):
        ring.with_frame(frame(number))
        ring.keep()
    assert (ring.buffer.data_ptr(), ring.buffer.numel()) == (address, size)


def test_a_selection_goes_its_own_way() -> None:
    ring = make_ring(window=3, max_rewind=1, sessions=3)
    ring.with_frame(torch.arange(3.0).view(3, 1, 1).expand(3, 1, HEAD_DIM))
    ring.keep()
    selected = ring.select(torch.tensor([2, 0, 2, 1]), 0)
    assert selected.past()[:, 0, 0].tolist() == [2.0, 0.0, 2.0, 1.0]
    selected.with_frame(frame(9.0, sessions=4))
    selected.keep()
    assert (ring.end, selected.end) == (1, 2)
    assert ring.with_frame(frame(5.0, sessions=3))[0, :, 0].tolist() == [0.0, 5.0]


def test_a_layer_is_attended_by_age() -> None:
    """Through many turns of the ring: a frame sees those before it within the window, turned by how long ago
    they were, and itself."""
    batch, tokens, heads, window = 2, 3, 2, 2
    cache = LayerCache(
        batch=batch,
        tokens=tokens,
        num_heads=heads,
        head_dim=HEAD_DIM,
        window=window,
        max_rewind=1,
        like=torch.zeros(1),
    )
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, batch, tokens, heads, 12, HEAD_DIM, generator=generator)
    turned_queries, turned_keys = (
        rotate(x, *rotary_table(torch.arange(12.0), HEAD_DIM)) for x in (queries, keys)
    )
    for time in range(12):
        now = slice(time, time + 1)
        rotary = rotary_table(torch.arange(now.start, now.stop), HEAD_DIM)
        found = cache.attend(queries[..., now, :], keys[..., now, :], values[..., now, :], rotary)
        seen = slice(max(0, time - window), time + 1)
        weights = turned_queries[..., now, :] @ turned_keys[..., seen, :].mT / HEAD_DIM**0.5
        torch.testing.assert_close(found, weights.softmax(-1) @ values[..., seen, :])
        cache.keep()
