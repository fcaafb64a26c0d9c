# shellcheck shell=bash
# What the scripts in this folder share. Sourced by them, never run.

# A root shell opened with plain `su` lacks the folders dockerd and debootstrap are in.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# TURNKEEP_ENGINE_ROOT=PREFIX stands for a second engine that has everything
# under PREFIX, for tests that must be free to break theirs.
engine_root=${TURNKEEP_ENGINE_ROOT:+$(realpath -m -- "$TURNKEEP_ENGINE_ROOT")}
[[ -z $engine_root ]] || export DOCKER_HOST=unix://$engine_root/docker.sock

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# require_root WHY
require_root() {
  [[ $EUID -eq 0 ]] || die "$1 needs root; this is user $(id -un)"
}

# take_lock FILE: holds it until this script and all that it started have ended.
take_lock() {
  [[ -e $1 ]] || : >>"$1"
  local fd
  exec {fd}<"$1"
  flock --nonblock "$fd" && return
  say "waiting for another run to end"
  flock "$fd"
}

# os_release FIELD: its value, empty when unknown.
os_release() (
  unset ID ID_LIKE VERSION_CODENAME
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || . /etc/os-release
  printf '%s' "${!1:-}"
)

# require_known_system WHY
require_known_system() {
  case " $(os_release ID) $(os_release ID_LIKE) " in
    *" debian "* | *" ubuntu "*) ;;
    *) die "$1 is only known for Debian and Ubuntu; this is '$(os_release ID)': please do it by hand" ;;
  esac
}

# apt_install PACKAGE…
apt_install() {
  require_root "installing $*"
  require_known_system "installing $*"
  local log
  log=$(mktemp)
  say "installing $*"
  # The lists are fetched only when the first attempt shows that they are
  # missing or stale: a source of somebody else's may take minutes to time out.
  if ! apt_get install --no-install-recommends "$@" >"$log" 2>&1; then
    apt_get update >>"$log" 2>&1 || true
    if ! apt_get install --no-install-recommends "$@" >>"$log" 2>&1; then
      tail -n 15 "$log" >&2
      rm -f "$log"
      die "apt-get could not install $*"
    fi
  fi
  rm -f "$log"
}

# apt has no timeout for the lock of its lists, hence one of ours. No lock is
# handed down: a service that a package starts would hold it for as long as it runs.
apt_get() (
  close_inherited
  export DEBIAN_FRONTEND=noninteractive
  flock -o /run/lock/turnkeep-apt.lock apt-get -y -o DPkg::Lock::Timeout=300 "$@" </dev/null
)

# Closes what this shell got or opened beyond the three standard streams. For subshells.
close_inherited() {
  local path fd
  for path in /proc/"$BASHPID"/fd/*; do
    fd=${path##*/}
    ((fd <= 2)) || exec {fd}>&-
  done
}

# Prints the version of the engine that answers. One that hangs does not answer.
engine_version() {
  timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null
}

# Debian 12's docker.io holds the client; later it is a package of its own,
# which docker.io only recommends.
require_docker_cli() {
  if command -v docker >/dev/null; then return; fi
  if [[ -n $(apt-cache search --names-only '^docker-cli$' 2>/dev/null) ]]; then
    apt_install docker-cli
  else
    apt_install docker.io
  fi
}

# criu_version CRIU: what it says of itself; fails for what is no CRIU.
criu_version() {
  "$1" --version 2>/dev/null | awk '$1 == "Version:" { print $2; found = 1 } END { exit !found }'
}

# Prints the newest Python that will do. Each candidate is run, because a version
# manager has its shims in the PATH also for versions that are not there.
find_python() {
  local name
  for name in python3.14 python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}
