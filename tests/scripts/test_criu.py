"""scripts/criu: what it takes, what it leaves alone, and what it says when nothing works."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
CACHE = Path(os.environ.get("TURNKEEP_CACHE_DIR", "/var/cache/turnkeep")) / "criu"
UNREACHABLE = "http://127.0.0.1:9/debian"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root")

FAILING = """#!/bin/sh
[ "$1" = --version ] && echo "Version: 9.9" && exit
log=$(echo "$*" | sed 's/.*-D \\([^ ]*\\).*/\\1/')/log
echo "(00.001) Error (criu/vdso.c:1): vdso: no such area" >"$log"
exit 1
"""


class Host:
    """A host whose own CRIU fails, with folders of its own and no way to a mirror."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "criu"
        self.cache = folder / "cache" / "criu"
        self.failing = folder / "bin" / "criu"
        self.failing.parent.mkdir()
        self.failing.write_text(FAILING)
        self.failing.chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "CI"},
            "PATH": f"{self.failing.parent}:{os.environ['PATH']}",
            "TURNKEEP_CRIU_ROOT": str(self.root),
            "TURNKEEP_CACHE_DIR": str(self.cache.parent),
            "TURNKEEP_CRIU_MIRROR": UNREACHABLE,
            "TURNKEEP_REQUIRE_CRIU": "",
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/criu."""
        return subprocess.run(
            [SCRIPTS / "criu", *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def packages(host: Host) -> Path:
    """The host's cache, filled from this machine's."""
    if not (CACHE / "SHA256SUMS").exists():
        pytest.skip(f"no packages of CRIU in {CACHE}: the host's own works")
    shutil.copytree(CACHE, host.cache)
    return host.cache


def test_the_self_test_quotes_what_criu_said(host: Host) -> None:
    done = host.run("--self-test", str(host.failing))
    assert done.returncode == 1
    assert done.stdout == "dump of a process fails: (00.001) Error (criu/vdso.c:1): vdso: no such area\n"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/nowhere/criu", "there is no program /nowhere/criu\n"),
        ("/bin/true", "it does not say its version: "),
    ],
)
def test_the_self_test_of_what_is_no_criu(host: Host, program: str, said: str) -> None:
    done = host.run("--self-test", program)
    assert (done.returncode, done.stdout[: len(said)]) == (1, said)


def test_without_any_it_says_what_was_tried_and_how_to_get_one(host: Host) -> None:
    done = host.run()
    assert done.returncode == 0
    assert f"{host.failing} does not work here: dump of a process fails:" in done.stdout
    assert "downloading from Debian's unstable: E: Failed to fetch" in done.stdout
    assert "put CRIU 4.2 or later into the PATH" in done.stdout
    assert done.stdout.endswith("warning: without it Turnkeep keeps files only, no processes\n")
    assert not host.root.exists()
    assert list(host.cache.iterdir()) == []


@pytest.mark.parametrize("variable", ["CI", "TURNKEEP_REQUIRE_CRIU"])
def test_without_any_it_fails_where_it_is_required(host: Host, variable: str) -> None:
    done = host.run(**{variable: "1"})
    assert done.returncode == 1
    assert done.stdout.endswith("CRIU is required here\n")


def test_a_folder_with_other_things_is_left_alone(host: Host, packages: Path) -> None:
    host.root.mkdir()
    (host.root / "notes").write_text("mine")
    assert f"{host.root} (TURNKEEP_CRIU_ROOT) holds something else" in host.run().stdout
    assert [path.name for path in host.root.iterdir()] == ["notes"]


def test_the_cache_makes_one_without_network_and_a_damaged_one_is_replaced(
    host: Host, packages: Path
) -> None:
    assert host.run().stdout.endswith(f"is in {host.root} and works\n")
    # Leftovers of runs that were killed.
    Path(f"{host.root}.new.abc123").mkdir()
    next(host.root.glob("usr/lib/*/libc.so.6")).write_bytes(b"no library")
    done = host.run()
    assert f"{host.root}/bin/criu does not work here: " in done.stdout
    assert done.stdout.endswith(f"is in {host.root} and works\n")
    assert host.run().stdout.endswith(f"works ({host.root}/bin/criu); nothing to do\n")
    assert sorted(path.name for path in host.root.parent.iterdir()) == ["bin", "cache", "criu"]


def test_nobody_but_root_may_write_to_it(host: Host, packages: Path) -> None:
    subprocess.run(["sh", "-c", f"umask 000; {SCRIPTS / 'criu'}"], env=host.environment, check=True)
    for path in [host.root, *host.root.rglob("*")]:
        st = path.lstat()
        assert (st.st_uid, st.st_gid) == (0, 0)
        assert path.is_symlink() or not st.st_mode & 0o022


def test_it_needs_nothing_of_the_file_system_it_runs_in(host: Host, packages: Path) -> None:
    host.run()
    empty = host.root.parent / "empty"
    shutil.copytree(host.root, empty, symlinks=True)
    [loader] = empty.glob("usr/lib/*/ld-linux*")
    libraries = f"/{loader.parent.relative_to(empty)}"
    command = [f"{libraries}/{loader.name}", "--library-path", libraries, "/usr/sbin/criu", "--version"]
    done = subprocess.run(["chroot", empty, *command], capture_output=True, text=True, check=True)
    assert (done.stdout[:9], done.stderr) == ("Version: ", "")


@pytest.mark.parametrize("damage", ["content", "missing", "list", "writable"])
def test_packages_that_are_not_as_they_were_downloaded_are_not_used(
    host: Host, packages: Path, damage: str
) -> None:
    package = next(packages.glob("libc6_*.deb"))
    if damage == "content":
        package.write_bytes(package.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        package.unlink()
    elif damage == "list":
        (packages / "SHA256SUMS").write_text("")
    else:
        packages.chmod(0o777)
    done = host.run()
    assert "downloading CRIU from Debian's unstable" in done.stdout
    assert not host.root.exists()
