"""Exhibits of what processes can hold (see `exhibits`): files and memory."""

from __future__ import annotations

FILES = {
    "deleted": """
fd = os.open("/root/gone", os.O_RDWR | os.O_CREAT)
os.write(fd, b"before" * 1000); os.unlink("/root/gone"); os.lseek(fd, 7, 0)
def look():
    state = os.fstat(fd)
    return [state.st_size, state.st_nlink, os.lseek(fd, 0, 1), os.pread(fd, 6000, 0).decode(),
            os.path.exists("/root/gone")]
def change():
    os.pwrite(fd, b"after", 0); os.ftruncate(fd, 100); os.lseek(fd, 50, 0)
""",
    "deleted-and-another-of-its-name": """
fd = os.open("/root/gone", os.O_RDWR | os.O_CREAT); os.write(fd, b"first"); os.unlink("/root/gone")
other = os.open("/root/gone", os.O_RDWR | os.O_CREAT); os.write(other, b"second")
def look():
    return [os.pread(fd, 10, 0).decode(), os.pread(other, 10, 0).decode(), open("/root/gone").read(),
            os.path.samestat(os.fstat(other), os.stat("/root/gone")), os.fstat(fd).st_nlink]
def change():
    os.pwrite(fd, b"FIRST", 0); os.pwrite(other, b"SECOND", 0)
""",
    "deleted-and-large": """
fd = os.open("/root/gone", os.O_RDWR | os.O_CREAT); os.unlink("/root/gone")
os.pwrite(fd, os.urandom(20 << 20), 0); os.pwrite(fd, b"end", 40 << 20)
def look():
    import hashlib
    return [os.fstat(fd).st_size, hashlib.sha256(os.pread(fd, 41 << 20, 0)).hexdigest()]
def change():
    os.pwrite(fd, b"changed", 1 << 20)
""",
    "nameless": """
fd = os.open("/root", os.O_TMPFILE | os.O_RDWR, 0o640); os.write(fd, b"nameless")
def look():
    return [os.pread(fd, 10, 0).decode(), oct(os.fstat(fd).st_mode), os.lseek(fd, 0, 1)]
def change():
    os.pwrite(fd, b"CHANGED!", 0)
""",
    "deleted-folder": """
os.mkdir("/root/there"); os.chdir("/root/there"); os.rmdir("/root/there")
held, umask = os.open("/etc", os.O_PATH), os.umask(0o27)
def look():
    now = os.umask(0); os.umask(now)
    return [os.readlink("/proc/self/cwd"), os.readlink(f"/proc/self/fd/{held}"), now]
def change():
    os.chdir("/"); os.umask(0)
""",
    "offsets-and-flags": """
open("/root/text", "w").write("0123456789" * 100)
read = os.open("/root/text", os.O_RDONLY | os.O_NOFOLLOW); os.lseek(read, 321, 0)
add = os.open("/root/text", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK); os.set_inheritable(add, True)
twin = os.dup(read); os.dup2(read, 77); folder = os.open("/usr/bin", os.O_RDONLY | os.O_DIRECTORY)
devices = [os.open(f"/dev/{name}", os.O_RDWR) for name in ("null", "zero", "full", "urandom", "random")]
child = worker(lambda word: os.lseek(read, 0, 1) if word == "look" else os.lseek(read, 5, 1))
def look():
    return [[fd, os.lseek(fd, 0, 1), fcntl.fcntl(fd, fcntl.F_GETFL), os.get_inheritable(fd)]
            for fd in (read, add, twin, 77)] + [child("look"), [os.read(devices[1], 3).hex()],
            [os.readlink(f"/proc/self/fd/{fd}") for fd in devices]]
def change():
    child("move"); os.lseek(twin, 5, 1)
""",
    "locks": """
def opened(name):
    return os.open(f"/root/{name}", os.O_RDWR | os.O_CREAT)
whole, part, shared = opened("whole"), opened("part"), opened("shared")
fcntl.flock(whole, fcntl.LOCK_EX); fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
fcntl.lockf(shared, fcntl.LOCK_SH)
def held(name, how):
    fd = opened(name)
    try:
        how(fd)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
def attempt(_):
    flag, busy = fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB
    return [held("whole", lambda fd: fcntl.flock(fd, busy)),
            held("part", lambda fd: fcntl.lockf(fd, busy, 1, 12)),
            held("part", lambda fd: fcntl.lockf(fd, busy, 1, 4)),
            held("shared", lambda fd: fcntl.lockf(fd, busy)),
            held("shared", lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH | flag))]
child = worker(attempt, prepare=lambda: [os.close(fd) for fd in (whole, part, shared)])
def look():
    return child("look")
def change():
    fcntl.flock(whole, fcntl.LOCK_UN); fcntl.lockf(part, fcntl.LOCK_UN)
""",
}

MEMORY = {
    "mapped-files": """
with open("/root/mapped", "wb") as file:
    file.write(b"file" * 8192)
fd = os.open("/root/mapped", os.O_RDWR)
shared, private = mmap.mmap(fd, 0), mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
shared[0:6] = b"shared"; private[4096:4103] = b"private"
def look():
    return [part[at : at + 8].decode() for part in (shared, private) for at in (0, 4096, 8192)] + [
        os.pread(fd, 8, 0).decode()]
def change():
    shared[0:6] = b"SHARED"; private[4096:4103] = b"PRIVATE"; shared[8192:8196] = b"more"
""",
    "mapped-and-deleted": """
fd = os.open("/root/mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 8192)
shared, private = mmap.mmap(fd, 0), mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
os.unlink("/root/mapped"); os.close(fd); shared[0:6] = b"shared"; private[4096:4103] = b"private"
def look():
    return [part[at : at + 8].decode() for part in (shared, private) for at in (0, 4096)]
def change():
    shared[0:6] = b"SHARED"; private[4096:4103] = b"PRIVATE"
""",
    "shared-with-a-child": """
memory = mmap.mmap(-1, 1 << 20); memory[0:5] = b"first"
def answer(word):
    if word == "change":
        memory[0:5] = b"CHILD"
    return memory[0:5].decode()
child = worker(answer)
def look():
    return [memory[0:5].decode(), child("look")]
def change():
    child("change")
""",
    "memfd": """
fd = os.memfd_create("kept", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC); os.write(fd, b"memory" * 1000)
fcntl.fcntl(fd, 1033, 1 | 2); memory = mmap.mmap(fd, 0)
def look():
    return [os.readlink(f"/proc/self/fd/{fd}"), os.pread(fd, 12, 0).decode(), fcntl.fcntl(fd, 1034),
            memory[12:18].decode(), os.lseek(fd, 0, 1)]
def change():
    memory[0:6] = b"MEMORY"; os.lseek(fd, 3, 0)
""",
    "on-tmpfs": """
fd = os.open("/dev/shm/part", os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 8192); part = mmap.mmap(fd, 0)
gone = os.open("/dev/shm/gone", os.O_RDWR | os.O_CREAT); os.write(gone, b"gone"); os.unlink("/dev/shm/gone")
part[0:4] = b"kept"
def look():
    return [part[0:4].decode(), os.pread(gone, 10, 0).decode(), sorted(os.listdir("/dev/shm"))]
def change():
    part[0:4] = b"lost"; os.pwrite(gone, b"LOST", 0)
""",
    "odd-mappings": """
area = mmap.mmap(-1, 64 << 12); area[0:4] = b"area"
base = ctypes.addressof(ctypes.c_char.from_buffer(area))
checked(libc.mprotect(ctypes.c_void_p(base + (8 << 12)), 4 << 12, 0))
checked(libc.mprotect(ctypes.c_void_p(base + (16 << 12)), 4 << 12, 1))
private = mmap.mmap(-1, 16 << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
private.madvise(mmap.MADV_DONTFORK); private[0:7] = b"private"
def look():
    rights = [line.split()[1] for line in open("/proc/self/maps")
              if base <= int(line.split("-")[0], 16) < base + (64 << 12)]
    return [rights, area[0:4].decode(), private[0:7].decode()]
def change():
    area[0:4] = b"AREA"; private[0:7] = b"PRIVATE"
""",
}
