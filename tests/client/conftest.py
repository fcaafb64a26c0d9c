"""A fake daemon for each test, and both flavours of the client behind one face."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import turnkeep
import turnkeep.aio
from turnkeep.client import sync

from tests.client.fake_daemon import FakeDaemon

_NOT_AWAITED = {"turn", "diff", "events"}


class Awaited:
    """A blocking client, sandbox or turn with the face of its asyncio sister."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return value
        if name in _NOT_AWAITED:
            return lambda *args, **kwargs: _face(value(*args, **kwargs))

        async def call(*args: Any, **kwargs: Any) -> Any:
            return _face(value(*args, **kwargs))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "inner":
            super().__setattr__(name, value)
        else:
            setattr(self.inner, name, value)

    async def __aenter__(self) -> Awaited:
        self.inner.__enter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return self.inner.__exit__(*exc)


def _face(value: Any) -> Any:
    if isinstance(value, (sync.Client, sync.Sandbox, sync.Turn)):
        return Awaited(value)
    if isinstance(value, Iterator):
        return _iterate(value)
    return value


async def _iterate(items: Iterator[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(params=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest, daemon: FakeDaemon) -> Callable[..., Any]:
    """`connect` of either flavour, to the fake daemon unless told otherwise."""

    def call(address: str | None = None, **kwargs: Any) -> Any:
        address = address or daemon.address
        if request.param == "sync":
            return Awaited(turnkeep.connect(address, **kwargs))
        return turnkeep.aio.connect(address, **kwargs)

    return call
