"""The configuration file and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from turnkeep import config
from turnkeep.config import Config, load
from turnkeep.errors import InvalidRequest
from turnkeep.model import RetentionPolicy


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turnkeep.toml"


def test_without_a_file_there_are_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_CONFIG", str(tmp_path / "none.toml"))
    assert load(environment={}) == Config()
    assert Config().retention.is_empty


def test_the_default_file_is_read_where_there_is_one(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text("workers = 3")
    monkeypatch.setattr(config, "DEFAULT_CONFIG", str(file))
    assert load(environment={}).workers == 3


def test_what_a_file_says(file: Path) -> None:
    file.write_text(
        """
        state_dir = "/srv/turnkeep"
        socket_mode = 0o600
        auto_attach = false
        [limits]
        gate_timeout_s = 5
        arena_bytes = 1024
        [classify]
        caches = ["target"]
        [retention]
        keep_last = 7
        keep_tags = ["keep"]
        """
    )
    found = load(str(file), {})
    assert (found.state_path, found.socket_mode, found.auto_attach) == (Path("/srv/turnkeep"), 0o600, False)
    assert (found.limits.gate_timeout_s, found.limits.arena_bytes) == (5.0, 1024)
    assert found.limits.max_paths == Config().limits.max_paths
    assert found.classify.caches == ("target",)
    assert found.classify.reproducible == Config().classify.reproducible
    assert found.retention == RetentionPolicy(keep_last=7, keep_tags=("keep",))


def test_the_environment_overrides_the_file(file: Path) -> None:
    file.write_text('address = "unix:///a"\nstate_dir = "/a"\nworkers = 3')
    environment = {
        "TURNKEEP_CONFIG": str(file),
        "TURNKEEP_ADDRESS": "unix:///b",
        "TURNKEEP_STATE_DIR": "/b",
    }
    found = load(environment=environment)
    assert (found.address, found.state_dir, found.workers) == ("unix:///b", "/b", 3)
    assert load(str(file), {"TURNKEEP_CONFIG": "/none"}).address == "unix:///a"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_file_that_was_named_has_to_exist(file: Path, how: str) -> None:
    with pytest.raises(InvalidRequest, match="does not exist") as raised:
        load(str(file), {}) if how == "argument" else load(environment={"TURNKEEP_CONFIG": str(file)})
    assert raised.value.object == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adress = 1", "unknown configuration key adress"),
        ("[limits]\ngate_timeout = 1", "unknown configuration key limits.gate_timeout"),
        ("[classify]\ncache = []", "unknown configuration key classify.cache"),
        ("[retention]\nlast = 1", "unknown configuration key retention.last"),
        ("[limits.limits]\n", "unknown configuration key limits.limits"),
        ("workers = 'two'", "Config.workers: expects int, not str"),
        ("auto_attach = 1", "Config.auto_attach: expects bool, not int"),
        ("limits = 5", "Limits expects an object, not int"),
        ("[limits]\narena_bytes = 1.5", "Limits.arena_bytes: expects int, not float"),
        ("[classify]\ncaches = 'target'", "Classify.caches: expects a list, not str"),
        ("[classify]\ncaches = [1]", "Classify.caches: expects str, not int"),
        ("address = 'tcp://0.0.0.0:1'", "is not a unix socket"),
        ("state_dir = 'here'", "is not an absolute path"),
        ("[limits]\ncapture_attempts = 0", "limits.capture_attempts has to be greater than zero"),
        ("[limits]\ngate_timeout_s = -1", "limits.gate_timeout_s has to be greater than zero"),
        ("compression_level = 0", "compression_level goes from 1 to 19"),
        ("compression_level = 20", "compression_level goes from 1 to 19"),
        ("= 1", "cannot be read"),
    ],
)
def test_what_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message) as raised:
        load(str(file), {})
    assert raised.value.object == str(file)


@pytest.mark.parametrize(
    "text",
    [
        "[limits]\nfreeze_budget_s = nan",
        "[limits]\ngate_timeout_s = inf",
        "[retention]\nkeep_last = -1",
        "[retention]\nmax_bytes = -1",
        "workers = true",
    ],
)
def test_values_that_would_do_harm_are_refused(file: Path, text: str) -> None:
    """A budget of nan never runs out; a negative byte budget deletes everything it may."""
    file.write_text(text)
    with pytest.raises(InvalidRequest):
        load(str(file), {})


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load(str(file), {})
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load(str(file.parent), {})
