"""Turnkeep keeps every turn of an AI agent's sandbox restorable.

    import turnkeep

    with turnkeep.connect() as tk:
        box = tk.attach("my-container")
        with box.turn(label="pytest"):
            run_tool_in_container()
        box.restore(turn=7)

`turnkeep.aio.connect` is the same for asyncio, `turnkeep.errors` has the
exceptions. Importing this package is cheap: gRPC is loaded by the first
`connect`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from turnkeep.errors import DaemonUnavailable, TurnkeepError

if TYPE_CHECKING:
    from turnkeep import aio
    from turnkeep.client import connect

    __version__: str

__all__ = ["DaemonUnavailable", "TurnkeepError", "__version__", "aio", "connect"]


def _version() -> str:
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version("turnkeep"))
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def __getattr__(name: str) -> Any:
    if name == "connect":
        return importlib.import_module("turnkeep.client").connect
    if name == "aio":
        return importlib.import_module("turnkeep.aio")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
