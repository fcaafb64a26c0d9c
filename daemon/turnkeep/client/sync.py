"""The client with blocking calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Self

from turnkeep.client import calls, handles, shell, values
from turnkeep.client.calls import Ref, RestoreMode, Verify
from turnkeep.client.link import Link
from turnkeep.client.session import DEFAULT_RETRY_S, OnError, Tls, open_session
from turnkeep.client.shell import Shell
from turnkeep.client.shell_run import DEFAULT_MAX_OUTPUT_BYTES
from turnkeep.errors import TurnkeepError
from turnkeep.model import Finding, RetentionPolicy, TurnMetadata, TurnState

OnProgress = Callable[[values.Progress], object]


def connect(
    address: str | None = None,
    *,
    on_error: OnError = "raise",
    retry_s: float = DEFAULT_RETRY_S,
    session: str | None = None,
    tls: Tls | None = None,
) -> Client:
    """Return a client of the daemon at `address`, TURNKEEP_ADDRESS or the default socket.

    An address `tls://HOST:PORT` needs certificates: `tls`, or the files that
    TURNKEEP_TLS_AUTHORITY, TURNKEEP_TLS_CERTIFICATE and TURNKEEP_TLS_KEY name.

    Nothing is sent yet: a daemon that is absent shows at the first call. Calls
    that found no daemon are repeated for `retry_s` seconds, so that a restart
    of the daemon goes unnoticed; then they raise DaemonUnavailable.

    With `on_error="ignore"` a harness goes on without checkpoints when Turnkeep
    fails it: the body of a turn always runs, and `attach` returns a sandbox that
    is attached at its next turn. One line is logged to "turnkeep". What asks for
    a guarantee (`wait`, `restore`, every reading call) raises all the same.

    A client must not be used on both sides of a fork: gRPC does not survive it.
    Connect in the child.
    """
    return Client(Link(open_session(address, on_error=on_error, retry_s=retry_s, session=session, tls=tls)))


class Client:
    """A connection to the daemon. Use it as a context manager, or `close` it."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def address(self) -> str:
        """Where the daemon is sought."""
        return self._link.session.address

    @property
    def session(self) -> str:
        """The token that names this harness's run to the daemon."""
        return self._link.session.token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The sandboxes stay attached."""
        self._link.close()

    def attach(self, container: str) -> Sandbox:
        """Watch a running container, by name or id. Attaching it again does no harm."""
        sandbox = Sandbox(self._link, container)
        try:
            sandbox.attach()
        except TurnkeepError as error:
            if not self._link.session.tolerates(error):
                raise
        return sandbox

    def sandbox(self, name: str) -> Sandbox:
        """Return a sandbox that the daemon knows, by its id, or its container's name or id."""
        return Sandbox(self._link, name, self._link.call(calls.get_sandbox(name)))

    def sandboxes(self, *, include_detached: bool = False) -> list[values.SandboxInfo]:
        """Return what the daemon says of all its sandboxes, by name."""
        return self._link.call(calls.list_sandboxes(include_detached=include_detached))

    def checkpoint(self, checkpoint: str) -> values.Checkpoint:
        """Return a checkpoint by its id, shortened or not."""
        return self._link.call(calls.get_checkpoint("", checkpoint))

    def checkpoints(self) -> list[values.Checkpoint]:
        """Return the checkpoints of all sandboxes, oldest first."""
        return self._link.call(calls.list_checkpoints(""))

    def fork(
        self,
        sandbox: str,
        count: int | None = None,
        *,
        ref: Ref | None = None,
        names: Sequence[str] = (),
        on_progress: OnProgress | None = None,
    ) -> values.ForkResult:
        """Make copies of a sandbox, and say what is to be known of them (see `Sandbox.fork`)."""
        return self._link.work(calls.fork(sandbox, ref=ref, count=count, names=names), on_progress)

    def delete_checkpoint(self, checkpoint: str) -> values.DeletedCheckpoint:
        """Delete a checkpoint by its id. `prune` frees its space."""
        return self._link.call(calls.delete_checkpoint("", checkpoint))

    def diff(self, before: str, after: str) -> Generator[values.Change, None, None]:
        """Yield the paths in which two checkpoints, named by id, differ."""
        return self._link.stream(calls.diff("", before, after))

    def events(
        self,
        sandbox: str = "",
        *,
        after: int | None = None,
        follow: bool = True,
        for_s: float | None = None,
    ) -> Generator[values.Event, None, None]:
        """Yield what happens, of one sandbox or all, until the iterator is closed or `for_s` is over.

        With `after`, the recorded events with a higher sequence number come first
        (0: all of them); without `follow`, the iterator ends after those.
        """
        return self._link.stream(calls.events(sandbox, after=after, follow=follow, for_s=for_s))

    def prune(
        self,
        policy: RetentionPolicy | None = None,
        *,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> values.PruneResult:
        """Apply a retention policy, the daemon's own by default, and free what nothing references."""
        return self._link.work(calls.prune(policy, dry_run=dry_run), on_progress)

    def check(
        self,
        *,
        skip_data: bool = False,
        rebuild_index: bool = False,
        repair: bool = False,
        live: str = "",
        journal: bool = False,
        head: str = "",
        on_progress: OnProgress | None = None,
    ) -> values.CheckResult:
        """Verify everything in the store. Damage is in the result, not raised.

        With `rebuild_index`, the index is first made anew from the packs; with `repair`,
        also what is sound of damaged packs is saved, and checkpoints whose record is
        damaged are deleted. With the name of a sandbox as `live`, what was reported of
        its changes is compared with a scan of its files instead. With `journal`, its
        events are, with the hashes that hold them together, and with a `head` that an
        earlier result had.
        """
        request = calls.check(
            skip_data=skip_data,
            rebuild_index=rebuild_index,
            repair=repair,
            live=live,
            journal=journal,
            head=head,
        )
        return self._link.work(request, on_progress)

    def export_journal(self, after: int = 0) -> Generator[values.JournalLine, None, None]:
        """Yield the journal's events with higher numbers, as they are stored, with their hashes."""
        return self._link.stream(calls.export_journal(after))

    def status(self) -> values.HostStatus:
        """Return what the daemon says of itself, its host and its store."""
        return self._link.call(calls.host_status())

    def examine(self, sandbox: str = "", *, self_test: bool = False) -> list[Finding]:
        """Look whether the host can capture processes, and what a sandbox has that cannot be captured.

        The daemon tries it on a process of its own, once unless `self_test` asks for
        it again. A sandbox that is named is frozen for a moment.
        """
        return self._link.call(calls.examine(sandbox, self_test=self_test))


class Sandbox(handles.SandboxHandle):
    """A container that Turnkeep watches."""

    def __init__(self, link: Link, container: str, info: values.SandboxInfo | None = None) -> None:
        super().__init__(container, info)
        self._link = link

    def attach(self) -> values.SandboxInfo:
        """Attach the container, again after a detach perhaps."""
        return self._learn(self._link.call(calls.attach(self._container)))

    def detach(self) -> values.SandboxInfo:
        """Stop watching it. Its checkpoints stay."""
        return self._learn(self._link.call(calls.detach(self.key)))

    def refresh(self) -> values.SandboxInfo:
        """Ask the daemon how it is now."""
        return self._learn(self._link.call(calls.get_sandbox(self.key)))

    def turn(
        self,
        label: str = "",
        *,
        harness_turn_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        metadata: TurnMetadata | None = None,
        take_over: bool = False,
        gate_timeout_s: float | None = None,
    ) -> Turn:
        """Return a turn to run tools in: `with box.turn("pytest") as turn: …`.

        Entering waits for the gate and begins the turn; leaving ends it, also
        when the body raised: the exception passes through, and its class is
        kept as a label. `take_over` closes a turn that another session left open.
        """
        wish = handles.TurnWish(
            label=label,
            harness_turn_id=harness_turn_id,
            labels=labels or {},
            metadata=metadata or TurnMetadata(),
            take_over=take_over,
            gate_timeout_s=gate_timeout_s,
        )
        return Turn(self, self._link, wish)

    def shell(
        self,
        name: str = "main",
        *,
        user: str | None = None,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    ) -> Shell:
        """Return the shell of this name, started if there is none; it outlives a live restore.

        Raises:
            InvalidRequest: the name is not of letters, digits, and `._-`; no such user or folder.
        """
        return shell.open_shell(
            lambda: self.info.container_id if self.known else self._container,
            name,
            user=user,
            workdir=workdir,
            env=env,
            max_output_bytes=max_output_bytes,
        )

    def adopt(self, number: int) -> Turn:
        """Return a turn that was begun elsewhere, to end it or to store a state with it."""
        turns = self.turns(after=number - 1)
        turn = self.turn()
        turn._adopt(handles.only(turns, number, self.name))
        return turn

    def turns(self, *, after: int = 0, limit: int = 0) -> list[values.TurnInfo]:
        """Return the turns with higher numbers than `after`, oldest first; at most the newest `limit`."""
        return self._link.call(calls.list_turns(self.key, after=after, limit=limit))

    def wait(
        self, turn: int = 0, state: TurnState | str = TurnState.DURABLE, *, timeout_s: float | None = None
    ) -> values.TurnInfo:
        """Wait until a turn, the newest by default, has reached a state. A skipped turn has reached all.

        Raises:
            TurnFailed: it failed and will not reach the state.
            WaitTimeout: it did not in time.
        """
        wanted = calls.turn_state(state)
        return handles.settled(self._link.call(calls.wait_turn(self.key, turn, wanted, timeout_s)), wanted)

    def state(self, turn: int) -> bytes:
        """Return the harness state that was stored with a turn."""
        pieces: Generator[bytes, None, None] = self._link.stream(calls.get_state(self.key, turn))
        return b"".join(pieces)

    def put_state(self, turn: int, data: bytes) -> values.StoredState:
        """Store a harness state of up to 64 MiB with a turn. It is durable when this returns."""
        return self._link.upload(calls.put_state(self.key, turn, data))

    def checkpoint(self, *, name: str = "", tags: Sequence[str] = ()) -> values.Checkpoint:
        """Take a checkpoint by hand. It is durable when this returns."""
        return self._link.call(calls.create_checkpoint(self.key, name=name, tags=tags))

    def checkpoints(self) -> list[values.Checkpoint]:
        """Return its checkpoints, oldest first."""
        return self._link.call(calls.list_checkpoints(self.key))

    def find_checkpoint(self, ref: Ref) -> values.Checkpoint:
        """Return the checkpoint of a turn (by number), or the one with this id or name."""
        return self._link.call(calls.get_checkpoint(self.key, ref))

    def delete_checkpoint(self, ref: Ref) -> values.DeletedCheckpoint:
        """Delete a checkpoint. Its children are given its parent; `prune` frees its space."""
        return self._link.call(calls.delete_checkpoint(self.key, ref))

    def diff(self, before: Ref, after: Ref | None = None) -> Generator[values.Change, None, None]:
        """Yield the paths in which two checkpoints differ; the newer one is the head by default."""
        return self._link.stream(calls.diff(self.key, before, after))

    def restore(
        self,
        *,
        turn: int | None = None,
        checkpoint: str | None = None,
        mode: RestoreMode | None = None,
        new_name: str | None = None,
        skip_safety_checkpoint: bool = False,
        verify: Verify | None = None,
        replace: bool = False,
        on_progress: OnProgress | None = None,
    ) -> values.RestoreResult:
        """Bring the sandbox back to a turn or a checkpoint.

        The daemon chooses between live and cold unless `mode` says. The present
        state is captured first, unless told otherwise. Where the container's own
        processes come back only with a new container, `replace` allows one of the
        same name in its place. Raises whatever `on_error` says: a restore never
        silently does nothing.

        Raises:
            DigestMismatch: what is there now is not what was captured.
            RestoreFailed: it could not be finished; the message says what was left.
        """
        request = calls.restore(
            self.key,
            turn=turn,
            checkpoint=checkpoint,
            mode=mode,
            new_name=new_name,
            skip_safety_checkpoint=skip_safety_checkpoint,
            verify=verify,
            replace=replace,
        )
        result = self._link.work(request, on_progress)
        self._learn_own(result.sandbox)
        return result

    def fork(
        self,
        count: int | None = None,
        *,
        ref: Ref | None = None,
        names: Sequence[str] = (),
        on_progress: OnProgress | None = None,
    ) -> list[Sandbox]:
        """Make independent copies, files and processes, that go on beside it.

        Of its present state, which is captured first, or of the checkpoint named
        by `ref`. The copies are attached and run. Raises whatever `on_error`
        says: all copies are there afterwards, or none.

        Raises:
            Conflict: a name is taken, or a folder of the host would be shared.
        """
        request = calls.fork(self.key, ref=ref, count=count, names=names)
        result = self._link.work(request, on_progress)
        return [Sandbox(self._link, each.name, each) for each in result.sandboxes]


class Turn(handles.TurnHandle):
    """A turn of a sandbox, begun and ended by `with`, or by `begin` and `end`."""

    def __init__(self, sandbox: Sandbox, link: Link, wish: handles.TurnWish) -> None:
        super().__init__(link.session, wish)
        self._sandbox = sandbox
        self._link = link

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._label_exception(raised)
        try:
            self._end()
        except TurnkeepError as error:
            self._lost(error, raised)

    def begin(self) -> None:
        """Attach the sandbox if that is still to be done, wait for the gate, begin the turn."""
        try:
            if not self._sandbox.known:
                self._sandbox.attach()
            self._begun(self._link.call(self._begin_call(self._sandbox.key)))
        except TurnkeepError as error:
            self._lost(error)

    def end(self) -> None:
        """End the turn. The daemon answers at once and captures afterwards."""
        try:
            self._end()
        except TurnkeepError as error:
            self._lost(error)

    def wait(
        self, state: TurnState | str = TurnState.DURABLE, *, timeout_s: float | None = None
    ) -> values.TurnInfo:
        """Wait until the turn has reached a state. A skipped turn has reached all.

        Raises:
            TurnFailed: it failed and will not reach the state.
            WaitTimeout: it did not in time.
            TurnkeepError: what kept the turn from being begun.
        """
        self.info = self._sandbox.wait(self._begun_number(), state, timeout_s=timeout_s)
        return self.info

    def put_state(self, data: bytes) -> values.StoredState | None:
        """Store a harness state of up to 64 MiB with the turn. It is durable when this returns it.

        With `on_error="ignore"` it returns None when it could not be stored.
        """
        try:
            return self._sandbox.put_state(self._begun_number(), data)
        except TurnkeepError as error:
            self._lost(error)
            return None

    def _end(self) -> None:
        if self.number is not None:
            self.info = self._link.call(self._end_call(self._sandbox.key))
