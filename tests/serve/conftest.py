from collections.abc import Iterator

import httpx
import pytest

from .running import running, small_service


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a tiny world; tests close the sessions that they open."""
    with running(small_service(tmp_path_factory.mktemp("served"))) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
