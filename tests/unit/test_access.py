"""Who may call what: the lists, the door, the keeper, the log."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.client.faults import from_rpc
from turnkeep.client.session import CHANNEL_OPTIONS, Tls, open_session
from turnkeep.config import AccessSettings, Config, Quota, load
from turnkeep.errors import InvalidRequest, NotAllowed, ResourceExhausted, TurnkeepError
from turnkeep.server.callers import Caller, Policy, Role, acting_for, current
from turnkeep.server.front import Front, certificate_names
from turnkeep.server.gatekeeper import ALLOWED, AuditLog, Gatekeeper
from turnkeep.server.interceptor import ErrorInterceptor

from tests.certificates import Certificates

METHODS = {each.name for each in pb.DESCRIPTOR.services_by_name["Turnkeep"].methods}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may enter, with a short name."""
    with tempfile.TemporaryDirectory(prefix="tk-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


# -- the lists ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "uid", "groups", "expected"),
    [
        ({}, 12345, [12345], Caller("uid:12345", Role.OPERATOR)),
        ({"viewers": ("cert:x",)}, 12345, [], Caller("uid:12345", Role.OPERATOR)),
        ({"viewers": ("uid:1",)}, 12345, [], Caller("uid:12345", Role.NOBODY)),
        ({"viewers": ("uid:1",)}, 0, [], Caller("user:root", Role.OPERATOR)),
        ({"viewers": ("uid:0",)}, 0, [], Caller("user:root", Role.OPERATOR)),
        ({"harnesses": ("uid:12345",)}, 12345, [], Caller("uid:12345", Role.HARNESS)),
        ({"harnesses": ("gid:77",)}, 12345, [5, 77], Caller("gid:77", Role.HARNESS)),
        ({"viewers": ("uid:12345",), "operators": ("gid:77",)}, 12345, [77], Caller("gid:77", Role.OPERATOR)),
        ({"viewers": ("uid:9",), "harnesses": ("uid:9",)}, 9, [], Caller("uid:9", Role.HARNESS)),
        ({"operators": ("user:root",)}, 12345, [], Caller("uid:12345", Role.NOBODY)),
    ],
)
def test_who_a_process_is(
    lists: dict[str, tuple[str, ...]], uid: int, groups: list[int], expected: Caller
) -> None:
    found = Policy(AccessSettings(**lists)).of_process(7, uid, groups)  # type: ignore[arg-type]
    if uid == 9:
        assert found.role is Role.HARNESS
    else:
        assert (found.name, found.role, found.pid) == (expected.name, expected.role, 7)


def test_who_the_holder_of_a_certificate_is() -> None:
    policy = Policy(AccessSettings(harnesses=("cert:h1",), operators=("cert:ops",)))
    assert policy.of_certificate(["h1"]) == Caller("cert:h1", Role.HARNESS)
    assert policy.of_certificate(["h1", "ops"]) == Caller("cert:ops", Role.OPERATOR)
    assert policy.of_certificate(["h2"]).role is Role.NOBODY
    assert policy.of_certificate([]).role is Role.NOBODY
    # As long as no list speaks of this host, its users are not shut out.
    assert policy.of_process(1, 12345, []).role is Role.OPERATOR


def test_certificate_names_come_from_where_they_are_verified() -> None:
    certificate = {
        "subject": ((("organizationName", "evil"),), (("commonName", "cn"),)),
        "subjectAltName": (("DNS", "a"), ("email", "x@y"), ("URI", "spiffe://b"), ("DNS", "cn")),
    }
    assert certificate_names(certificate) == ["a", "spiffe://b", "cn"]


def test_every_call_is_known_to_the_roles() -> None:
    allowed = {name for names in ALLOWED.values() for name in names}
    assert allowed < METHODS
    assert METHODS - allowed == {"PruneStore", "CheckStore", "ExportJournal", "ExamineHost"}
    assert ALLOWED[Role.VIEWER] < ALLOWED[Role.HARNESS]
    assert Role.OPERATOR not in ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        'operators = ["alice"]',
        'harnesses = ["cert:"]',
        'listen = "localhost"',
        'listen = "localhost:1"',
        "quota = { sandboxes = -1 }",
        "quota = { sandbox = 1 }",
        "operator = []",
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "turnkeep.toml"
    path.write_text(f"[access]\n{text}\n")
    with pytest.raises(InvalidRequest):
        load(str(path), {})


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "turnkeep.toml"
    path.write_text('[access]\noperators = ["user:a"]\n[access.quota]\ncalls_per_s = 5\n')
    access = load(str(path), {}).access
    assert access == AccessSettings(operators=("user:a",), quota=Quota(calls_per_s=5.0))
    assert Config().access == AccessSettings()


# -- the door and the keeper -------------------------------------------------


class Service(grpc.GenericRpcHandler):
    """Answers every call with the name of who made it; waits, if it is told to."""

    def __init__(self) -> None:
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    def service(self, details: Any) -> Any:
        async def unary(request: bytes, context: Any) -> bytes:
            self.entered.set()
            await self.may_go.wait()
            return current().name.encode()

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            for _ in range(3):
                yield current().name.encode()

        async def long_work(request: bytes, context: Any) -> AsyncIterator[pb.RestoreSandboxResponse]:
            yield pb.RestoreSandboxResponse(progress=pb.Progress())
            try:
                yield pb.RestoreSandboxResponse(result=pb.RestoreResult())
                await self.may_go.wait()
            finally:
                self.left.set()

        if details.method.endswith("RestoreSandbox"):
            return grpc.unary_stream_rpc_method_handler(
                long_work, response_serializer=pb.RestoreSandboxResponse.SerializeToString
            )
        if details.method.endswith("WatchEvents"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


class Served:
    """A gRPC server behind a door."""

    def __init__(self, folder: Path, access: AccessSettings) -> None:
        self.folder = folder
        self.service = Service()
        self.front = Front(folder / "inner", access)
        self.audit = AuditLog(folder / "audit.jsonl")
        keeper = Gatekeeper(self.front.caller, access.quota, self.audit)
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor(), keeper])
        self.server.add_generic_rpc_handlers((self.service,))
        self.access = access

    async def start(self) -> None:
        self.server.add_insecure_port(f"unix:{self.folder}/inner")
        await self.server.start()
        outer = socket.socket(socket.AF_UNIX)
        outer.bind(str(self.folder / "outer"))
        os.chmod(self.folder / "outer", 0o666)
        await self.front.listen_on_socket(outer)
        if self.access.listen:
            await self.front.listen_on_tcp()

    async def call(self, method: str, *, socket_name: str = "outer") -> str:
        async with grpc.aio.insecure_channel(f"unix:{self.folder}/{socket_name}") as channel:
            return await _call(channel, method)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


def _channel(folder: Path) -> Any:
    return grpc.aio.insecure_channel(f"unix:{folder}/outer", options=CHANNEL_OPTIONS)


async def _call(channel: Any, method: str) -> str:
    try:
        answer = await channel.unary_unary(f"/turnkeep.v1.Turnkeep/{method}")(b"", timeout=60)
        return str(answer.decode())
    except grpc.RpcError as error:
        raise from_rpc(error, "unix:/x").error from None


@asynccontextmanager
async def served(folder: Path, access: AccessSettings | None = None) -> AsyncIterator[Served]:
    made = Served(folder, access or AccessSettings())
    await made.start()
    try:
        yield made
    finally:
        await made.server.stop(None)
        await made.front.close()
        made.audit.close()


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


AS_USER = """
import os, sys, grpc, grpc._channel, grpc._simple_stubs, encodings.idna
uid, path = int(sys.argv[1]), sys.argv[2]
if uid:
    os.setgroups([uid + 1]); os.setgid(uid); os.setuid(uid)
with grpc.insecure_channel(f"unix:{path}") as channel:
    try:
        print(channel.unary_unary(f"/turnkeep.v1.Turnkeep/{sys.argv[3]}")(b"", timeout=60).decode())
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


HANGING = """
import sys, grpc
channel = grpc.insecure_channel("unix:" + sys.argv[1])
call = channel.unary_unary("/turnkeep.v1.Turnkeep/GetSandbox").future(b"")
sys.stdin.read()
"""


async def _as_user(uid: int, served: Served, method: str, socket_name: str = "outer") -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AS_USER, str(uid), f"{served.folder}/{socket_name}", method,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode().strip()


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="acts as other users, which needs root"
)


@needs_root
async def test_the_kernel_tells_who_calls(folder: Path) -> None:
    access = AccessSettings(operators=("uid:4001",), harnesses=("gid:4003",), viewers=("uid:4004",))
    async with served(folder, access) as door:
        assert await _as_user(0, door, "PruneStore") == "user:root"
        assert await _as_user(4001, door, "PruneStore") == "uid:4001"
        assert await _as_user(4002, door, "BeginTurn") == "gid:4003"
        assert (await _as_user(4002, door, "PruneStore")).startswith("PERMISSION_DENIED a harness may not")
        assert await _as_user(4004, door, "GetSandbox") == "uid:4004"
        assert (await _as_user(4004, door, "BeginTurn")).startswith("PERMISSION_DENIED a viewer may not")
        assert "in none of the access lists" in await _as_user(4009, door, "GetSandbox")
        said = [(each["caller"], each["role"], each["call"], each["outcome"]) for each in door.log()]
        assert said == [
            ("user:root", "operator", "PruneStore", "ok"),
            ("uid:4001", "operator", "PruneStore", "ok"),
            ("gid:4003", "harness", "BeginTurn", "ok"),
            ("gid:4003", "harness", "PruneStore", "NOT_ALLOWED"),
            ("uid:4004", "viewer", "GetSandbox", "ok"),
            ("uid:4004", "viewer", "BeginTurn", "NOT_ALLOWED"),
            ("uid:4009", "nobody", "GetSandbox", "NOT_ALLOWED"),
        ]
        assert (folder / "audit.jsonl").stat().st_mode & 0o777 == 0o600


@needs_root
async def test_nobody_comes_in_past_the_door(folder: Path) -> None:
    async with served(folder) as door:
        os.chmod(folder / "inner", 0o666)
        assert "UNAUTHENTICATED this connection was not admitted" in await _as_user(
            4001, door, "GetSandbox", "inner"
        )
        # Not with a name like ours either.
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("\0turnkeep-" + "0" * 32)
            assert door.front.caller("unix-abstract:turnkeep-" + "0" * 32) is None


async def test_streams_and_many_calls_go_through(folder: Path) -> None:
    async with served(folder), _channel(folder) as channel:
        stream = channel.unary_stream("/turnkeep.v1.Turnkeep/WatchEvents")(b"")
        assert len([each async for each in stream]) == 3
        answers = await asyncio.gather(*(_call(channel, "GetSandbox") for _ in range(50)))
        assert len(set(answers)) == 1
        large = channel.unary_unary("/turnkeep.v1.Turnkeep/GetSandbox")
        assert await large(bytes(3 << 20), timeout=60)


async def test_a_caller_that_hangs_up_is_forgotten(folder: Path) -> None:
    async with served(folder) as door:
        door.service.may_go.clear()
        caller = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HANGING, f"{folder}/outer", stdin=subprocess.PIPE
        )
        await door.service.entered.wait()
        assert len(door.front._callers) == 1
        caller.kill()
        await caller.wait()
        await _until(lambda: not door.front._callers and door.log())
        assert door.log()[-1]["outcome"] == "CANCELLED"
        door.service.may_go.set()
        assert await door.call("GetSandbox")


async def test_work_that_is_done_is_in_the_log_before_its_result_is_out(folder: Path) -> None:
    async with served(folder) as door:
        door.service.may_go.clear()
        async with _channel(folder) as channel:
            stream = channel.unary_stream("/turnkeep.v1.Turnkeep/RestoreSandbox")(b"")
            await stream.read()
            await stream.read()
            assert [each["outcome"] for each in door.log()] == ["ok"]
            stream.cancel()
            await door.service.left.wait()
        assert [each["outcome"] for each in door.log()] == ["ok"]


async def test_a_harness_that_calls_too_often(folder: Path) -> None:
    audit = AuditLog(folder / "audit.jsonl")
    keeper = Gatekeeper(lambda peer: None, Quota(calls_per_s=2.0, calls_in_flight=3), audit)
    calls = keeper._calls["cert:h"]
    calls.begin()
    calls.begin()
    with pytest.raises(ResourceExhausted, match="calls a second"):
        calls.begin()
    assert calls.in_flight == 2
    calls._filled_s -= 10
    calls.begin()
    calls._filled_s -= 10
    with pytest.raises(ResourceExhausted, match="in flight"):
        calls.begin()
    audit.close()


def test_who_calls_is_known_inside_only() -> None:
    assert current().role is Role.OPERATOR
    with acting_for(Caller("x", Role.VIEWER)):
        assert current().name == "x"
    assert current().name == "daemon"


# -- TLS ---------------------------------------------------------------------


@pytest.fixture
def certificates(folder: Path) -> Certificates:
    return Certificates(folder)


async def _call_tls(door: Served, tls: Tls, method: str = "GetSandbox") -> str:
    target = f"localhost:{door.front.tcp_port}"
    async with grpc.aio.secure_channel(target, tls.credentials()) as channel:
        return await _call(channel, method)


async def test_a_certificate_tells_who_calls(folder: Path, certificates: Certificates) -> None:
    access = certificates.settings(harnesses=("cert:h1.example",), operators=("cert:ops",))
    async with served(folder, access) as door:
        assert await _call_tls(door, certificates.issue("h", "h1.example")) == "cert:h1.example"
        assert await _call_tls(door, certificates.issue("ops", "x.example"), "PruneStore") == "cert:ops"
        with pytest.raises(NotAllowed, match="in none of the access lists"):
            await _call_tls(door, certificates.issue("stranger", "s.example"))


async def test_who_has_no_certificate_of_ours_does_not_come_in(
    folder: Path, certificates: Certificates
) -> None:
    stranger = certificates.issue("ops", "ops", authority=trustme.CA())
    async with served(folder, certificates.settings(operators=("cert:ops",))) as door:
        with pytest.raises(TurnkeepError):
            await _call_tls(door, stranger)
        context = ssl.create_default_context(cafile=str(certificates.authority_file))
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await _read_one(door, context)
        old = ssl.create_default_context(cafile=str(certificates.authority_file))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _read_one(door, old)
        assert door.log() == []


async def _read_one(door: Served, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(
        "localhost", door.front.tcp_port, family=socket.AF_INET, ssl=context, server_hostname="localhost"
    )
    try:
        # With TLS 1.3 a client learns of its rejection when it reads.
        return await reader.readexactly(1)
    finally:
        writer.close()


async def test_new_certificates_are_served_without_a_restart(
    folder: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnkeep.server.front._RELOAD_S", 0.01)
    async with served(folder, certificates.settings(operators=("cert:ops",))) as door:
        ops = certificates.issue("ops", "ops")
        before = await _serial(door, ops)
        # What cannot be used is not: the old one goes on.
        (folder / "daemon.pem").write_text("no certificate")
        assert await _call_tls(door, ops) == "cert:ops"
        certificates.renew()
        serials = [before]
        while serials[-1] == before:
            serials.append(await _serial(door, ops))
        assert await _call_tls(door, ops) == "cert:ops"


async def _serial(door: Served, tls: Tls) -> str:
    context = ssl.create_default_context(cafile=tls.authority)
    context.load_cert_chain(tls.certificate, tls.key)
    _, writer = await asyncio.open_connection(
        "localhost", door.front.tcp_port, family=socket.AF_INET, ssl=context, server_hostname="localhost"
    )
    try:
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.close()


def test_a_client_of_tls_needs_its_files(folder: Path, certificates: Certificates) -> None:
    with pytest.raises(InvalidRequest, match="TURNKEEP_TLS_AUTHORITY"):
        open_session("tls://localhost:1", environment={})
    files = certificates.issue("ops", "ops")
    environment = {
        "TURNKEEP_TLS_AUTHORITY": files.authority,
        "TURNKEEP_TLS_CERTIFICATE": files.certificate,
        "TURNKEEP_TLS_KEY": files.key,
    }
    assert open_session("tls://localhost:1", environment=environment).tls == files
    gone = Tls(authority="/nonexistent", certificate="", key="")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        gone.credentials()
