"""What a dump of a whole container tells runc and CRIU, and what it makes of their answers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from turnkeep.errors import CriuFailed, SandboxGone
from turnkeep.process import whole

ID = "a" * 64

# Stands for runc: writes down what it is told, and what CRIU would find.
RUNC = """#!/bin/sh
printf '%s\\n' "$@" >{0}/told
cp "$2/{1}/state.json" {0}/state.json
cp "$2/criu.conf" {0}/criu.conf
"""


@pytest.fixture
def runc(tmp_path: Path) -> whole.Runc:
    record = tmp_path / "root" / ID
    record.mkdir(parents=True)
    labels = ["bundle=/b", "org.criu.config=/etc/other.conf"]
    (record / "state.json").write_text(json.dumps({"id": ID, "config": {"labels": labels, "rootfs": "/r"}}))
    program = tmp_path / "runc"
    program.write_text(RUNC.format(tmp_path, ID))
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    return whole.Runc(root=tmp_path / "root", program=str(program), criu_bin="/criu")


def dump(runc: whole.Runc, folder: Path, **options: object) -> whole.DumpStats:
    made = whole.DumpOptions(**options)  # type: ignore[arg-type]
    return whole.dump(runc, ID, folder / "images", folder / "work", made)


def stats(*figures: tuple[int, int]) -> bytes:
    """Return a `stats-dump` as CRIU writes it; all values below 128."""
    inner = b"".join(bytes((number << 3, value)) for number, value in figures)
    outer = bytes((1 << 3 | 2, len(inner))) + inner
    return struct.pack("<3I", 0x55105940, 0x57093306, len(outer)) + outer


def test_runc_is_told_by_way_of_a_copy_of_its_record(runc: whole.Runc, tmp_path: Path) -> None:
    before = (runc.root / ID / "state.json").read_bytes()
    (tmp_path / "work" / "stats-dump").write_bytes(stats((1, 5), (2, 7), (3, 11), (4, 13), (5, 17), (7, 19)))
    assert dump(runc, tmp_path) == whole.DumpStats(
        freezing_us=5, frozen_us=7, memory_us=11, writing_us=13, pages_scanned=17, pages_written=19
    )
    told = (tmp_path / "told").read_text().split()
    root = told[1]
    assert told == [
        *("--root", root, "checkpoint", "--leave-running"),
        *("--image-path", f"{tmp_path}/images", "--work-path", f"{tmp_path}/work"),
        *("--ext-unix-sk", "--shell-job", "--file-locks", "--manage-cgroups-mode", "soft", ID),
    ]
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["config"] == {"labels": ["bundle=/b", f"org.criu.config={root}/criu.conf"], "rootfs": "/r"}
    assert (tmp_path / "criu.conf").read_text() == "tcp-close\n"
    assert not Path(root).exists()
    assert (runc.root / ID / "state.json").read_bytes() == before
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700


def test_other_options(runc: whole.Runc, tmp_path: Path) -> None:
    (tmp_path / "work" / "stats-dump").write_bytes(stats())
    options = {"ext_unix_sk": False, "shell_job": False, "file_locks": False, "manage_cgroups": "ignore"}
    assert dump(runc, tmp_path, tcp="established", **options) == whole.DumpStats()
    assert (tmp_path / "told").read_text().split()[-2:] == ["--tcp-established", ID]
    assert (tmp_path / "criu.conf").read_text() == "manage-cgroups=ignore\n"


def test_one_that_takes_too_long_is_killed(runc: whole.Runc, tmp_path: Path) -> None:
    Path(runc.program).write_text("#!/bin/sh\necho begun\nexec sleep 600\n")
    with pytest.raises(CriuFailed, match=r"took more than 0\.2 s and was killed"):
        dump(runc, tmp_path, limit_s=0.2)


@pytest.mark.parametrize(
    ("said", "log", "quoted"),
    [
        ("it is broken", None, "could not dump it: it is broken$"),
        ("", None, "runc ended with 1$"),
        (
            "see the log",
            "(00.1) 7: Error (criu/x.c:1): no\n(00.2) Warn\n",
            r"it: 7: Error \(criu/x\.c:1\): no$",
        ),
        ("it failed", "(00.1) Error (criu/y.c:2): Dumping FAILED.\n", "it failed$"),
    ],
)
def test_what_went_wrong_is_quoted(
    runc: whole.Runc, tmp_path: Path, said: str, log: str | None, quoted: str
) -> None:
    if log is not None:
        (tmp_path / "work" / "dump.log").write_text(log)
    Path(runc.program).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    with pytest.raises(CriuFailed, match=quoted) as caught:
        dump(runc, tmp_path)
    assert caught.value.hint == f"all of it: {tmp_path}/work/dump.log"


def test_a_container_that_has_ended(runc: whole.Runc, tmp_path: Path) -> None:
    Path(runc.program).write_text(
        "#!/bin/sh\necho 'Container cannot be checkpointed in stopped state'; exit 1\n"
    )
    with pytest.raises(SandboxGone):
        dump(runc, tmp_path)
    with pytest.raises(SandboxGone, match="no record"):
        whole.dump(runc, "b" * 64, tmp_path / "images", tmp_path / "work")


@pytest.mark.parametrize(
    "image", [b"", b"x" * 8, stats()[:-1] + b"\xff", struct.pack("<4I", 1, 2, 4, 0xFFFFFFFF)]
)
def test_figures_that_are_none(image: bytes) -> None:
    try:
        assert whole.read_stats(image) == whole.DumpStats()
    except ValueError:
        return
