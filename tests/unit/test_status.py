"""Errors on the wire: each has a code, and arrives as what it was."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from turnkeep import errors
from turnkeep.checkpointer.arena import ArenaFull
from turnkeep.client.faults import from_rpc
from turnkeep.errors import ExitCode, InternalError, TurnkeepError, error_classes
from turnkeep.server.status import rich_status, translate
from turnkeep_store import errors as store


def below(cls: type[Any]) -> list[type[Any]]:
    """Return a class and all its subclasses, wherever they are defined."""
    return [cls, *(each for sub in cls.__subclasses__() for each in below(sub))]


OWN = [
    cls for cls in below(TurnkeepError) if cls is not TurnkeepError and cls.__module__.startswith("turnkeep.")
]
assert ArenaFull in OWN
STORE = below(store.StoreError)


class Failure(grpc.RpcError):
    """What a client's call raises for a status."""

    def __init__(self, status: grpc.Status) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return self._status.details

    def trailing_metadata(self) -> Any:
        return self._status.trailing_metadata


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_each_error_arrives_as_what_it_was(cls: type[TurnkeepError]) -> None:
    sent = cls("what happened", object="sandbox web", hint="do this; é")
    fault = from_rpc(Failure(rich_status(sent)), "unix:///x")
    assert not fault.passing
    assert fault.error.reason == sent.reason
    assert (fault.error.message, fault.error.object, fault.error.hint) == (
        sent.message,
        sent.object,
        sent.hint,
    )
    assert fault.error.exit_code is sent.exit_code
    assert isinstance(fault.error, errors.__dict__.get(cls.__name__, TurnkeepError))


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(
            TurnkeepError,
        ),
        *OWN,
    ],
    ids=lambda cls: cls.__name__,
)
def test_each_error_has_a_code(cls: type[TurnkeepError]) -> None:
    status = rich_status(cls("what"))
    assert status.code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert status.details == "what"


@pytest.mark.parametrize("cls", STORE, ids=lambda cls: cls.__name__)
def test_each_error_of_the_store_is_translated(cls: type[store.StoreError]) -> None:
    made = translate(cls("blob 12: torn"))
    assert not isinstance(made, InternalError)
    assert made.message == "blob 12: torn"
    assert rich_status(made).code is not grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (store.StoreFull("x"), "RESOURCE_EXHAUSTED"),
        (store.LimitExceeded("x"), "RESOURCE_EXHAUSTED"),
        (store.Damaged("x"), "STORE_DAMAGED"),
        (store.BlobNotFound("x"), "STORE_DAMAGED"),
        (store.StoreIOError("x"), "STORE_DAMAGED"),
        (store.SnapshotNotFound("x"), "CHECKPOINT_NOT_FOUND"),
        (store.RestoreMismatch("x"), "RESTORE_FAILED"),
        (store.UnsafePath("x"), "RESTORE_FAILED"),
    ],
)
def test_what_becomes_of_the_stores(error: store.StoreError, reason: str) -> None:
    assert translate(error).reason == reason


def test_our_own_stay_what_they_are() -> None:
    error = errors.Conflict("x")
    assert translate(error) is error


@pytest.mark.parametrize("error", [ValueError("secret"), OSError(5, "secret"), KeyError("secret")])
def test_a_surprise_tells_nobody_what_it_held(error: Exception) -> None:
    made = translate(error)
    assert isinstance(made, InternalError)
    assert type(error).__name__ in made.message
    assert "secret" not in made.message + made.object + made.hint


def test_reasons_and_exit_codes() -> None:
    """A reason stands for one class, as far as callers can tell them apart."""
    own = [cls for cls in OWN if cls.__module__ == "turnkeep.errors"]
    assert len({cls.reason for cls in own}) == len(own)
    assert {cls.reason for cls in own} == set(error_classes())
    assert all(cls.exit_code not in (ExitCode.OK,) for cls in own)
    for cls in own:
        assert issubclass(error_classes()[cls.reason], cls)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "/tmp/\udcff",
        ),
        "line\nbreak",
        "%41",
        "ü",
    ],
)
def test_any_text_can_be_sent(text: str) -> None:
    """Names of files are in it, as the sandbox chose them."""
    sent = errors.RestoreFailed(text, object=text, hint=text)
    error = from_rpc(Failure(rich_status(sent)), "unix:///x").error
    assert isinstance(error, errors.RestoreFailed)
    assert error.message == text.encode("utf-8", "backslashreplace").decode()
