"""Where CRIU is, and a copy of it that a sandbox cannot get at.

CRIU runs inside hostile namespaces. What it would look up there by path decides
what runs with the host's full rights, so none of it is left to chance:

- program, loader and libraries lie on a read-only file system in memory that no
  path leads to; it is the working folder, and all names are relative to it;
- the loader's `/etc/ld.so.preload` and CRIU's `/run/criu.kdat` (its cache of what
  the kernel can do, read back without a check) are absolute paths in these
  files: in our copy the first is empty, the second relative to the images;
- `--inhibit-cache`, `--no-default-config` and an empty `--libdir` close the
  loader's cache, CRIU's configuration files and its plugins; the environment is
  empty but for a PATH that leads nowhere, because CRIU would start `sh` and
  `iptables` from it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from turnkeep.errors import Unsupported
from turnkeep.process.mounts import make_read_only, memory_file_system

PREFIX = "/opt/turnkeep/criu"
_TOOLS_BYTES = 256 * 1024 * 1024
_TIMEOUT_S = 20.0
_NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Criu:
    """A CRIU on this host. `loader` and `library_path` start it without the host's own."""

    program: str
    loader: str
    library_path: str
    version: str
    folder: str
    """Where a `criu` lies that others can start: runc finds it by PATH."""


def find_criu(configured: str = "") -> Criu | None:
    """Return the CRIU to use: the configured prefix or program, ours, or the host's; None without one.

    Raises:
        Unsupported: the configured one is not there, or does not start.
    """
    candidates = [configured] if configured else [PREFIX, shutil.which("criu") or ""]
    for candidate in filter(None, candidates):
        found = _look_at(Path(candidate))
        if found is not None:
            return found
    if configured:
        raise Unsupported("there is no CRIU that starts", object=configured, hint="see process.criu")
    return None


def _look_at(path: Path) -> Criu | None:
    program = path / "usr/sbin/criu" if path.is_dir() else path
    if not program.is_file():
        return None
    loader = _interpreter(program)
    if loader is None:
        return None
    library_path = ""
    if path.is_dir():
        loader = str(path / loader.lstrip("/"))
        if not os.path.exists(loader):
            loader = str(path / "usr" / Path(loader).relative_to(path))
        folders = sorted({str(each.parent) for each in path.glob("usr/lib/**/*.so*")})
        library_path = ":".join(folders)
    command = [loader, "--inhibit-cache", "--library-path", library_path, str(program), "--version"]
    if not library_path:
        command = [str(program), "--version"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"Version: (\S+)", said)
    if version is None:
        return None
    folder = str(path / "bin" if path.is_dir() else path.parent)
    return Criu(
        program=str(program),
        loader=loader,
        library_path=library_path,
        version=version[1],
        folder=folder,
    )


def _interpreter(program: Path) -> str | None:
    """Return the loader that an ELF program asks for."""
    with open(program, "rb") as file:
        found = re.search(rb"/lib[0-9a-z/]*/ld-linux[-0-9a-z_]*\.so\.\d", file.read())
    return found[0].decode() if found else None


def make_tools(criu: Criu) -> int:
    """Copy CRIU with all that it needs onto a read-only file system in memory; return its root.

    It holds `ld.so`, `criu`, `lib/`, `null` (the device) and an empty folder.

    Raises:
        Unsupported: a library is missing, or the loader is not one that can be made safe.
        OSError: copying failed.
    """
    tools = memory_file_system(_TOOLS_BYTES)
    try:
        for name in ("lib", _NOWHERE):
            os.mkdir(name, 0o755, dir_fd=tools)
        for name, path in _libraries(criu).items():
            _copy(path, tools, f"lib/{name}")
        _copy(criu.loader, tools, "ld.so", (b"/etc/ld.so.preload\0", b"\0"))
        _copy(criu.program, tools, "criu", (b"/run/criu.kdat\0", b"criu.kdat\0"))
        os.mknod("null", 0o20666, os.makedev(1, 3), dir_fd=tools)
        make_read_only(tools)
    except BaseException:
        os.close(tools)
        raise
    return tools


def _libraries(criu: Criu) -> dict[str, str]:
    options = ["--library-path", criu.library_path] if criu.library_path else []
    command = [criu.loader, *options, "--list", criu.program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode or "not found" in done.stdout:
        missing = [line.strip() for line in done.stdout.splitlines() if "not found" in line]
        raise Unsupported(
            f"CRIU's libraries are not complete: {', '.join(missing) or done.stderr.strip()}",
            object=criu.program,
            hint="install CRIU again: make host",
        )
    found = re.findall(r"^\s*(\S+) => (\S+)", done.stdout, re.MULTILINE)
    return {name: path for name, path in found if not name.startswith(("/", "ld-linux"))}


def _copy(source: str, tools: int, target: str, edit: tuple[bytes, bytes] | None = None) -> None:
    content = Path(source).read_bytes()
    if edit is not None:
        before, after = edit
        if before not in content:
            raise Unsupported(
                f"it does not name {before[:-1].decode()}, so that it cannot be kept from reading it",
                object=source,
                hint="make host installs a CRIU that is known",
            )
        content = content.replace(before, after.ljust(len(before), b"\0"))
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755, dir_fd=tools)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def command(socket_fd: int) -> list[str]:
    """Return the command line that serves one caller on a socket, from the images' folder."""
    loader = ["tools/ld.so", "--inhibit-cache", "--library-path", "tools/lib", "tools/criu"]
    options = ["--no-default-config", "--libdir", f"../tools/{_NOWHERE}", "--network-lock", "skip"]
    return [*loader, *options, "swrk", str(socket_fd)]


ENVIRONMENT = {"PATH": "/proc/self/nowhere", "TZ": "UTC0", "GNUTLS_NO_IMPLICIT_INIT": "1", "LC_ALL": "C"}
