"""The composition root: puts the daemon together, runs it, and takes it apart."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import grp
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from turnkeep_store.beneath import openat2_works
from turnkeep_store.errors import RepositoryLocked, StoreError
from turnkeep_store.repository import Options, Repository

from turnkeep import encryption, logs, recovery
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.api.v1 import turnkeep_pb2_grpc as pb_grpc
from turnkeep.checkpointer.capture import Checkpointer
from turnkeep.config import Config
from turnkeep.coordinator import deps as blocking
from turnkeep.coordinator.deps import Deps, Pools
from turnkeep.coordinator.registry import Registry
from turnkeep.errors import (
    Conflict,
    EngineUnavailable,
    InvalidRequest,
    StoreDamaged,
    TurnkeepError,
    Unsupported,
)
from turnkeep.journal import Journal
from turnkeep.model import Event
from turnkeep.process.engine import Processes
from turnkeep.runtime.engine import ContainerEvent, Engine, boot_id
from turnkeep.runtime.freezer import Freezer
from turnkeep.server.front import Front
from turnkeep.server.gatekeeper import AuditLog, Gatekeeper
from turnkeep.server.interceptor import ErrorInterceptor
from turnkeep.server.service import Started, TurnkeepService
from turnkeep.server.status import translate
from turnkeep.watch.tracker import Tracker
from turnkeep.watch.trail import TrackedFolders

log = structlog.get_logger()

SERVICE = pb.DESCRIPTOR.services_by_name["Turnkeep"].full_name
_MESSAGE_BYTES = 80 * 1024 * 1024
_GRACE_S = 10.0
_GARBAGE_THRESHOLDS = 50_000, 20, 50
_SWITCH_S = 0.0002
"""After so long a thread that computes makes way for another (Python's default is 5 ms).

A call changes threads half a dozen times, and each time it would wait for whoever
plans a prune, encodes a large folder or takes in events just then.
"""
_EVENTS_RETRY_S = 2.0
_SWEEP_S = 30.0


def run(config: Config) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        TurnkeepError: it cannot start; the message says why.
    """
    logs.configure(config.log_format, config.log_level)
    _check_host()
    try:
        asyncio.run(_main(config))
    except BaseExceptionGroup as group:
        raise translate(group.exceptions[0]) from group
    except StoreError as error:
        raise translate(error) from error
    return 0


def _check_host() -> None:
    if os.geteuid() != 0:
        raise Unsupported(
            "the daemon needs root", hint="it reads containers' files and freezes them: sudo turnkeep serve"
        )
    if not openat2_works():
        raise Unsupported("the kernel lacks openat2", hint="Linux 5.6 or later is needed")


async def _main(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as stack:
        deps = _open(config, stack)
        async with _tasks(deps) as group:
            await _run(deps, group, stop)


def _open(config: Config, stack: contextlib.ExitStack) -> Deps:
    """Open everything that is closed again at the end."""
    state = config.state_path
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(config)
    except OSError as error:
        raise InvalidRequest(f"the state directory cannot be used: {error}", object=str(state)) from error
    try:
        repository = Repository.open_or_create(
            config.store_path,
            options=Options(compression_level=config.compression_level),
            master=encryption.read_key(config.encryption_key),
        )
    except RepositoryLocked as error:
        raise Conflict(
            f"another daemon uses this state directory: {error}",
            object=str(state),
            hint="one daemon per state directory; TURNKEEP_STATE_DIR names another",
        ) from error
    stack.callback(repository.close)
    journal = _open_journal(config.journal_path, encryption.journal_keys(repository.keyring))
    stack.callback(journal.close)
    pools = Pools.start(config.workers)
    stack.callback(pools.stop)
    freezer = stack.enter_context(Freezer())
    engine = Engine(config.docker_host)
    stack.callback(engine.close)
    processes = Processes(config.process, state / "run", on_disk=not config.encryption_key)
    stack.callback(processes.close)
    tracked = None
    if config.tracker.enabled:
        tracker = Tracker(str(state / "run"), max_touched=config.tracker.paths)
        tracked = TrackedFolders(tracker, config.tracker.audit)
        stack.callback(tracked.close)
    checkpointer = Checkpointer(repository, config.limits, config.classify, processes, tracked)
    stack.callback(checkpointer.states.host_folders.close)
    return Deps(
        config=config,
        journal=journal,
        repository=repository,
        checkpointer=checkpointer,
        processes=processes,
        engine=engine,
        freezer=freezer,
        pools=pools,
        spawn=_not_yet,
    )


def _close_to_others(config: Config) -> None:
    """Take from others what they may do with the state's folders and the files that are not in packs."""
    state, store = config.state_path, config.store_path
    # Only what is ours by its name: the folder may have been named by mistake.
    ours = [
        state,
        store,
        state / "run",
        *state.glob(f"{config.journal_path.name}*"),
        *state.glob("audit.jsonl*"),
    ]
    for path in (*ours, *(store.iterdir() if store.is_dir() else ())):
        if not path.exists():
            continue
        mode = path.lstat().st_mode
        if mode & 0o077 and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            log.warning("others had access to a part of the state; not any more", path=str(path))
            path.chmod(stat.S_IMODE(mode) & 0o700)


def _open_journal(path: Path, keys: Sequence[bytes]) -> Journal:
    """Open the journal; one that cannot be read is moved aside and made anew from the store."""
    with _umask(0o077):
        try:
            return Journal(path, keys)
        except StoreDamaged as error:
            if "version" in error.message:
                raise
            moved = recovery.move_damaged_aside(path)
            log.error("journal damaged and moved aside", moved_to=str(moved), cause=error.message)
            return Journal(path, keys)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Give what is created meanwhile fewer permissions."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _collect_rarely() -> None:
    """Have Python look for garbage in cycles rarely, and never among what lives as long as the daemon.

    A look takes milliseconds where the tables of large sandboxes are, and it would
    come just where many objects are made: in the middle of a freeze, say.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def _not_yet(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    raise AssertionError("spawned before the daemon runs")


@contextlib.asynccontextmanager
async def _tasks(deps: Deps) -> AsyncIterator[asyncio.TaskGroup]:
    """Own every task of the daemon. Leaving waits for captures and commits in flight."""
    async with asyncio.TaskGroup() as group:
        deps.spawn = group.create_task
        yield group


async def _run(deps: Deps, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
    config = deps.config
    started_ns = time.time_ns()
    last_boot, this_boot = deps.journal.meta("boot_id"), boot_id()
    unclean = deps.journal.meta("stopped") == "no"
    await blocking.run(deps.pools.journal, deps.journal.set_meta, "stopped", "no")
    await blocking.run(deps.pools.journal, deps.journal.set_meta, "boot_id", this_boot)
    deps.journal.subscribe(_log_event)
    registry, done = await recovery.recover(deps)
    if last_boot not in (None, this_boot):
        done.insert(0, "the host was rebooted: sandboxes are compared by content before they are trusted")
    elif unclean:
        done.insert(0, "the daemon had not stopped in order: sandboxes are compared by content")
    for sentence in done:
        log.info("recovered", what=sentence)
    unavailable = [deps.processes.degraded] if deps.processes.degraded else []
    degraded: list[str] = []
    service = TurnkeepService(
        registry, Started(version("turnkeep"), started_ns, tuple(done), lambda: unavailable + degraded)
    )
    audit = AuditLog(config.state_path / "audit.jsonl")
    server, health, front = await _listen(config, service, audit)
    background = [
        group.create_task(_follow_engine(registry, degraded)),
        group.create_task(_close_forgotten_turns(registry)),
    ]
    _notify_systemd(f"READY=1\nSTATUS=serving {config.address}\nMAINPID={os.getpid()}")
    log.info(
        "serving",
        address=config.address,
        state_dir=config.state_dir,
        pid=os.getpid(),
        sandboxes=len(registry.sandboxes),
    )
    _collect_rarely()
    sys.setswitchinterval(_SWITCH_S)
    await stop.wait()
    log.info("stopping")
    _notify_systemd("STOPPING=1")
    await health.enter_graceful_shutdown()
    # WatchEvents never ends by itself and would use up the whole grace period.
    service.end_watches()
    await server.stop(_GRACE_S)
    await front.close()
    audit.close()
    for task in background:
        task.cancel()
    deps.engine.close()
    await _settle(registry)
    await blocking.run(deps.pools.journal, deps.journal.set_meta, "stopped", "yes")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_socket_path(config))
    log.info("stopped")


def _log_event(event: Event) -> None:
    """Log every event of the journal as one line."""
    fields = {"turn": event.turn} if event.turn else {}
    log.info(event.kind, sandbox=event.sandbox_name, message=event.message, sequence=event.sequence, **fields)


async def _settle(registry: Registry) -> None:
    """Wait for captures and restores in flight."""
    for sandbox in registry.sandboxes.values():
        async with sandbox.holding():
            if sandbox.container is not None:
                sandbox.container.close()


async def _listen(
    config: Config, service: TurnkeepService, audit: AuditLog
) -> tuple[grpc.aio.Server, HealthServicer, Front]:
    path = _socket_path(config)
    _make_way(path)
    inner = config.state_path / "inner.sock"
    inner.unlink(missing_ok=True)
    front = Front(inner, config.access)
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(), Gatekeeper(front.caller, config.access.quota, audit)],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ],
    )
    pb_grpc.add_TurnkeepServicer_to_server(service, server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    await health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    try:
        with _umask(0o177):
            server.add_insecure_port(f"unix:{inner}")
            await server.start()
    except RuntimeError as error:
        raise Conflict(f"cannot listen: {error}", object=str(inner)) from error
    await front.listen_on_socket(_bound_socket(config, path))
    if config.access.listen:
        await front.listen_on_tcp()
        log.info("serving TLS", listen=config.access.listen, port=front.tcp_port)
    return server, health, front


def _bound_socket(config: Config, path: Path) -> socket.socket:
    """Return a socket at a path, with its owner and mode set before anybody may connect."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        with _umask(0o177):
            bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise Conflict(f"cannot listen: {error}", object=str(path)) from error
    if config.socket_group:
        try:
            os.chown(path, 0, grp.getgrnam(config.socket_group).gr_gid)
        except KeyError as error:
            raise InvalidRequest(f"there is no group {config.socket_group}", object="socket_group") from error
    os.chmod(path, config.socket_mode)
    return bound


def _socket_path(config: Config) -> Path:
    return Path(config.address.removeprefix("unix:").removeprefix("//"))


def _make_way(path: Path) -> None:
    """Remove a socket that nobody serves.

    Raises:
        Conflict: somebody does, or it is no socket.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise Conflict("there is something that is no socket", object=str(path))
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise Conflict(
        "another daemon listens there", object=str(path), hint="TURNKEEP_ADDRESS names another socket"
    )


async def _follow_engine(registry: Registry, degraded: list[str]) -> None:
    """Follow Docker's events for ever; after each gap, look at everything."""
    while True:
        events: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
        try:
            _EventReader(registry.deps.engine, events)
            await registry.reconcile()
            degraded.clear()
            while (event := await events.get()) is not None:
                await registry.on_event(event)
        except EngineUnavailable as error:
            degraded[:] = [f"{error.message}; containers are not followed"]
            log.warning("engine lost", reason=error.message)
        except TurnkeepError as error:
            log.error("event not handled", reason=error.message, object=error.object)
        except Exception:
            # The edge of the task group: one event that we do not understand
            # must not end the daemon. What it meant is found by looking again.
            log.exception("event not handled")
        await asyncio.sleep(_EVENTS_RETRY_S)


class _EventReader:
    """A thread that hands the engine's events over to the loop, and None at their end."""

    def __init__(self, engine: Engine, events: asyncio.Queue[ContainerEvent | None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._stream = engine.events()
        # Not waited for at the end: it may hang in a read until the engine
        # says something, and holds nothing.
        threading.Thread(target=self._read, name="engine-events", daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except (TurnkeepError, RuntimeError) as error:
            log.debug("event stream ended", cause=str(error))
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, None)


async def _close_forgotten_turns(registry: Registry) -> None:
    """Close turns whose harness has been silent for longer than the limit."""
    while True:
        limit_ns = registry.deps.config.limits.turn_timeout_s * 1e9
        for sandbox in list(registry.sandboxes.values()):
            turn = sandbox.open_turn
            if turn is not None and time.time_ns() - turn.began_at_ns > limit_ns:
                try:
                    await sandbox.abandon_open("its harness did not end it in time")
                except TurnkeepError as error:
                    log.error("turn not closed", sandbox=sandbox.record.name, reason=error.message)
        await asyncio.sleep(min(_SWEEP_S, registry.deps.config.limits.turn_timeout_s))


def _notify_systemd(state: str) -> None:
    """Tell systemd, if it asked (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(address)
        sock.sendall(state.encode())
