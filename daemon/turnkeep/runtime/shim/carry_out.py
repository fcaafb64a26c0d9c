"""Carries out a restore order: what `turnkeep-runtime` does when `create` finds one.

A script of its own, started by the shim without the package:

    carry_out.py RUNC ORDERS WORD...

WORDs are what the engine said to the runtime. It takes the order (no second
`create` will find it), makes the bundle fit for CRIU, and has runc restore the
container. When this ends with 0, the container runs and `ORDERS/ID.restored`
tells `start` so. When it fails, nothing is left of the container or the order,
and the lines of CRIU's log that matter are in runc's log, from where the engine
takes what it says to whoever asked.

What is not understood, or not to be trusted, is passed on to runc unchanged.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

VERSION = 1
TAKEN, RESTORED, CRIU_CONFIG = ".taken", ".restored", ".criu"
LOG, REASON = "restore.log", "refused"
STAGE_SCRIPT = "at-stage"

_MAX_ORDER_BYTES = 64 * 1024
_GLOBAL_VALUES = frozenset({"--root", "--log", "--log-format", "--criu", "--rootless"})
_GLOBAL_FLAGS = frozenset({"--debug", "--systemd-cgroup"})
_CREATE_VALUES = frozenset({"--bundle", "-b", "--console-socket", "--pid-file"})
_CREATE_FLAGS = frozenset({"--no-pivot", "--no-new-keyring"})
_CGROUP_MODES = frozenset({"soft", "full", "strict"})
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING, _PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 1, 36
_CLONE_NEWNS, _MS_REC_SLAVE = 0x00020000, 0x4000 | 1 << 19


class Refused(Exception):
    """The container cannot be restored; the text says why."""


@dataclass(slots=True)
class Call:
    """A `create` as the engine said it. `before` are the words that came before that one."""

    before: Sequence[str] = ()
    globals: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    container_id: str = ""

    @property
    def bundle(self) -> Path:
        """Where the container's config.json is."""
        return Path(self.options.get("--bundle", self.options.get("-b", ".")))


def main(arguments: Sequence[str]) -> int:
    """Restore the container that the words speak of, or pass them on to runc."""
    runc, orders, words = arguments[0], arguments[1], arguments[2:]
    call = parse(words)
    order = take(orders, call.container_id) if call is not None else None
    if call is None or order is None:
        _pass_on(runc, words)
    traces = [Path(orders, call.container_id + suffix) for suffix in (TAKEN, CRIU_CONFIG)]
    started = Path(orders, call.container_id + RESTORED)
    status = _supervised(lambda: _carry_out(runc, call, order, traces[1], started))
    if status:
        started.unlink(missing_ok=True)
        _remove_container(runc, call)
    for trace in traces:
        trace.unlink(missing_ok=True)
    return status


def _carry_out(runc: str, call: Call, order: Mapping[str, Any], criu_config: Path, started: Path) -> int:
    try:
        if order.get("version") != VERSION:
            raise Refused("the order is of another version of Turnkeep; run: turnkeep install")
        _check_images(order)
        _prepare_bundle(call, order, criu_config)
        # Before the processes run, not after: without it `start` would fail on them.
        started.touch(mode=0o600)
        _restore(runc, call, order)
    except (Refused, OSError, ValueError, KeyError, TypeError) as error:
        _report(call, f"turnkeep: could not restore the container: {error}")
        return 1
    return 0


def _supervised(work: Callable[[], int]) -> int:
    """Do it in a process of its own. If that fails, or this one is killed, nothing of it runs on.

    A CRIU without a caller waits for ever, and what it has half made with it.
    """
    # What is orphaned comes to us, instead of the engine's shim; what was restored
    # goes on to that one when we end.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, _cut_off)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        os._exit(work() if os.getppid() == supervisor else 1)
    _, status = os.waitpid(pid, 0)
    if status:
        _kill_children()
    return 1 if status else 0


def _cut_off(*_: object) -> NoReturn:
    _kill_children()
    os._exit(1)


def parse(words: Sequence[str]) -> Call | None:
    """Take a `create` apart; None for what is not known here."""
    call = Call()
    rest = iter(words)
    if _options(rest, _GLOBAL_VALUES, _GLOBAL_FLAGS, call.globals) != "create":
        return None
    behind = list(rest)
    call.before = words[: len(words) - len(behind) - 1]
    rest = iter(behind)
    container_id = _options(rest, _CREATE_VALUES, _CREATE_FLAGS, call.options)
    if container_id is None or next(rest, None) is not None:
        return None
    call.container_id = container_id
    return call


def _options(
    rest: Iterator[str], values: frozenset[str], flags: frozenset[str], found: dict[str, str]
) -> str | None:
    """Read options up to the first word that is none, and return that."""
    for word in rest:
        name, equals, value = word.partition("=")
        if name in values:
            found[name] = value if equals else next(rest, "")
        elif word in flags:
            found[word] = ""
        else:
            return None if word.startswith("-") else word
    return None


def take(orders: str, container_id: str) -> dict[str, Any] | None:
    """Take the order for a container; None if there is none that may be believed.

    Whatever it was, nobody finds it again.
    """
    source, taken = os.path.join(orders, container_id), os.path.join(orders, container_id + TAKEN)
    if not _is_ours(os.lstat(orders), stat.S_IFDIR, 0o077):
        return None
    try:
        # A name on a file system in memory: nothing here has to survive a power cut.
        os.rename(source, taken)  # noqa: TID251
    except OSError:
        return None
    order = _read(taken)
    if order is None or order.get("container_id") != container_id or is_expired(order):
        with contextlib.suppress(OSError):
            os.unlink(taken)
        return None
    return order


def _read(path: str) -> dict[str, Any] | None:
    """Return what is in an order's file; None if somebody else could have written it."""
    with contextlib.suppress(OSError, ValueError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if _is_ours(os.fstat(fd), stat.S_IFREG, 0o022):
                order = json.loads(os.read(fd, _MAX_ORDER_BYTES))
                return order if isinstance(order, dict) else None
        finally:
            os.close(fd)
    return None


def is_expired(order: Mapping[str, Any]) -> bool:
    """Whether an order is of an earlier boot, or too old."""
    try:
        current = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return bool(order["boot_id"] != current or order["expires_ns"] < now_ns())
    except (KeyError, TypeError):
        return True


def now_ns() -> int:
    """Return the time that orders are measured by: it goes on in a suspend, and nobody sets it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _is_ours(status: os.stat_result, kind: int, forbidden: int) -> bool:
    owned = status.st_uid == os.geteuid() and not status.st_mode & forbidden
    return owned and stat.S_IFMT(status.st_mode) == kind


def _check_images(order: Mapping[str, Any]) -> None:
    images = order["image_path"]
    if not _is_ours(os.lstat(images), stat.S_IFDIR, 0o022):
        raise Refused(f"{images} has to be a folder that only root can write to")


def _prepare_bundle(call: Call, order: Mapping[str, Any], criu_config: Path) -> None:
    """Give CRIU mount sources that are no symlinks, and what runc has no option for."""
    options = order["options"]
    path = call.bundle / "config.json"
    config = json.loads(path.read_bytes())
    _take_oom_score(config)
    for mount in config.get("mounts") or ():
        source = mount.get("source", "")
        # Debian's docker-init is a symlink, and CRIU fails at it.
        if _is_bind(mount) and os.path.isabs(source):
            mount["source"] = os.path.realpath(source)
    lines = [] if options["tcp"] == "established" else ["tcp-close"]
    if options["manage_cgroups"] not in _CGROUP_MODES:
        if {"type": "cgroup"} in config["linux"]["namespaces"]:
            raise Refused("without its cgroups the container would not get its cgroup namespace back")
        # runc learned to say this only in version 1.2.
        lines.append(f"manage-cgroups={options['manage_cgroups']}")
    lines.append(f'action-script "{Path(__file__).with_name(STAGE_SCRIPT)}"')
    criu_config.write_text("".join(f"{line}\n" for line in lines))
    # runc looks for it here. It also keeps /etc/criu/runc.conf out of this.
    config.setdefault("annotations", {})["org.criu.config"] = str(criu_config)
    new = path.with_name("config.json.turnkeep")
    new.write_text(json.dumps(config))
    os.replace(new, path)  # noqa: TID251  # the engine writes the bundle anew at each start


def _take_oom_score(config: Mapping[str, Any]) -> None:
    """Take on the container's score: CRIU leaves it as inherited where it was 0."""
    score = config["process"].get("oomScoreAdj", 0)
    # Only root without CAP_SYS_RESOURCE may not lower it.
    with contextlib.suppress(PermissionError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def restore_words(call: Call, order: Mapping[str, Any]) -> list[str]:
    """Return the words that make runc restore what it was told to create."""
    options = order["options"]
    words = [*call.before, "restore", "--detach", "--no-subreaper"]
    words += ["--image-path", order["image_path"], "--work-path", order["work_path"]]
    for name, value in call.options.items():
        if name == "--no-pivot":
            words.append(name)
        elif name != "--no-new-keyring":
            words += [name, value]
    if options["tcp"] == "established":
        words.append("--tcp-established")
    for name in ("ext_unix_sk", "shell_job", "file_locks"):
        if options[name]:
            words.append(f"--{name.replace('_', '-')}")
    if options["manage_cgroups"] in _CGROUP_MODES:
        words += ["--manage-cgroups-mode", options["manage_cgroups"]]
    return [*words, call.container_id]


def _restore(runc: str, call: Call, order: Mapping[str, Any]) -> None:
    """Have runc restore it. Its standard streams are the container's, as in `create`."""
    work = Path(order["work_path"])
    work.mkdir(mode=0o700, exist_ok=True)
    for name in (LOG, REASON):
        (work / name).unlink(missing_ok=True)
    if "--no-new-keyring" not in call.options:
        _leave_keyring(call.container_id)
    limit_s = float(order["options"]["limit_s"])
    settings = {
        "TURNKEEP_PYTHON": sys.executable,
        "TURNKEEP_BUNDLE": str(call.bundle.absolute()),
        "TURNKEEP_REASON": str(work / REASON),
    }
    process = subprocess.Popen(
        [runc, *restore_words(call, order)],
        env={**os.environ, **settings},
        start_new_session=True,
        preexec_fn=_set_apart,
    )
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise Refused(f"CRIU did not finish within {limit_s:g} s; its log: {work / LOG}") from None
    if status:
        lines = (
            _refusal(work)
            or log_lines(work / LOG)
            or [_last_error(call) or f"runc restore ended with {status}"]
        )
        raise Refused(f"{'; '.join(lines)} (all of it: {work / LOG})")


def _set_apart() -> None:
    """Have runc keep its mounts to itself, and let it end with its parent.

    While it restores, it mounts the container's root file system below its own
    records (`criu-root`). Killed, it leaves that behind, and the engine's
    clean-up, a `runc delete --force`, then deletes *through* it every file of the
    container. A mount namespace of its own is gone with the last process in it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_SLAVE), None):
        raise OSError(ctypes.get_errno(), "no mount namespace for runc")


def _refusal(work: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [(work / REASON).read_text()]
    return []


def _leave_keyring(container_id: str) -> None:
    """Join a new session keyring, as runc does for a container that it creates.

    The restored processes inherit it. Without this they would have the engine's.
    """
    number = _KEYCTL.get(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"_ses.{container_id}".encode()
    if number is None or libc.syscall(ctypes.c_long(number), _KEYCTL_JOIN_SESSION_KEYRING, name) < 0:
        code = ctypes.get_errno() if number is not None else 0
        if code != 38:
            raise Refused(f"no session keyring of its own for the container: {os.strerror(code)}")


def _kill_children() -> None:
    """Kill all that descends from this process, and wait until it is gone."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in _children(os.getpid()):
                _kill_tree(child)
            os.wait()


def _kill_tree(pid: int) -> None:
    """Kill a process and all that descends from it; it stands while its children are looked up."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        for child in _children(pid):
            _kill_tree(child)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


_NOISE = ("Restoring FAILED", "Unable to create tun", "RLIMIT_NOFILE for self", "cgroupd: recv req error")
_SHOWN_LINES = 4


def log_lines(log: Path) -> list[str]:
    """Return the first lines of CRIU's log that say what went wrong."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    errors = [line for line in text.splitlines() if "Error" in line]
    useful = [line for line in errors if not any(noise in line for noise in _NOISE)]
    return [re.sub(r"^\([\d.]+\)\s*", "", line).strip() for line in useful[:_SHOWN_LINES]]


def _last_error(call: Call) -> str:
    """Return what runc said last in its log, if that is one for machines."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        line = Path(call.globals["--log"]).read_text(errors="replace").splitlines()[-1]
        return str(json.loads(line)["msg"])
    return ""


def _remove_container(runc: str, call: Call) -> None:
    """Remove what a failed restore left of the container."""
    root = call.globals.get("--root", "/run/runc")
    if os.path.isdir(os.path.join(root, call.container_id)):
        # Without the engine's log: what it takes from there is the last error.
        command = [runc, "--root", root, "delete", "--force", call.container_id]
        # Its streams would be the container's.
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)


def _report(call: Call, text: str) -> None:
    """Say it where runc would have: in its log, else on standard error."""
    path = call.globals.get("--log")
    if path is None:
        print(text, file=sys.stderr)
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"level": "error", "msg": text, "time": now})
    if call.globals.get("--log-format") != "json":
        line = f'time="{now}" level=error msg={json.dumps(text)}'
    with open(path, "a") as log:
        log.write(line + "\n")


def _pass_on(runc: str, words: Sequence[str]) -> NoReturn:
    os.execv(runc, [runc, *words])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
