"""`turnkeep install` and `uninstall` on an engine of our own, which reads its file while it runs."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from turnkeep.errors import Conflict, EngineUnavailable, InvalidRequest, Unsupported
from turnkeep.runtime import dockerd, registration
from turnkeep.runtime.daemon_json import BACKUP
from turnkeep.runtime.registration import RuntimeEngine, Settings

from tests.conftest import IMAGE
from tests.runtime.engines import LIMIT_S, OwnEngine

pytestmark = pytest.mark.docker

TURNKEEP = str(Path(sys.executable).with_name("turnkeep"))
BEFORE = '{\n    "debug":   true,\n    "runtimes": {"other": {"path": "/bin/other"}}\n}\n'

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def file(own: OwnEngine) -> Iterator[Path]:
    """The engine's configuration, which is put back and read again afterwards."""
    kept = own.daemon_json.read_text()
    own.daemon_json.write_text(BEFORE)
    yield own.daemon_json
    for container in own.client.containers.list(all=True):
        container.remove(force=True)
    before = json.loads(kept)
    # An engine that reads of no runtimes keeps those it had.
    own.daemon_json.write_text(json.dumps({"runtimes": {}, **before}))
    found = dockerd.find_dockerd(own.host)
    assert found is not None
    known = before.get("runtimes", {}).get("turnkeep", {}).get("path")
    assert dockerd.reload(found, lambda: path_known(own) == known, LIMIT_S)
    own.daemon_json.write_text(kept)


@pytest.fixture
def target(own: OwnEngine, tmp_path: Path) -> Settings:
    return Settings(folder=tmp_path / "lib", orders=tmp_path / "orders")


@pytest.fixture
def connected(own: OwnEngine) -> Iterator[RuntimeEngine]:
    with contextlib.closing(RuntimeEngine(own.host)) as made:
        yield made


@pytest.fixture
def cli(own: OwnEngine, tmp_path: Path) -> Cli:
    def call(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": own.host, "TURNKEEP_CONFIG": os.devnull}
        words = [TURNKEEP, command, "--no-unit", "--runtime-dir", str(tmp_path / "lib"), *options]
        return subprocess.run(
            words, env=environment, check=False, capture_output=True, text=True, timeout=LIMIT_S
        )

    return call


def path_known(own: OwnEngine) -> str | None:
    found: dict[str, Any] = own.client.info()["Runtimes"].get("turnkeep", {})
    return found.get("path")


def test_installed_and_uninstalled_while_the_engine_runs(
    own: OwnEngine, file: Path, cli: Cli, tmp_path: Path
) -> None:
    pid = own.pid
    done = cli("install")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the engine knows the runtime 'turnkeep' now\n")
    assert path_known(own) == str(tmp_path / "lib" / "turnkeep-runtime")
    assert json.loads(file.read_text())["runtimes"]["other"] == {"path": "/bin/other"}
    installed = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "lib").iterdir()}
    assert installed == {
        "turnkeep-runtime": 0o755,
        "at-stage": 0o755,
        "carry_out.py": 0o644,
        "put_right.py": 0o644,
    }
    output = own.client.containers.run(IMAGE, ["echo", "it runs"], runtime="turnkeep", remove=True)
    assert output == b"it runs\n"

    again = cli("install")
    assert (again.returncode, again.stdout) == (
        0,
        "the engine knows the runtime 'turnkeep'; nothing to do\n",
    )

    done = cli("uninstall")
    assert done.returncode == 0, done.stderr
    assert path_known(own) is None
    assert file.read_text() == BEFORE
    assert not file.with_name(file.name + BACKUP).exists()
    assert not (tmp_path / "lib").exists()
    assert own.pid == pid

    again = cli("uninstall")
    assert (again.returncode, again.stdout) == (
        0,
        "the runtime 'turnkeep' is not installed; nothing to do\n",
    )


def test_the_shim_is_brought_up_to_date(file: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("install").returncode == 0
    shim = tmp_path / "lib" / "turnkeep-runtime"
    written = shim.read_text()
    shim.write_text("#!/bin/sh\nexit 1\n")
    shim.chmod(0o700)
    assert cli("install").stdout == f"wrote {shim}\n"
    assert shim.read_text() == written


def test_not_while_containers_use_it(own: OwnEngine, file: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("install").returncode == 0
    box = own.client.containers.run(IMAGE, name="tk-user", runtime="turnkeep", detach=True)
    before = file.read_text()
    done = cli("uninstall")
    assert (done.returncode, "containers use the runtime 'turnkeep': tk-user" in done.stderr) == (4, True)
    assert file.read_text() == before
    done = cli("uninstall", "--force")
    assert done.returncode == 0
    assert done.stdout.endswith("turnkeep-runtime stays, for tk-user\n")
    assert file.read_text() == BEFORE
    assert box.exec_run("true").exit_code == 0
    box.remove(force=True)
    assert cli("uninstall").returncode == 0
    assert not (tmp_path / "lib").exists()


def test_anothers_runtime_of_the_name(own: OwnEngine, file: Path, cli: Cli, tmp_path: Path) -> None:
    text = '{"runtimes": {"turnkeep": {"path": "/bin/other"}}}'
    file.write_text(text)
    for command in ("install", "uninstall"):
        done = cli(command)
        assert (done.returncode, "another runtime 'turnkeep'" in done.stderr) == (4, True)
        assert file.read_text() == text
    assert not (tmp_path / "lib").exists()


def test_a_damaged_file(file: Path, connected: RuntimeEngine, own: OwnEngine, target: Settings) -> None:
    file.write_text('{"debug": true,}')
    with pytest.raises(InvalidRequest):
        registration.register(connected, own.host, target)
    assert file.read_text() == '{"debug": true,}'
    assert not target.folder.exists()


def test_a_file_that_the_engine_refuses_is_put_back(
    file: Path, connected: RuntimeEngine, own: OwnEngine, target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine reads nothing of a file with a key that it does not know."""
    text = '{"no-such-key": 1}'
    file.write_text(text)
    monkeypatch.setattr(registration, "_RELOAD_S", 1.0)
    with pytest.raises(EngineUnavailable, match="did not take"):
        registration.register(connected, own.host, target)
    assert file.read_text() == text


def test_another_file_than_the_engine_reads(
    file: Path, connected: RuntimeEngine, own: OwnEngine, target: Settings, tmp_path: Path
) -> None:
    settings = Settings(folder=target.folder, daemon_json=tmp_path / "daemon.json")
    with pytest.raises(Conflict, match="reads another file"):
        registration.register(connected, own.host, settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_without_an_engine(tmp_path: Path, target: Settings) -> None:
    """The file is written all the same; only who uses the runtime cannot be asked."""
    host = f"unix://{tmp_path}/docker.sock"
    file = tmp_path / "etc" / "daemon.json"
    settings = Settings(folder=target.folder, daemon_json=file)
    with contextlib.closing(RuntimeEngine(host)) as nobody:
        said = registration.register(nobody, host, settings)
        assert said[-1] == "no engine runs here; it will know the runtime when it starts"
        with pytest.raises(EngineUnavailable):
            registration.unregister(nobody, host, settings)
        registration.unregister(nobody, host, settings, force=True)
    gc.collect()  # the SDK leaves sockets open that it could not connect
    assert list(file.parent.iterdir()) == []
    assert not target.folder.exists()


def test_what_an_engine_was_started_with(own: OwnEngine, tmp_path: Path) -> None:
    found = dockerd.find_dockerd(own.host)
    assert found is not None
    assert (found.pid, found.config_file, found.added_runtimes) == (own.pid, own.daemon_json, ())
    # The same by its pid file, as where a service manager listens for it.
    assert dockerd.find_dockerd(own.host, own.folder / "dockerd.pid") == found

    # A program of an engine's name, for an engine would not start with these.
    fake, pid_file = tmp_path / "dockerd", tmp_path / "pid"
    shutil.copy(os.path.realpath(sys.executable), fake)
    flags = ["--add-runtime", "a=/a", "--config-file=etc/d.json", "--add-runtime=b=/b"]
    environment = {"PATH": "/p", "PYTHONHOME": sys.base_prefix}
    with subprocess.Popen(
        [fake, "-c", "print(flush=True); input()", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pid_file.write_text(str(process.pid))
        odd = dockerd.find_dockerd("unix:///nowhere", pid_file)
        assert odd is not None
        assert (odd.config_file, odd.path) == (tmp_path / "etc/d.json", "/p")
        assert sorted(odd.added_runtimes) == ["a=/a", "b=/b"]
        with pytest.raises(Unsupported, match="b=/b"):
            registration.refuse_flags(odd)
        process.communicate(b"\n")


def test_only_a_dockerd_is_signalled(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    for text in ("", "x", "1", str(os.getpid()), "999999999"):
        pid_file.write_text(text)
        assert dockerd.find_dockerd("unix:///nowhere", pid_file) is None
    assert dockerd.find_dockerd("tcp://127.0.0.1:1", pid_file) is None
    gone = dockerd.Dockerd(pid=os.getpid(), config_file=None, added_runtimes=(), path="")
    with pytest.raises(EngineUnavailable):
        dockerd.reload(gone, lambda: True, 1.0)
