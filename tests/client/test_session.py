"""Addresses, patience, and what importing costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import turnkeep
from turnkeep.client.faults import Fault
from turnkeep.client.session import Patience, open_session
from turnkeep.config import DEFAULT_ADDRESS
from turnkeep.errors import DaemonUnavailable, InvalidRequest


@pytest.mark.parametrize(
    ("argument", "environment", "address"),
    [
        (None, {}, DEFAULT_ADDRESS),
        (None, {"TURNKEEP_ADDRESS": "unix:///e"}, "unix:///e"),
        ("unix:///a", {"TURNKEEP_ADDRESS": "unix:///e"}, "unix:///a"),
        ("/a/b", {}, "unix:///a/b"),
        ("unix:rel", {}, "unix:rel"),
    ],
)
def test_where_the_daemon_is_sought(argument: str | None, environment: dict[str, str], address: str) -> None:
    assert open_session(argument, environment=environment).address == address


@pytest.mark.parametrize("address", ["localhost:7000", "tcp://x", "unix:///" + "a" * 107])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidRequest):
        turnkeep.connect(address)


def test_on_error_is_one_of_two() -> None:
    with pytest.raises(InvalidRequest):
        turnkeep.connect(on_error="retry")  # type: ignore[arg-type]


def test_patience_doubles_and_ends() -> None:
    patience, passing = Patience(2.0), Fault(DaemonUnavailable("gone"), passing=True)
    delays = [patience.delay_s(passing) for _ in range(6)]
    assert delays[:3] == [0.05, 0.1, 0.2]
    assert sum(delays) == pytest.approx(2.0)
    with pytest.raises(DaemonUnavailable):
        patience.delay_s(passing)


def test_patience_is_for_what_passes() -> None:
    with pytest.raises(DaemonUnavailable):
        Patience(60).delay_s(Fault(DaemonUnavailable("not yours"), passing=False))


def test_importing_is_cheap() -> None:
    script = (
        "import sys, turnkeep\n"
        "heavy = {'typer', 'rich', 'docker', 'grpc', 'click'} & set(sys.modules)\n"
        "turnkeep.connect, turnkeep.aio.connect\n"
        "heavy |= {'typer', 'rich', 'docker', 'click'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = turnkeep.nothing
