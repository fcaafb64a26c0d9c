"""Configuration: `/etc/turnkeep/turnkeep.toml` and the environment."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnkeep.codec import from_json
from turnkeep.errors import InvalidRequest
from turnkeep.model import RetentionPolicy

DEFAULT_ADDRESS = "unix:///run/turnkeep/turnkeep.sock"
DEFAULT_STATE_DIR = "/var/lib/turnkeep"
JOURNAL_NAME = "journal.sqlite"
DEFAULT_CONFIG = "/etc/turnkeep/turnkeep.toml"

MIB = 1024 * 1024
EXEC_SESSIONS = ("wait", "capture", "record", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what one sandbox may cost. Sizes in bytes, times in seconds."""

    freeze_budget_s: float = 5.0
    """A freeze that would last longer is given up; the turn is tried again, then fails."""
    capture_attempts: int = 3
    arena_bytes: int = 64 * MIB
    """Content read into memory inside one freeze; files that do not fit are copied ahead."""
    copy_ahead_bytes: int = 8 * MIB
    """Files from this size on are copied before the freeze."""
    cache_bytes: int = 32 * MIB
    """Memory for content that was stored or restored lately, so that going back to it reads no disk."""
    max_paths: int = 2_000_000
    """Paths in one sandbox's writable state."""
    gate_timeout_s: float = 30.0
    wait_timeout_s: float = 300.0
    turn_timeout_s: float = 6 * 3600.0
    """A turn open for longer is closed as abandoned."""
    harness_state_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Classify:
    """What counts as a derived cache, and which processes a restart brings back."""

    caches: tuple[str, ...] = (
        "__pycache__",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".hypothesis",
    )
    """Names of folders whose content can be derived again."""
    reproducible: tuple[str, ...] = (
        "sleep",
        "tail",
        "tini",
        "docker-init",
        "dumb-init",
        "catatonit",
        "pause",
    )
    """Names of programs that hold no state as a container's init."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """How processes are captured and restored."""

    enabled: bool = True
    criu: str = ""
    """A program, or a prefix that holds one. Empty: the one `make host` installed, else the host's."""
    image_bytes: int = 2048 * MIB
    """Memory for the images of one process tree while they are written or read."""
    cache_bytes: int = 256 * MIB
    """Memory for the content of the newest images, so that going back to them reads no disk."""
    compare_bytes: int = 64 * MIB
    """Memory that may be read inside a freeze to see whether processes that woke changed at all."""
    exec_sessions: str = "capture"
    """What becomes of processes whose `docker exec` still waits: wait, capture, record or fail."""
    exec_wait_s: float = 30.0
    """How long "wait" waits for them to end; they are captured after that."""
    orders: str = "/run/turnkeep-orders"
    """Where the runtime "turnkeep" looks for restore orders."""
    keep_connections: bool = False
    """Whether TCP connections to the outside are kept; by default processes see them reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSettings:
    """How changes of files are followed."""

    enabled: bool = True
    """Follow them by events of the kernel where it can, so that a turn costs what it changed; else scan."""
    paths: int = 200_000
    """Paths remembered as touched in one folder between two turns; with more, it is scanned."""
    audit: float = 0.01
    """The share of looks that are compared with a scan, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What each harness may take up; 0 is no limit."""

    calls_per_s: float = 0.0
    calls_in_flight: int = 0
    sandboxes: int = 0
    """Attached at a time."""
    captures: int = 0
    """In flight at a time, of all its sandboxes."""
    stored_bytes: int = 0
    """Added to the store by its sandboxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may call, and how: docs/safety.md.

    Names are "user:NAME", "uid:N", "group:NAME", "gid:N" for the unix socket, and
    "cert:NAME" for a name in a client's certificate.
    """

    operators: tuple[str, ...] = ()
    """May do everything. Root is one."""
    harnesses: tuple[str, ...] = ()
    """May do what concerns the containers whose label `turnkeep.harness` names them."""
    viewers: tuple[str, ...] = ()
    """May look at what there is."""
    listen: str = ""
    """HOST:PORT for TLS 1.3. Empty: no TCP."""
    certificate: str = ""
    key: str = ""
    client_authority: str = ""
    """PEM files: the daemon's certificate (chain) and key, and who signs clients' certificates."""
    quota: Quota = field(default_factory=Quota)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set. Passed in, never looked up."""

    address: str = DEFAULT_ADDRESS
    state_dir: str = DEFAULT_STATE_DIR
    socket_mode: int = 0o660
    socket_group: str = ""
    docker_host: str = ""
    """Empty: as the Docker SDK finds it (DOCKER_HOST or the default socket)."""
    encryption_key: str = ""
    """Where the key is that the state is encrypted with: file:PATH, credential:NAME or command:WORDS."""
    compression_level: int = 3
    workers: int = max(2, min(8, os.cpu_count() or 2))
    log_format: str = "auto"
    log_level: str = "info"
    auto_attach: bool = True
    limits: Limits = field(default_factory=Limits)
    classify: Classify = field(default_factory=Classify)
    process: ProcessSettings = field(default_factory=ProcessSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    access: AccessSettings = field(default_factory=AccessSettings)

    @property
    def state_path(self) -> Path:
        """The state directory."""
        return Path(self.state_dir)

    @property
    def store_path(self) -> Path:
        """The repository in it."""
        return self.state_path / "store"

    @property
    def journal_path(self) -> Path:
        """The journal in it."""
        return self.state_path / JOURNAL_NAME


def load(path: str | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration file and apply the environment to it.

    A file that was named (by argument or TURNKEEP_CONFIG) must exist; the
    default one need not.

    Raises:
        InvalidRequest: the file cannot be read, has unknown keys or wrong values.
    """
    named = path or environment.get("TURNKEEP_CONFIG")
    values = _read(Path(named or DEFAULT_CONFIG), required=named is not None)
    if "TURNKEEP_ADDRESS" in environment:
        values["address"] = environment["TURNKEEP_ADDRESS"]
    if "TURNKEEP_STATE_DIR" in environment:
        values["state_dir"] = environment["TURNKEEP_STATE_DIR"]
    source = named or DEFAULT_CONFIG
    _refuse_unknown(Config, values, source)
    try:
        config: Config = from_json(Config, values)
    except ValueError as error:
        raise InvalidRequest(f"configuration does not fit: {error}", object=source) from error
    _check(config, source)
    return config


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        if required:
            raise InvalidRequest("configuration file does not exist", object=str(path)) from None
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"configuration file cannot be read: {error}", object=str(path)) from error


def _refuse_unknown(cls: type[Any], values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    known = {item.name: item for item in dataclasses.fields(cls)}
    nested = {
        "limits": Limits,
        "classify": Classify,
        "process": ProcessSettings,
        "tracker": TrackerSettings,
        "retention": RetentionPolicy,
        "access": AccessSettings,
        "quota": Quota,
    }
    for key, value in values.items():
        if key not in known:
            hint = f"known keys here: {', '.join(sorted(known))}"
            raise InvalidRequest(f"unknown configuration key {prefix}{key}", object=source, hint=hint)
        if key in nested and isinstance(value, dict):
            _refuse_unknown(nested[key], value, source, f"{prefix}{key}.")


def _check(config: Config, source: str) -> None:
    if not config.address.startswith("unix:"):
        raise InvalidRequest(
            f"address {config.address!r} is not a unix socket",
            object=source,
            hint="use unix:///path; for TCP see access.listen",
        )
    if not os.path.isabs(config.state_dir):
        raise InvalidRequest(f"state_dir {config.state_dir!r} is not an absolute path", object=source)
    for item in dataclasses.fields(Limits):
        value = getattr(config.limits, item.name)
        if not (math.isfinite(value) and value > 0):
            raise InvalidRequest(f"limits.{item.name} has to be greater than zero", object=source)
    if config.process.exec_sessions not in EXEC_SESSIONS:
        known = ", ".join(EXEC_SESSIONS)
        raise InvalidRequest(f"process.exec_sessions is one of {known}", object=source)
    if config.process.image_bytes <= 0 or not config.process.exec_wait_s >= 0:
        raise InvalidRequest(
            "process.image_bytes and process.exec_wait_s must not be negative", object=source
        )
    if not 0 <= config.tracker.audit <= 1:
        raise InvalidRequest("tracker.audit is a share from 0 to 1", object=source)
    if config.tracker.paths < 1:
        raise InvalidRequest("tracker.paths has to be 1 or more", object=source)
    check_policy(config.retention, source)
    _check_access(config.access, source)
    if not 1 <= config.compression_level <= 19:
        raise InvalidRequest("compression_level goes from 1 to 19", object=source)


def _check_access(access: AccessSettings, source: str) -> None:
    for name in (*access.operators, *access.harnesses, *access.viewers):
        kind, _, rest = name.partition(":")
        if kind not in ("user", "uid", "group", "gid", "cert") or not rest:
            raise InvalidRequest(
                f"{name!r} in the access lists is no name of a caller",
                object=source,
                hint="use user:NAME, uid:N, group:NAME, gid:N or cert:NAME",
            )
    for item in dataclasses.fields(Quota):
        if not (math.isfinite(value := getattr(access.quota, item.name)) and value >= 0):
            raise InvalidRequest(f"access.quota.{item.name} must not be negative", object=source)
    files = (access.certificate, access.key, access.client_authority)
    if access.listen and not (all(files) and re.fullmatch(r"\S+:\d{1,5}", access.listen)):
        raise InvalidRequest(
            "access.listen is HOST:PORT and needs certificate, key and client_authority", object=source
        )


def check_policy(policy: RetentionPolicy, source: str) -> None:
    """Refuse a policy whose numbers make no sense; a negative budget would delete everything.

    Raises:
        InvalidRequest: a number is negative.
    """
    for name in ("keep_last", "keep_hourly", "keep_daily", "max_bytes"):
        if getattr(policy, name) < 0:
            raise InvalidRequest(f"retention.{name} must not be negative", object=source)
