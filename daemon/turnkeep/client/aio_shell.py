"""A sandbox's shell for asyncio: `shell`, with awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Self

from turnkeep.client import shell
from turnkeep.client.shell import Shell
from turnkeep.client.shell_run import DEFAULT_MAX_OUTPUT_BYTES, ShellResult

_INTERRUPTS = 5
_BETWEEN_S = 1.0


class AsyncShell:
    """A shell of a sandbox: `Shell` for asyncio. One command runs at a time."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def name(self) -> str:
        """What `open_shell` finds it by."""
        return self._shell.name

    @property
    def started(self) -> bool:
        """Whether `open_shell` started it."""
        return self._shell.started

    async def cwd(self) -> str:
        """Return its working folder.

        Raises:
            ShellEnded: it is not there any more.
        """
        return await asyncio.to_thread(lambda: self._shell.cwd)

    async def run(
        self, command: str, *, timeout_s: float | None = None, max_output_bytes: int | None = None
    ) -> ShellResult:
        """Run a command and return what it printed and its exit code, as `Shell.run` does.

        When this is cancelled, the command is interrupted, and its end waited for a while.
        """
        work = asyncio.ensure_future(
            asyncio.to_thread(
                self._shell.run, command, timeout_s=timeout_s, max_output_bytes=max_output_bytes
            )
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            for _ in range(_INTERRUPTS):
                # The first may come before the command has begun.
                await self.interrupt()
                if (await asyncio.wait([work], timeout=_BETWEEN_S))[0]:
                    break
            raise
        finally:
            # Nobody waits for it any more; its error is not news.
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def interrupt(self) -> None:
        """Interrupt what runs in it, as Ctrl-C does. Does nothing to an idle shell."""
        await asyncio.to_thread(self._shell.interrupt)

    async def close(self) -> None:
        """End the shell and its jobs, as a closed terminal does."""
        await asyncio.to_thread(self._shell.close)


async def open_shell(
    container: str | Callable[[], str],
    name: str = "main",
    *,
    user: str | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
) -> AsyncShell:
    """Return the sandbox's shell of this name, as `shell.open_shell` does."""
    return AsyncShell(
        await asyncio.to_thread(
            shell.open_shell,
            container,
            name,
            user=user,
            workdir=workdir,
            env=env,
            max_output_bytes=max_output_bytes,
        )
    )
