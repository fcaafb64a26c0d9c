"""What a run was made on: without it a figure means nothing."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import turnkeep

from bench.processes import peers

GIB = 1024**3

# What makes each of them tell its version.
_VERSIONS = {
    "restic": "version",
    "borg": "--version",
    "rsync": "--version",
    "tar": "--version",
    "zstd": "--version",
    "btrfs": "--version",
    "podman": "--version",
}


def describe(engine: Mapping[str, Any], version: str, folder: Path) -> dict[str, str]:
    """Return the machine's description; `engine` is what the engine says of itself."""
    driver = f"{engine['Driver']}{_backing(engine)}, images by {_image_store(engine)}"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "turnkeep": f"{version}{_revision()}",
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / GIB:.1f} GiB",
        "load": f"{load()} before",
        "kernel": platform.release(),
        "engine": f"Docker {engine['ServerVersion']}, {driver}, cgroup v{engine.get('CgroupVersion', '1')}",
        **peers.versions(),
        "peers": ", ".join(_peers()),
        "state": f"{_file_system(folder)}, {folder.parent}",
        "python": platform.python_version(),
    }


def load() -> str:
    """Return the last minute's load: what else the machine was busy with."""
    return f"{os.getloadavg()[0]:.1f}"


def _backing(engine: Mapping[str, Any]) -> str:
    status = dict(engine.get("DriverStatus") or ())
    return f" on {status['Backing Filesystem']}" if "Backing Filesystem" in status else ""


def _image_store(engine: Mapping[str, Any]) -> str:
    status = dict(engine.get("DriverStatus") or ())
    return "containerd" if status.get("driver-type", "").startswith("io.containerd") else "the engine"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder."""
    holding = [
        (len(each.mountpoint), each.fstype)
        for each in psutil.disk_partitions(all=True)
        if folder.is_relative_to(each.mountpoint)
    ]
    return max(holding)[1] if holding else "unknown"


def _peers() -> list[str]:
    """Return the peers that are installed, with their versions."""
    found = []
    for name, question in _VERSIONS.items():
        if shutil.which(name):
            done = subprocess.run([name, question], capture_output=True, text=True, check=False)
            version = re.search(r"[0-9]+(\.[0-9]+)+", done.stdout)
            found.append(f"{name} {version[0] if version else 'of unknown version'}")
    return found


def _revision() -> str:
    """Return " (REVISION)" of a checkout; nothing for an unpacked archive."""
    # That of the daemon which is measured: it may be another one than this program's.
    git = ["git", "-C", str(Path(turnkeep.__file__).parent), "describe", "--always", "--dirty"]
    # A description must not refresh the index of a tree that others work in.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(git, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({found.stdout.strip()})"
