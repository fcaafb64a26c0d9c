"""The shim's ways: straight to runc with every word as it came, or by way of an order."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path

import pytest
from turnkeep.runtime import orders
from turnkeep.runtime.shim import carry_out

from tests.runtime.shims import Shim, make_bundle, make_images, make_shim

ID, OTHER = "a" * 64, "b" * 64
ROOT = ("--root", "/nowhere/create", "--log", "{log}", "--log-format", "json")


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return make_shim(tmp_path)


@pytest.fixture
def globals_(tmp_path: Path) -> list[str]:
    return [word.format(log=tmp_path / "log.json") for word in ROOT]


@pytest.fixture
def create(shim: Shim, globals_: list[str], tmp_path: Path) -> list[str]:
    """A create as containerd says it, for a container with an order."""
    source = tmp_path / "init"
    source.symlink_to("/bin/true")
    mounts = [
        {"destination": "/sbin/init", "type": "bind", "source": str(source), "options": ["ro"]},
        {"destination": "/proc", "type": "proc", "source": "proc"},
    ]
    bundle = make_bundle(tmp_path, mounts=mounts, process={}, linux={"namespaces": []})
    orders.place(shim.orders, ID, make_images(tmp_path), tmp_path / "work")
    return [*globals_, "create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), ID]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--version"],
        ["features"],
        ["--root", "/r", "create"],
        ["--root", "/r", "create", "--bundle", "/b", OTHER],
        ["--root", "/r", "create", "--bundle", "/b", f"../orders/{ID}"],
        ["--root=/r", "--debug", "start", OTHER],
        ["--root", "start", "state", ID],
        ["--root", "/r", "kill", "--all", ID, "9"],
        ["--unknown", "create", "--bundle", "/b", ID],
        ["create", "--bundle", "/b", "--unknown", ID],
        ["create", "--bundle", "/b", "--preserve-fds", "1", ID],
        ["create", "--bundle", "/b", ID, "more"],
        ["exec", "--process", "/p with spaces", "--detach", ID],
        ["delete", "", "*", "$HOME", "a\tb"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_words_are_passed_on_unchanged(shim: Shim, tmp_path: Path, words: list[str]) -> None:
    orders.place(shim.orders, ID, make_images(tmp_path), tmp_path / "work")
    assert shim.run(*words).returncode == 0
    assert shim.told() == words
    assert (shim.orders / ID).exists()
    shim.fail()
    assert shim.run(*words).returncode == 1


def test_an_order_turns_create_into_restore(shim: Shim, create: list[str], tmp_path: Path) -> None:
    done = shim.run(*create)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    command = create.index("create")
    assert shim.told() == [
        *create[:command],
        *("restore", "--detach", "--no-subreaper"),
        *("--image-path", str(tmp_path / "images"), "--work-path", str(tmp_path / "work")),
        *create[command + 1 : -1],
        *("--ext-unix-sk", "--shell-job", "--file-locks", "--manage-cgroups-mode", "soft"),
        ID,
    ]
    assert shim.told_path() == f"{tmp_path}/criu:/usr/bin:/bin"
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert [mount["source"] for mount in config["mounts"]] == [str(Path("/bin/true").resolve()), "proc"]
    assert config["linux"] == {"namespaces": []}
    assert [path.name for path in shim.orders.iterdir()] == [f"{ID}.restored"]


def test_start_answers_once_for_what_was_restored(shim: Shim, create: list[str], globals_: list[str]) -> None:
    assert shim.run(*create).returncode == 0
    assert shim.run(*globals_, "start", ID).returncode == 0
    assert shim.told() is None
    assert shim.run(*globals_, "start", ID).returncode == 0
    assert shim.told() == [*globals_, "start", ID]
    assert shim.run(*create).returncode == 0
    assert shim.told() == create


def test_a_plain_create_forgets_an_earlier_restore(
    shim: Shim, create: list[str], globals_: list[str]
) -> None:
    assert shim.run(*create).returncode == 0
    assert shim.run(*create).returncode == 0
    assert shim.run(*globals_, "start", ID).returncode == 0
    assert shim.told() == [*globals_, "start", ID]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_failure_says_what_criu_said(
    shim: Shim, create: list[str], tmp_path: Path, log_format: str
) -> None:
    (tmp_path / "criu.log").write_text(
        "(00.01) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self\n"
        "(00.02) 5: fine\n"
        "(00.03) 5: Error (criu/files.c:2): the file is gone\n"
        "(00.04) Error (criu/cr-restore.c:3): Restoring FAILED.\n"
    )
    (tmp_path / "runc").write_text(
        f"#!/bin/sh\ncp {tmp_path}/criu.log {tmp_path}/work/{carry_out.LOG}\nexit 1\n"
    )
    create[create.index("json")] = log_format
    assert shim.run(*create).returncode == 1
    last = (tmp_path / "log.json").read_text().splitlines()[-1]
    said = json.loads(last)["msg"] if log_format == "json" else last
    assert "turnkeep: could not restore the container: 5: Error (criu/files.c:2): the file is gone (" in said
    assert list(shim.orders.iterdir()) == []


def test_a_failure_without_criu_says_what_runc_said(shim: Shim, create: list[str], tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('{"level":"error","msg":"exec: criu: not found"}\n')
    shim.fail()
    assert shim.run(*create).returncode == 1
    said = json.loads((tmp_path / "log.json").read_text().splitlines()[-1])["msg"]
    assert "could not restore the container: exec: criu: not found" in said


def test_without_a_log_it_is_said_on_standard_error(shim: Shim, create: list[str]) -> None:
    shim.fail()
    done = shim.run(*create[create.index("create") :])
    assert done.returncode == 1
    assert done.stderr.startswith("turnkeep: could not restore the container: runc restore ended with 1")


def test_a_restore_that_hangs_is_ended(shim: Shim, create: list[str], tmp_path: Path) -> None:
    options = orders.RestoreOptions(limit_s=0.2)
    orders.place(shim.orders, ID, tmp_path / "images", tmp_path / "work", options)
    (tmp_path / "runc").write_text(f"#!/bin/sh\nsleep 600 & echo $! >{tmp_path}/child; wait\n")
    done = shim.run(*create[create.index("create") :])
    assert (done.returncode, "did not finish within 0.2 s" in done.stderr) == (1, True)
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}/exe").exists()
    assert list(shim.orders.iterdir()) == []


def test_a_restore_does_not_outlive_what_started_it(shim: Shim, create: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    (tmp_path / "runc").write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 600\n")
    with subprocess.Popen([shim.program, *create]) as process:
        pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
        try:
            process.kill()
            assert select.select([pidfd], [], [], 60)[0]
        finally:
            os.close(pidfd)


def test_options_reach_runc_and_criu(shim: Shim, create: list[str], tmp_path: Path) -> None:
    # What it says is removed when runc has ended.
    (tmp_path / "runc").write_text(
        f"#!/bin/sh\nprintf '%s\\n' x \"$@\" >{tmp_path}/told\ncp {shim.orders}/{ID}.criu {tmp_path}/conf\n"
    )
    options = orders.RestoreOptions(
        tcp=orders.Tcp.ESTABLISHED,
        ext_unix_sk=False,
        shell_job=False,
        file_locks=False,
        manage_cgroups=orders.ManageCgroups.IGNORE,
    )
    orders.place(shim.orders, ID, tmp_path / "images", tmp_path / "work", options)
    create[-1:] = ["--no-pivot", "--no-new-keyring", "--console-socket=/c", ID]
    assert shim.run(*create).returncode == 0
    told = shim.told()
    assert told is not None
    assert told[-5:] == ["--no-pivot", "--console-socket", "/c", "--tcp-established", ID]
    assert (tmp_path / "conf").read_text() == (
        f'manage-cgroups=ignore\naction-script "{tmp_path}/at-stage"\n'
    )
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["annotations"] == {"org.criu.config": f"{shim.orders}/{ID}.criu"}


@pytest.mark.parametrize(
    "change",
    [{"version": 99}, {"options": {}}, {"image_path": "/nowhere"}, {"image_path": 5}],
    ids=lambda change: next(iter(change)),
)
def test_an_order_that_makes_no_sense_fails(shim: Shim, create: list[str], change: dict[str, object]) -> None:
    path = shim.orders / ID
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert shim.run(*create).returncode == 1
    assert shim.told() is None
    assert list(shim.orders.iterdir()) == []


def test_a_cgroup_namespace_is_not_given_up(shim: Shim, create: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bundle" / "config.json"
    config = {"process": {}, "linux": {"namespaces": [{"type": "cgroup"}]}}
    path.write_text(json.dumps(config))
    options = orders.RestoreOptions(manage_cgroups=orders.ManageCgroups.IGNORE)
    orders.place(shim.orders, ID, tmp_path / "images", tmp_path / "work", options)
    assert shim.run(*create).returncode == 1
    assert shim.told() is None
    assert "cgroup namespace" in (tmp_path / "log.json").read_text()


def test_images_that_others_can_write_are_refused(shim: Shim, create: list[str], tmp_path: Path) -> None:
    (tmp_path / "images").chmod(0o777)
    assert shim.run(*create).returncode == 1
    assert shim.told() is None


def test_a_bundle_that_cannot_be_read_fails(shim: Shim, create: list[str], tmp_path: Path) -> None:
    (tmp_path / "bundle" / "config.json").write_text("{")
    assert shim.run(*create).returncode == 1
    assert shim.told() is None


def test_an_exec_waits_where_runc_can(tmp_path: Path) -> None:
    shim = make_shim(tmp_path, exec_waits="yes")
    assert shim.run("--root", "exec", "exec", "--process", "/a b", ID).returncode == 0
    assert shim.told() == ["--root", "exec", "exec", "--ignore-paused", "--process", "/a b", ID]


@pytest.mark.parametrize("command", ["checkpoint", "restore"])
def test_criu_is_found_first(shim: Shim, command: str) -> None:
    shim.run("--root", "/r", command, ID)
    assert shim.told_path().startswith(f"{shim.folder}/criu:")
    shim.run("--root", "/r", "state", ID)
    assert not shim.told_path().startswith(f"{shim.folder}/criu:")
