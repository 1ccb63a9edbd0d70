#!/usr/bin/env bash
# The tests in surroundings that must not matter to them.
#
#   scripts/surroundings.sh WHICH [arguments of pytest]
#
#   alone   nothing is special
#   busy    beside two busy loops
#   nohup   with SIGINT and SIGHUP ignored, as shells start what runs in the background
#   disk    every fsync takes 50 ms longer (needs gcc)
#   names   to look up the name of another machine takes 20 s, and fails (needs gcc)
#   proxy   a proxy that does not answer, and a home folder with broken files
#   user    a user without rights, on a clone of the last commit (needs root, and a Python that all may run)
#
# PYTHON names the Python to take (python3).
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:?alone, busy, nohup, disk, names, proxy or user}
shift
python=$(command -v "${PYTHON:-python3}")
scratch=$(mktemp -d)
loops=()
trap '[ ${#loops[@]} = 0 ] || kill "${loops[@]}"; rm -rf "$scratch"' EXIT
export PYTHONPATH=$PWD

shim() {  # compile C that stands before the C library
    gcc -shared -fPIC -O1 -o "$scratch/shim.so" -xc - -ldl
    export LD_PRELOAD=$scratch/shim.so
}

case $which in
alone) ;;
busy)
    for _ in 1 2; do
        while :; do :; done &
        loops+=($!)
    done
    ;;
nohup) trap '' INT HUP ;;
disk)
    shim <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fsync(int file) {
    usleep(50000);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
int fdatasync(int file) {
    usleep(50000);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}
C
    ;;
names)
    shim <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>
typedef int (*lookup)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    if (name && strcmp(name, "localhost") && !strchr(name, ':')
        && strspn(name, "0123456789.") != strlen(name)) {
        sleep(20);
        return EAI_AGAIN;
    }
    return ((lookup)dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
C
    ;;
proxy)
    for name in http_proxy https_proxy all_proxy; do
        export "$name=http://127.0.0.1:9" "${name^^}=http://127.0.0.1:9"
    done
    export HOME=$scratch XDG_CACHE_HOME=
    unset BIT_PADDLE_HOME
    folder=$("$python" -W ignore -c "from bit_paddle.models.native import compiler, library
print(library.cache_path(compiler.sources_hash()))")
    mkdir -p "$folder"
    for name in facts.json fault.txt operators.so; do
        echo broken > "$folder/$name"
    done
    ;;
user)
    git clone --quiet . "$scratch/clone"
    export BIT_PADDLE_SHARED=${BIT_PADDLE_SHARED:-$(dirname "$PWD")/shared}
    cd "$scratch/clone"
    export PYTHONPATH=$PWD HOME=$scratch TMPDIR=$scratch/temporary XDG_CACHE_HOME=
    unset BIT_PADDLE_HOME
    mkdir "$TMPDIR"
    chown -R nobody "$scratch"
    python=(setpriv --reuid nobody --regid nogroup --clear-groups -- "$python")
    "${python[@]}" -c "import subprocess, sys; subprocess.check_call([sys.executable, '-V'])"
    ;;
*)
    echo "$which: not one of alone, busy, nohup, disk, names, proxy, user" >&2
    exit 2
    ;;
esac
"${python[@]}" -m pytest "$@"
