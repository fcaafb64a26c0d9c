"""The command line: one file for each command or tight group, all through the client.

`root` puts the commands together and turns errors into exit codes, `run` is
what every command is given, `printing` and `words` are how it speaks.
"""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line. The only way out is SystemExit."""
    # gRPC's C core writes lines of its own to stderr when a daemon restarts.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from turnkeep.cli import root

    root.main()


__all__ = ["main"]
