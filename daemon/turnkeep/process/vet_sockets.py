"""Rules for sockets. See `vet` for what they are for."""

from __future__ import annotations

import stat

from turnkeep.process.allowance import Allowance, require, shown
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import Images
from turnkeep.process.vet_paths import vet_path

_INET_FAMILIES = {2: 1, 10: 4}
"""IPv4 and IPv6, and how many words an address has."""
_STREAM, _DATAGRAM, _RAW, _SEQUENTIAL = 1, 2, 3, 5
_INET_PROTOCOLS = {_STREAM: (6,), _DATAGRAM: (17, 136, 1, 58)}
_MAX_STATE, _MAX_SHUTDOWN, _MAX_PORT = 12, 3, 65535
_UNIX_TYPES = (_STREAM, _DATAGRAM, _SEQUENTIAL)
_EXTERNAL = 1
_MAX_UNIX_NAME, _MAX_DEVICE_NAME = 108, 15
_NETLINK_PROTOCOLS = (0, 4, 15, 16)
"""Routes, socket diagnosis, device events, generic: all of the socket's network namespace."""
_USUAL_PRIORITY = 6
_MAX_BUFFER = 64 * 1024 * 1024
_RIGHTS = 1


def vet_inet(images: Images, where: str, socket: pb.InetSocket, allowed: Allowance) -> None:
    """Check a TCP, UDP, ping or raw socket."""
    where = f"{where}, a socket of port {socket.src_port}"
    words = _INET_FAMILIES.get(socket.family)
    require(words is not None, where, f"family {socket.family}", "IPv4, IPv6")
    right = {len(socket.src_addr), len(socket.dst_addr)} == {words}
    require(right, where, "an address of another length", f"{words} words")
    raw = socket.type == _RAW and allowed.has("NET_RAW")
    usual = socket.proto in _INET_PROTOCOLS.get(socket.type, ())
    kind = f"type {socket.type}, protocol {socket.proto}"
    require(usual or raw, where, kind, "TCP, UDP, ping; raw with CAP_NET_RAW")
    require(max(socket.src_port, socket.dst_port) <= _MAX_PORT, where, "no port", f"up to {_MAX_PORT}")
    low = 0 < socket.src_port < allowed.lowest_port and not raw
    require(not low or allowed.has("NET_BIND_SERVICE"), where, "its port", f"{allowed.lowest_port} and more")
    require(1 <= socket.state <= _MAX_STATE, where, f"state {socket.state}", f"1 to {_MAX_STATE}")
    _vet_device(where, socket.ifname)
    _vet_common(images, where, socket, allowed)


def vet_unix(images: Images, where: str, socket: pb.UnixSocket, allowed: Allowance) -> None:
    """Check a unix socket: it is made, and named, and its name given rights."""
    where = f"{where}, unix socket {shown(socket.name)!r}"
    require(socket.type in _UNIX_TYPES, where, f"type {socket.type}", "stream, datagram, packets")
    named = socket.name in allowed.external
    external = socket.uflags == _EXTERNAL and named
    require(not socket.uflags or external, where, f"flags {socket.uflags:#x}", "sockets of the sandbox")
    require(len(socket.name) <= _MAX_UNIX_NAME, where, "a long name", f"{_MAX_UNIX_NAME} bytes")
    require(not socket.HasField("mnt_id") or socket.mnt_id == -1, where, "a mount's id", "none")
    if socket.HasField("name_dir"):
        vet_path(where, socket.name_dir, images)
    is_path = bool(socket.name) and not socket.name.startswith(b"\0")
    if is_path:
        name = socket.name.rstrip(b"\0")
        absolute = name if name.startswith(b"/") else b"/" + name
        vet_path(where, absolute, images)
        require(name == absolute or socket.HasField("name_dir"), where, "no folder", "its folder")
    if socket.HasField("file_perms"):
        mode = socket.file_perms.mode
        plain = stat.S_ISSOCK(mode) and not mode & (stat.S_ISUID | stat.S_ISGID)
        require(plain, where, f"mode {mode:#o}", "a socket's")
    _vet_common(images, where, socket, allowed)


def vet_netlink(images: Images, where: str, socket: pb.NetlinkSocket, allowed: Allowance) -> None:
    """Check a netlink socket."""
    where = f"{where}, netlink {socket.protocol}"
    require(socket.protocol in _NETLINK_PROTOCOLS, where, "its protocol", f"{_NETLINK_PROTOCOLS}")
    plain = not any(socket.groups) or allowed.has("NET_ADMIN") or socket.protocol in (0, 15)
    require(plain, where, "groups", "none without CAP_NET_ADMIN")
    _vet_options(where, socket.opts, allowed)
    _vet_namespace(images, where, socket.HasField("ns_id"), socket.ns_id)


def vet_packets(images: Images) -> None:
    """Check what waits in sockets' queues: descriptors are those of the images."""
    for packet in images.packets:
        where = f"a packet for socket {packet.id_for}"
        for message in packet.scm:
            require(message.type == _RIGHTS, where, f"control message {message.type}", "descriptors")
            known = all(number in images.files for number in message.rights)
            require(known, where, "a descriptor of no file", "files of the images")


def _vet_common(
    images: Images, where: str, socket: pb.InetSocket | pb.UnixSocket, allowed: Allowance
) -> None:
    _vet_options(where, socket.opts, allowed)
    _vet_namespace(images, where, socket.HasField("ns_id"), socket.ns_id)
    require(socket.shutdown <= _MAX_SHUTDOWN, where, f"shutdown {socket.shutdown}", f"{_MAX_SHUTDOWN}")


def _vet_namespace(images: Images, where: str, given: bool, number: int) -> None:
    same = not given or number == images.inventory.root_ids.net_ns_id
    require(same, where, f"network namespace {number}", "the sandbox's")


def _vet_options(where: str, options: pb.SocketOptions, allowed: Allowance) -> None:
    admin = allowed.has("NET_ADMIN")
    require(not options.so_mark or admin, where, "marked packets", "none without CAP_NET_ADMIN")
    usual = options.so_priority <= _USUAL_PRIORITY
    require(usual or admin, where, f"priority {options.so_priority}", f"up to {_USUAL_PRIORITY}")
    largest = max(options.so_sndbuf, options.so_rcvbuf)
    require(largest <= _MAX_BUFFER, where, f"a buffer of {largest} bytes", f"{_MAX_BUFFER}")
    _vet_device(where, options.so_bound_dev)


def _vet_device(where: str, name: bytes) -> None:
    plain = len(name.rstrip(b"\0")) <= _MAX_DEVICE_NAME and b"/" not in name
    require(plain, where, f"network device {shown(name)!r}", "a name of one")
