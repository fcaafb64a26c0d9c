"""Programs as agents leave them: databases, builds. What they acknowledged is there after a restore."""

from __future__ import annotations

from collections.abc import Callable

import docker
import pytest
from docker.errors import ImageNotFound
from turnkeep.client.sync import Client
from turnkeep.model import Fidelity

from tests.e2e.exhibits import Exhibit, Make, checkpoint_of, keep
from tests.e2e.harness import Box, turn, wait_until

DATABASES = "turnkeep/sandbox-db:test"

SQLITE = """
import sqlite3
db = sqlite3.connect("/root/data.db", isolation_level=None, timeout=0); db.execute(MODE)
db.execute("create table if not exists t (n integer)"); db.execute("insert into t values (1)")
db.execute("begin immediate"); db.execute("insert into t values (2)")
def look():
    return [db.in_transaction, db.execute("select n from t order by n").fetchall()]
def change():
    db.execute("commit" if db.in_transaction else "delete from t")
show(look, change)
"""
OPEN = 'sqlite3.connect(\\"/root/data.db\\", timeout=0)'
READ = f'python3 -c "import sqlite3; print({OPEN}.execute(\\"{{}}\\").fetchall())"'


def test_sqlite_in_wal_mode_is_not_called_captured(box: Box, tk: Client) -> None:
    """It holds locks on a file that it maps, and CRIU would lose them: a second writer would get in."""
    sandbox = tk.attach(box.name)
    exhibit = Exhibit(box, SQLITE.replace("MODE", repr("pragma journal_mode=wal")))
    assert exhibit.look() == [True, [[1], [2]]]
    checkpoint = checkpoint_of(tk, turn(box, sandbox, "true"))
    assert checkpoint.fidelity is Fidelity.FILES_ONLY
    assert any("a lock on a file that it maps" in each for each in checkpoint.not_captured)


def test_sqlite_with_an_open_transaction(box: Box, tk: Client) -> None:
    sandbox = tk.attach(box.name)
    exhibit = Exhibit(box, SQLITE.replace("MODE", repr("pragma journal_mode=delete")))
    select, insert = READ.format("select n from t"), READ.format("insert into t values (9)")
    assert exhibit.look() == [True, [[1], [2]]]
    assert box.sh(select) == "[(1,)]\n"
    kept = keep(box, sandbox, tk)
    for _ in range(2):
        exhibit.change()
        assert box.sh(select) == "[(1,), (2,)]\n"
        sandbox.restore(turn=kept.number)
        assert exhibit.look() == [True, [[1], [2]]]
        assert box.sh(select) == "[(1,)]\n", "the transaction is open again"
        assert "locked" in box.sh(insert, check=False), "and holds its lock"
    exhibit.change()
    assert box.sh(select) == "[(1,), (2,)]\n"
    assert box.sh(READ.format("pragma integrity_check")) == "[('ok',)]\n"


MAKEFILE = """
all: $(foreach n,1 2 3 4 5 6,part$(n))
	cat part? > whole
part%:
	echo begun $@ >> steps; while [ ! -e go$* ]; do sleep 0.1; done; echo $@ > $@; echo ended $@ >> steps
"""


def test_a_build_in_the_background(box: Box, tk: Client) -> None:
    """Half of it is done at the checkpoint; the other half is done after each restore, and nothing twice."""
    sandbox = tk.attach(box.name)
    box.sh(f"mkdir /root/b; cat > /root/b/Makefile <<'END'\n{MAKEFILE}\nEND")
    box.sh("cd /root/b; touch go1 go2 go3; setsid make -j3 </dev/null >log 2>&1 &")
    wait_until(lambda: "begun part6" in box.sh("cat /root/b/steps", check=False), "the first half is done")
    kept = keep(box, sandbox, tk)
    for _ in range(2):
        box.sh("cd /root/b; touch go4 go5 go6")
        wait_until(lambda: box.run(["test", "-s", "/root/b/whole"])[0] == 0, "it is done")
        steps = box.sh("cat /root/b/steps").split("\n")
        assert len(set(steps)) == len(steps) == 13
        assert box.sh("cat /root/b/whole") == "".join(f"part{n}\n" for n in range(1, 7))
        sandbox.restore(turn=kept.number)
        assert box.run(["test", "-e", "/root/b/whole"])[0] == 1
        assert box.sh("pgrep -c make").strip() == "1"


@pytest.fixture
def db(engine: docker.DockerClient, make: Make) -> Box:
    """A sandbox with databases in it."""
    try:
        engine.images.get(DATABASES)
    except ImageNotFound:
        pytest.fail(f"there is no image {DATABASES}: make image")
    return make(image=DATABASES)


# Writes without end, and notes each number once the server has said that it is there.
WRITER = """
acknowledged, stop = [0], threading.Event()
def write():
    connection = socket.create_connection(("127.0.0.1", 6379))
    reader = connection.makefile("rb"); number = 0
    while not stop.is_set():
        number += 1
        connection.sendall(b"RPUSH list %d\\r\\n" % number)
        if int(reader.readline()[1:]) != number: break
        with open("/root/acknowledged", "w") as out: out.write(str(number))
        acknowledged[0] = number
threading.Thread(target=write, daemon=True).start()
show(lambda: acknowledged)
"""


@pytest.mark.parametrize("storage", ["", "--appendonly yes --appendfsync always"])
def test_redis_under_write_load(storage: str, db: Box, tk: Client) -> None:
    sandbox = tk.attach(db.name)
    db.sh(f"cd /root; setsid redis-server --save '' {storage} </dev/null >/root/redis.log 2>&1 &")
    wait_until(lambda: "PONG" in db.sh("redis-cli ping", check=False), "redis answers")
    writer = Exhibit(db, WRITER)
    wait_until(lambda: writer.look()[0] > 100, "it is written to")
    kept = turn(db, sandbox, "true")
    assert checkpoint_of(tk, kept).fidelity is Fidelity.COMPLETE, checkpoint_of(tk, kept).not_captured
    for _ in range(2):
        db.sh("redis-cli flushall")
        sandbox.restore(turn=kept.number)
        promised = int(db.sh("cat /root/acknowledged") or 0)
        there = [int(each) for each in db.sh("redis-cli lrange list 0 -1").split()]
        # The answer to one may have been on its way, through a connection that is cut.
        assert there == list(range(1, len(there) + 1))
        assert promised <= len(there) <= promised + 1
        assert promised >= 100
        assert db.sh("redis-cli set key value; redis-cli get key").split() == ["OK", "value"]


def test_postgresql(db: Box, tk: Client) -> None:
    """It holds System V shared memory: taken with the whole container, or said to be missing."""
    sandbox = tk.attach(db.name)
    db.sh("pg_createcluster $(ls /usr/lib/postgresql) main --start </dev/null")
    query: Callable[[str], str] = lambda sql: db.sh(f'psql -tAc "{sql}"', user="postgres").strip()  # noqa: E731
    wait_until(lambda: db.run(["pg_isready"])[0] == 0, "it answers")
    query("create table t (n int)")
    query("insert into t values (1)")
    kept = turn(db, sandbox, "true")
    checkpoint = checkpoint_of(tk, kept)
    whole = checkpoint.processes is not None and checkpoint.processes.engine == "the whole container"
    named = " ".join(checkpoint.not_captured)
    assert whole or "System V" in named or "rlimit" in named, checkpoint
    query("insert into t values (2)")
    assert query("select count(*) from t") == "2"
