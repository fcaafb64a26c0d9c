"""What runs inside a sandbox for a shell: POSIX sh, because any image may come.

A shell is one tree of processes that no client holds on to, and a folder:

    bash -i                 reads its commands from `in`, which it holds open itself
    └─ sh ── cat            moves what is printed from `pipe` to the end of `out`

    in, pipe, done          FIFOs: lines to the shell, its output, news for who waits
    out                     the output of the present command; empty between commands
    pid, limit, busy        of the shell; bytes that `out` may hold; who runs a command
    run-TOKEN               a command, removed when it has ended

All of it is files and processes in the sandbox, so that a checkpoint holds it
whole. An interactive shell is used because it alone gives up a command at
SIGINT without ending. Programs print into a pipe, not into the file: many open
/dev/stderr anew, which would truncate a file.

A run is one short exec (RUN). It leaves three lines in `in`: the middle one reads
the command, the others put marks with the run's token into the output, and the
last tells the exit code. An interrupted shell drops the line it is at.
"""

from __future__ import annotations

_COMMON = r"""
set -u
umask 077
# Whether the process of that number is the shell of this folder, not a later one.
alive() {
  [ -r "$d/pid" ] && read -r pid <"$d/pid" &&
    tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qxF "TURNKEEP_SHELL=$d"
}
# The lines around a run ($1: its token). Both leave `$?` as it was, for the next command;
# but where that would end the shell (`set -e`), it is lost.
first_line() {
  printf '%s\n' "(s=\$?; printf '\\0B$1\\0' >&9; $leave)"
}
last_line() {
  printf '%s\n' "(s=\$?; rm -f $d/run-$1; printf '\\0E$1\\0' >&9; \
[ ! -p $d/done ] || echo $1 exited \$s 1<>$d/done; $leave)"
}
leave='case $- in *e*) exit 0;; esac; exit $s'
"""

FIND = (
    _COMMON
    + r"""
# NAME LIMIT: prints the shell's folder, "alive" and its limit, or makes the folder: "new".
name=.turnkeep-shell-$(id -u)-$1
found=
for base in /tmp /var/tmp /dev/shm /run; do
  d=$base/$name
  [ ! -d "$d" ] || [ ! -O "$d" ] || { found=$d; break; }
done
if [ -n "$found" ] && alive; then
  echo "$d alive $(cat "$d/limit")"
  exit
fi
[ -z "$found" ] || rm -rf "$found"
for base in /tmp /var/tmp /dev/shm /run; do
  d=$base/$name
  mkdir -m 700 "$d" 2>/dev/null || continue
  mkfifo "$d/in" "$d/pipe" "$d/done" && : >"$d/out" && echo "$2" >"$d/limit" || exit
  echo "$d new $2"
  exit
done
echo "no folder to write to: tried /tmp, /var/tmp, /dev/shm and /run" >&2
exit 1
"""
)

START = r"""
# FOLDER LIMIT: becomes the shell. TURNKEEP_SHELL is in its environment.
d=$1
unset TMOUT PROMPT_COMMAND MAIL MAILPATH HISTFILE
umask_was=$(umask)
umask 077
# In a session of its own, out of the reach of `kill 0` and of SIGINT. Over its
# limit a write fails: what is printed from then on is dropped until `out` is emptied.
if command -v setsid >/dev/null; then session=setsid; else session=; fi
$session sh -c 'trap "" HUP INT QUIT TERM XFSZ
  ulimit -f "$(($2 / 512 + 1))"
  cd /
  until cat; do :; done <"$1/pipe" >>"$1/out" 2>/dev/null' sh "$d" "$2" </dev/null >/dev/null 2>&1 &
echo "$$" >"$d/pid"
umask "$umask_was"
if command -v bash >/dev/null; then set -- bash --norc --noprofile --noediting -i; else set -- sh -i; fi
exec "$@" 9>"$d/pipe" <>"$d/in" >/dev/null 2>&1
"""

SET_UP = r"""
[ -z "${BASH_VERSION:-}" ] || { set +o history +o histexpand; unset HISTFILE; }
trap 'turnkeep_status=$?
read -r turnkeep_waits turnkeep_run <"%(folder)s/busy" || exit
{ printf "\0E$turnkeep_run\0" >&9; } 2>/dev/null || printf "\0E$turnkeep_run\0"
echo "$turnkeep_run ended $turnkeep_status" 1<>"%(folder)s/done"' EXIT
"""
"""The first command of a shell: no history, and word of its end."""

RUN = (
    _COMMON
    + r"""
# FOLDER TOKEN BYTES new|alive: runs the command on stdin. Prints a line "turnkeep WORD CODE",
# then the output with its marks, at most so many bytes of it. WORD is one of exited, ended
# (the shell itself), abandoned (nobody waits any more), gone (no shell), busy.
d=$1 t=$2
said() { echo "turnkeep $1 ${2:--}"; }
[ "$4" = new ] || alive || { said gone; exit; }
if ! (set -C; echo "$$ $t" >"$d/busy") 2>/dev/null; then
  read -r other token <"$d/busy"
  # Who was killed, by a restore perhaps, is busy no more.
  if tr '\0' '\n' <"/proc/$other/cmdline" 2>/dev/null | grep -qxF "$token"; then said busy; exit; fi
  echo "$$ $t" >"$d/busy"
fi
# Open for both: nothing waits for a shell that does not come up.
exec 3<>"$d/done" 4<>"$d/in"
cat >"$d/run-$t"
: >"$d/out"
# `command`, because an error within `.` would have dash drop the last line as well.
lines="$(first_line "$t")
command . $d/run-$t </dev/null >&9 2>&1 9>&-
$(last_line "$t")"
# In one piece, and too short to block.
printf '%s\n' "$lines" >&4
while read -r token word code <&3 && [ "$token" != "$t" ]; do :; done
# The last mark may still be on its way through the pipe.
if [ "$word" != abandoned ]; then
  read -r limit <"$d/limit"
  tries=500
  until tail -c 8192 "$d/out" | tr '\0' '\n' | grep -qxF "E$t"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] && [ "$(wc -c <"$d/out")" -lt "$((limit + 4096))" ] || break
  done
fi
said "$word" "$code"
head -c "$3" "$d/out"
: >"$d/out"
rm -f "$d/busy"
"""
)

INTERRUPT = (
    _COMMON
    + r"""
# FOLDER: sends SIGINT to what the shell runs. A shell that forgets what it had read of `in`
# at that (dash) is told the last line again; from others a second answer does no harm.
d=$1
alive || exit 0
kill -s INT -- "-$pid"
if read -r other token 2>/dev/null <"$d/busy" && [ -e "$d/run-$token" ]; then last_line "$token" >"$d/in"; fi
"""
)

ABANDON = r"""
# FOLDER TOKEN: lets go who waits for the command's end.
[ ! -p "$1/done" ] || echo "$2 abandoned -" 1<>"$1/done"
"""

LOOK = (
    _COMMON
    + r"""
# FOLDER: prints the shell's working folder, or nothing when it is gone.
d=$1
! alive || readlink "/proc/$pid/cwd"
"""
)

CLOSE = (
    _COMMON
    + r"""
# FOLDER: ends the shell as a closed terminal does, and removes the folder.
d=$1
if alive; then
  kill -s HUP -- "-$pid"
  kill -s KILL "$pid"
fi
rm -rf "$d"
"""
)
