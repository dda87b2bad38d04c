# Sourced by the commands beside it. Gives them $PROJECT, and functions that make what they need exist.
# shellcheck shell=bash

# reason for no `$(cd …; pwd)`: the usual start spends no process on finding out where it is
PROJECT=${BASH_SOURCE[0]}
[[ $PROJECT == /* ]] || PROJECT=$PWD/$PROJECT
PROJECT=${PROJECT%/*}/..
[[ ${PROJECT##*/tools} != /.. ]] || PROJECT=${PROJECT%/tools/..}
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export PATH
VENV=$PROJECT/.venv
STAMP=$VENV/refledger-stamp

# What the tests, the demo and the benches use besides Python, as command=package.
TEST_PACKAGES=(
    docker-registry=docker-registry runc=runc skopeo=skopeo umoci=umoci buildah=buildah podman=podman
    ssh-keygen=openssh-client mmdebstrap=mmdebstrap tmux=tmux zstd=zstd htpasswd=apache2-utils setfattr=attr git=git
    fsck.erofs=erofs-utils dockerd=docker.io chromium=chromium rpm=rpm
)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# locked COMMAND...: one at a time per project directory. Started anew while another start installs, it waits.
locked() {
    local lock
    (
        exec {lock}<"$PROJECT" || exit 3
        flock "$lock" || exit 3
        "$@"
    )
}

# quietly COMMAND...: its output only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1 </dev/null) && return 0
    printf '%s\n' "$output" | tail -n 15 >&2
    return 1
}

# install_missing COMMAND=PACKAGE...: installs the Debian packages of those commands that are not there. Needs root.
install_missing() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null; then
        say "not installed, and no apt-get to do it: ${missing[*]}"
        return 3
    elif ((EUID)); then
        say "not installed: ${missing[*]} (as root: apt-get install ${missing[*]})"
        return 3
    fi
    say "installing Debian packages: ${missing[*]}"
    locked _apt_install "${missing[@]}" || { say "apt-get could not install: ${missing[*]}"; return 3; }
}

_apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=600)
    # reason: the package lists may be missing or older than the mirror; only then is an update worth its time
    "${apt[@]}" install -y --no-install-recommends "$@" </dev/null >/dev/null 2>&1 && return 0
    quietly "${apt[@]}" update && quietly "${apt[@]}" install -y --no-install-recommends "$@"
}

# install_static_busybox: Debian's plain busybox package has the same command name, but needs a C library beside it.
install_static_busybox() {
    [[ $(ldd "$(command -v busybox)" 2>&1) == *"not a dynamic executable"* ]] && return 0
    install_missing no-static-busybox=busybox-static
}

# use_venv run|dev: $VENV with this project in it, and for dev what its tests need. Spends no process when it is there.
use_venv() {
    _venv_is_current "$1" || locked _make_venv "$1"
}

# The stamp says what was installed: `run` or `dev`, for which project directory, with which interpreter, and then the
# pyproject.toml it was installed from. A moved project, a changed interpreter or an edited pyproject.toml: not current.
_venv_is_current() {
    local wanted=$1 level project python stamped current
    [[ -r $STAMP ]] || return 1
    { read -r level && read -r project && read -r python; IFS= read -r -d '' stamped; } <"$STAMP"
    IFS= read -r -d '' current <"$PROJECT/pyproject.toml"
    [[ $level == "$wanted" || $level == dev ]] && [[ $stamped == "$current" ]] &&
        [[ $project -ef $PROJECT && $python -ef $VENV/bin/python ]]
}

_make_venv() {
    _venv_is_current "$1" && return 0 # another start made it while this one waited
    local python extra=''
    [[ $1 == dev ]] && extra='[dev]'
    # reason: tools remember the path they were installed at, so it has to be one that lasts
    PROJECT=$(CDPATH='' cd -P -- "$PROJECT" && pwd) && VENV=$PROJECT/.venv STAMP=$PROJECT/.venv/refledger-stamp
    if ! _venv_works; then
        python=$(_find_python) || return 3
        say "preparing $VENV with $("$python" --version 2>&1) (once)"
        rm -rf -- "$VENV"
        quietly "$python" -m venv "$VENV" || { say "could not make $VENV"; return 3; }
    else
        say "bringing $VENV up to date with pyproject.toml"
    fi
    rm -f -- "$STAMP"
    # reason for compat: one line in a .pth file; setuptools' default is an import hook that costs 10 ms each start
    PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 quietly "$VENV/bin/python" -m pip install --quiet \
        --no-input --config-settings editable_mode=compat --editable "$PROJECT$extra" ||
        { say "pip could not install what pyproject.toml names"; return 3; }
    { printf '%s\n' "$1" "$PROJECT" "$(readlink -f -- "$VENV/bin/python")" && cat -- "$PROJECT/pyproject.toml"; } \
        >"$STAMP.new" && mv -- "$STAMP.new" "$STAMP"
}

# A venv whose interpreter is gone, or was replaced by a later Python, does not find its own pip.
_venv_works() {
    [[ -x $VENV/bin/python && $(_new_python "$VENV/bin/python" pip) ]] &&
        [[ $("$VENV/bin/python" -I -c 'import sys; print(sys.prefix)') -ef $VENV ]]
}

# The first python3 on PATH, or else the system's, that is new enough and can make a venv, as a real interpreter.
_find_python() {
    local candidate
    for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        _new_python "$candidate" ensurepip && return 0
    done
    if ! command -v /usr/bin/python3 >/dev/null || _new_python /usr/bin/python3 >/dev/null; then
        _already_locked_install python3 python3-venv && _new_python /usr/bin/python3 ensurepip && return 0
    fi
    say "needs Python 3.11 or newer, with its venv module (Debian 12: apt-get install python3 python3-venv)"
    return 3
}

# reason: this runs under the lock that install_missing would take again
_already_locked_install() {
    command -v apt-get >/dev/null && ((EUID == 0)) || return 1
    say "installing Debian packages: $*"
    _apt_install "$@"
}

_new_python() { # COMMAND [MODULE]: prints the interpreter behind COMMAND if it is 3.11 or newer and has MODULE
    "$1" -I -c 'import importlib, os, sys
sys.version_info >= (3, 11) or sys.exit(1)
[importlib.import_module(name) for name in sys.argv[1:]]
print(os.path.realpath(sys.executable))' "${@:2}" 2>/dev/null
}
