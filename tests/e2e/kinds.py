"""Exhibits of every kind of thing that a process can hold (see `exhibits`)."""

from __future__ import annotations

from tests.e2e.kinds_files import FILES, MEMORY

CHANNELS = {
    "pipes": """
fcntl.F_SETPIPE_SZ = 1031
out, into = os.pipe(); os.write(into, b"waiting in the pipe"); fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 18)
full = os.pipe2(os.O_NONBLOCK); half = os.pipe(); os.close(half[0])
try:
    while os.write(full[1], b"x" * 4096): pass
except BlockingIOError: pass
def peek():
    data = os.read(out, 100); os.write(into, data)
    return data.decode()
def broken():
    try:
        return os.write(half[1], b"x")
    except BrokenPipeError:
        return "broken"
def look():
    waiting = struct.unpack("i", fcntl.ioctl(full[0], 0x541B, b"    "))[0]
    return [peek(), waiting, fcntl.fcntl(into, 1032), fcntl.fcntl(full[1], fcntl.F_GETFL), broken()]
def change():
    os.read(out, 8); os.read(full[0], 4096)
""",
    "named-pipe": """
os.mkfifo("/root/fifo"); both = os.open("/root/fifo", os.O_RDWR); os.write(both, b"in the fifo")
other = os.open("/root/fifo", os.O_WRONLY)
def look():
    data = os.read(both, 100); os.write(other, data)
    return [data.decode(), os.readlink(f"/proc/self/fd/{other}")]
def change():
    os.read(both, 3)
""",
    "stream-pair": """
left, right = socket.socketpair(); left.send(b"on its way"); right.setblocking(False)
left.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
child = worker(lambda word: [right.send(word.encode()), left.recv(100, socket.MSG_PEEK).decode()])
closed, gone = socket.socketpair(); gone.shutdown(socket.SHUT_WR)
def look():
    return [right.recv(100, socket.MSG_PEEK).decode(), closed.recv(1).decode(), closed.send(b""),
            left.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)]
def change():
    right.recv(3)
""",
    "listening-and-connected": """
here = socket.socket(socket.AF_UNIX); here.bind("/root/listen"); here.listen(5); here.settimeout(5)
hidden = socket.socket(socket.AF_UNIX); hidden.bind("\\0hidden"); hidden.listen(5)
one = socket.socket(socket.AF_UNIX); one.connect("/root/listen"); served, _ = here.accept()
two = socket.socket(socket.AF_UNIX); two.connect("\\0hidden"); other, _ = hidden.accept()
one.send(b"question"); other.send(b"answer")
def fresh():
    client = socket.socket(socket.AF_UNIX); client.connect("/root/listen"); client.send(b"new")
    got, _ = here.accept()
    return got.recv(10).decode()
def look():
    return [served.recv(100, socket.MSG_PEEK).decode(), two.recv(100, socket.MSG_PEEK).decode(), fresh(),
            here.getsockname(), repr(hidden.getsockname())]
def change():
    served.recv(3); two.recv(2)
""",
    "waiting-to-be-accepted": """
here = socket.socket(socket.AF_UNIX); here.bind("/root/listen"); here.listen(5)
one = socket.socket(socket.AF_UNIX); one.connect("/root/listen")
accepted = []
def look():
    return [len(accepted), bool(select.select([here], [], [], 0)[0])]
def change():
    accepted.append(here.accept()[0])
""",
    "datagrams": """
here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); here.bind("/root/datagrams")
there = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); there.connect("/root/datagrams")
there.send(b"first"); there.send(b"second")
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
left.send(b"a"); left.send(b"bc")
def look():
    return [here.recv(100, socket.MSG_PEEK).decode(), right.recv(100, socket.MSG_PEEK).decode(),
            there.getpeername(), here.getsockname()]
def change():
    here.recv(100); right.recv(100)
""",
    "descriptor-on-its-way": """
left, right = socket.socketpair(); right.setblocking(False)
fd = os.open("/root/sent", os.O_RDWR | os.O_CREAT); os.write(fd, b"sent along")
socket.send_fds(left, [b"x"], [fd]); os.close(fd)
def receive(flags):
    try:
        data, control, _, _ = right.recvmsg(10, 100, flags)
    except BlockingIOError:
        return "nothing"
    fds = [struct.unpack_from("i", value)[0] for _, _, value in control]
    said = [data.decode(), *(os.pread(each, 20, 0).decode() for each in fds)]
    for each in fds: os.close(each)
    return said
def look():
    return receive(socket.MSG_PEEK)
def change():
    receive(0)
""",
    "udp": """
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); here.bind(("127.0.0.1", 5353))
here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
six = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
six.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); six.bind(("127.0.0.1", 5354)); six.listen(7)
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); there.connect(("127.0.0.1", 5353)); held = [1]
def look():
    there.send(b"ping")
    data, sender = here.recvfrom(100)
    return [data.decode(), sender == there.getsockname(), six.getsockname(), held,
            here.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)]
def change():
    held.append(2)
""",
}

EVENTS = {
    "inotify": """
os.mkdir("/root/watched"); fd = checked(libc.inotify_init1(os.O_NONBLOCK))
checked(libc.inotify_add_watch(fd, b"/root/watched", 0x100 | 0x200 | 0x8)); seen = [0]
def events():
    try:
        data = os.read(fd, 4096)
    except BlockingIOError:
        return []
    found = []
    while data:
        _, mask, _, size = struct.unpack_from("iIII", data)
        found.append([mask, data[16 : 16 + size].rstrip(b"\\0").decode()]); data = data[16 + size :]
    return found
def look():
    events(); open("/root/watched/new", "w").close(); os.unlink("/root/watched/new")
    return [events(), seen]
def change():
    libc.inotify_rm_watch(fd, 1); seen[0] += 1
""",
    "eventfd-epoll": """
plain, gate = os.eventfd(3), os.eventfd(7, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
out, into = os.pipe(); poll = select.epoll(); poll.register(plain, select.EPOLLIN)
poll.register(out, select.EPOLLIN | select.EPOLLET)
nested = select.epoll(); nested.register(poll, select.EPOLLIN)
def value(fd):
    return [line.split()[1] for line in open(f"/proc/self/fdinfo/{fd}") if "eventfd-count" in line]
def look():
    return [value(plain), value(gate), sorted(poll.poll(0)), nested.poll(0), len(os.listdir("/proc/self/fd"))]
def change():
    os.eventfd_read(plain); os.eventfd_read(gate)
""",
    "signals": """
wanted = {signal.SIGRTMIN, signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted); signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGWINCH, lambda *_: None)
mask = ctypes.c_uint64(1 << (signal.SIGTERM - 1)); fd = checked(libc.signalfd(-1, ctypes.byref(mask), 0x800))
for number in (1, 2, 3):
    checked(libc.sigqueue(os.getpid(), signal.SIGRTMIN, ctypes.c_void_p(number)))
os.kill(os.getpid(), signal.SIGTERM)
def look():
    masks = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    lines = [line.split() for line in open("/proc/self/status") if line.startswith(masks)]
    return [lines, bool(select.select([fd], [], [], 0)[0])]
def change():
    os.read(fd, 128); signal.sigtimedwait({signal.SIGRTMIN}, 0); signal.signal(signal.SIGINT, signal.SIG_DFL)
""",
    "timers-far-away": """
fd = checked(libc.timerfd_create(1, 0)); spec = struct.pack("4q", 0, 0, 100000, 0)
checked(libc.timerfd_settime(fd, 0, spec, None)); signal.setitimer(signal.ITIMER_REAL, 100000, 50000)
signal.setitimer(signal.ITIMER_VIRTUAL, 100000); timer = ctypes.c_void_p()
event = struct.pack("qii48x", 77, signal.SIGRTMIN, 0)
checked(libc.timer_create(1, event, ctypes.byref(timer))); checked(libc.timer_settime(timer, 0, spec, None))
def near(left):
    return 90000 < left <= 100001  # the kernel rounds up to its ticks
def left(read, which):
    now = ctypes.create_string_buffer(32); checked(read(which, now))
    return near(struct.unpack("4q", now.raw)[2])
def look():
    return [left(libc.timerfd_gettime, fd), left(libc.timer_gettime, timer),
            *(near(signal.getitimer(which)[0]) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL)),
            signal.getitimer(signal.ITIMER_REAL)[1]]
def change():
    signal.setitimer(signal.ITIMER_REAL, 0); checked(libc.timer_settime(timer, 0, bytes(32), None))
    checked(libc.timerfd_settime(fd, 0, bytes(32), None)); signal.setitimer(signal.ITIMER_VIRTUAL, 0)
""",
}

FAMILIES = {
    "threads": """
counts, go, done = [0] * 10, [threading.Semaphore(0) for _ in range(10)], threading.Semaphore(0)
ids = {}
def count(number):
    signal.pthread_sigmask(signal.SIG_BLOCK, {number + 34})
    libc.prctl(15, b"counter-%d" % number, 0, 0, 0); ids[number] = threading.get_native_id()
    own = number * 100
    while True:
        counts[number] = own; done.release(); go[number].acquire(); own += 1
for number in range(10):
    threading.Thread(target=count, args=(number,), daemon=True).start(); done.acquire()
def look():
    names = [open(f"/proc/self/task/{ids[n]}/comm").read() for n in range(10)]
    masks = [line for n in range(10) for line in open(f"/proc/self/task/{ids[n]}/status") if "SigBlk" in line]
    return [counts, ids, names, masks]
def change():
    for each in go: each.release(); done.acquire()
""",
    "zombies": """
def dead(how):
    pid = os.fork()
    if not pid:
        how()
    return pid
pids = [dead(lambda: os._exit(3)), dead(lambda: os.kill(os.getpid(), signal.SIGKILL))]
for pid in pids:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
def state(pid):
    try:
        seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return [seen.si_code, seen.si_status, open(f"/proc/{pid}/stat").read().split()[2]]
    except ChildProcessError:
        return None
def look():
    return [state(pid) for pid in pids]
def change():
    os.waitpid(pids[0], 0)
""",
    "dead-session-leader": """
def orphan(session):
    ask, said, told = os.pipe(), os.pipe(), os.pipe()
    leader = os.fork()
    if not leader:
        os.setsid() if session else os.setpgid(0, 0)
        if os.fork():
            os._exit(0)
        count = 0
        while word := os.read(ask[0], 1):
            count += word == b"+"
            who = os.getpid(), os.getppid(), os.getsid(0), os.getpgrp()
            os.write(said[1], json.dumps([who, count]).encode())
    os.waitpid(leader, 0)
    def asking(word):
        os.write(ask[1], word)
        return json.loads(os.read(said[0], 1000))
    return leader, asking
(one, alone), (two, grouped) = orphan(True), orphan(False)
def look():
    return [one, alone(b"?"), two, grouped(b"?")]
def change():
    alone(b"+"); grouped(b"+")
""",
    "many": """
def counting():
    count = 0
    def answer(word):
        nonlocal count
        count += word == "+"
        return [os.getpid(), os.getppid(), count]
    return worker(answer, lambda: [os.close(fd) for fd in others])
others, many = [], []
for _ in range(64):
    many.append(counting()); others += [each.ask for each in many[-1:]] + [each.said for each in many[-1:]]
def look():
    return [each("?") for each in many]
def change():
    for each in many[::2]: each("+")
""",
    "deep": """
def below(depth):
    def answer(word):
        if not depth and word == "+":
            counts.append(1)
        return [os.getpid(), child(word) if depth else len(counts)]
    def prepare():
        global child, counts
        counts = []
        child = below(depth - 1) if depth else None
    return worker(answer, prepare)
top = below(30)
def look():
    return top("?")
def change():
    top("+")
""",
    "stopped": """
child = worker(lambda word: word); os.kill(child.pid, signal.SIGSTOP)
os.waitid(os.P_PID, child.pid, os.WSTOPPED)
def look():
    return open(f"/proc/{child.pid}/stat").read().split()[2]
def change():
    os.kill(child.pid, signal.SIGCONT)
    if child("goes on") != "goes on": raise RuntimeError
""",
    "process-groups": """
children = [worker(lambda word: [os.getpid(), os.getpgrp(), os.getsid(0)]) for _ in range(4)]
for child, leader in ((0, 0), (1, 0), (2, 2), (3, 2)):
    os.setpgid(children[child].pid, children[leader].pid)
own = worker(lambda word: [os.getsid(0), os.getpgrp()], os.setsid)
def look():
    return [own("?"), *(child("?") for child in children)]
def change():
    os.setpgid(children[1].pid, children[2].pid)
""",
    "what-exec-gave": """
os.environ["ADDED"] = "later"; libc.prctl(15, b"renamed", 0, 0, 0); os.nice(5); os.chdir("/usr/share")
os.umask(0o37); import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9000, 9999))
libc.prctl(36, 1, 0, 0, 0); libc.prctl(41, 1, 0, 0, 0)
def prctl(number):
    value = ctypes.c_int(); libc.prctl(number, ctypes.byref(value), 0, 0, 0)
    return value.value
def look():
    umask = os.umask(0o37)
    return [os.environ["ADDED"], os.getcwd(), umask, os.nice(0), resource.getrlimit(resource.RLIMIT_NOFILE),
            *(open(f"/proc/self/{name}").read() for name in ("comm", "environ", "cmdline")),
            os.readlink("/proc/self/exe"), prctl(37), libc.prctl(42, 0, 0, 0, 0)]
def change():
    os.environ["ADDED"] = "changed"; os.chdir("/")
""",
}

NOT_YET = {
    "peer-names": """
here = socket.socket(socket.AF_UNIX); here.bind("/root/listen"); here.listen(5); mark = [1]
one = socket.socket(socket.AF_UNIX); one.connect("/root/listen"); served, _ = here.accept()
def look():
    return [one.getpeername(), served.getsockname(), mark]
def change():
    mark.append(2)
""",
    "processors": """
os.sched_setaffinity(0, {0})
def look():
    return list(os.sched_getaffinity(0))
def change():
    os.sched_setaffinity(0, {1})
""",
}
REASONS = {
    "stopped": "a stopped process is refused: CRIU cannot seize what is stopped and frozen",
    "inotify": "CRIU cannot open the handle of a file on an overlay: fsnotify, Can't dump that handle",
    "peer-names": "CRIU restores a connected pair without the listener's name",
    "processors": "CRIU does not keep the affinity of threads",
}

KINDS = {**FILES, **MEMORY, **CHANNELS, **EVENTS, **FAMILIES, **NOT_YET}

TICKING = """
counts, timer = {"real": 0, "posix": 0, "fd": 0}, ctypes.c_void_p()
def tick(name):
    counts[name] += 1
signal.signal(signal.SIGALRM, lambda *_: tick("real")); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
signal.signal(signal.SIGRTMIN, lambda *_: tick("posix")); spec = struct.pack("4q", 0, 10**7, 0, 10**7)
checked(libc.timer_create(1, struct.pack("qii48x", 0, signal.SIGRTMIN, 0), ctypes.byref(timer)))
checked(libc.timer_settime(timer, 0, spec, None))
fd = checked(libc.timerfd_create(1, 0)); checked(libc.timerfd_settime(fd, 0, spec, None))
def reading():
    while True:
        counts["fd"] += int.from_bytes(os.read(fd, 8), "little")
threading.Thread(target=reading, daemon=True).start()
def change():
    signal.setitimer(signal.ITIMER_REAL, 0); checked(libc.timer_settime(timer, 0, bytes(32), None))
    checked(libc.timerfd_settime(fd, 0, bytes(32), None))
    counts.update(real=10**9, posix=10**9, fd=10**9)
show(lambda: counts, change)
"""

# What an engine inside the sandbox cannot take, by the words that have to say so.
NAMED = {
    "traced by process": """
child = worker(lambda word: word); checked(libc.ptrace(0x4206, child.pid, None, None))
""",
    "has namespaces of its own": """
child = worker(lambda word: word, lambda: checked(libc.unshare(0x20000)))
if child("?") != "?": raise RuntimeError
""",
    "has POSIX message queues": """
rt = ctypes.CDLL("librt.so.1"); queue = checked(rt.mq_open(b"/queue", os.O_RDWR | os.O_CREAT, 0o600, None))
""",
    "link remap": """
fd = os.open("/root/one", os.O_RDWR | os.O_CREAT); os.link("/root/one", "/root/two"); os.unlink("/root/one")
""",
    "in-flight socket": """
here = socket.socket(socket.AF_UNIX); here.bind("/root/listen"); here.listen(5)
one = socket.socket(socket.AF_UNIX); one.connect("/root/listen"); one.send(b"waits")
""",
}
