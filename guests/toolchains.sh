# What guests/build and its parts in build.d/ share; sourced, never run.

script=$(realpath "$0")

say() { printf 'guests/%s: %s\n' "${script#"$guests/"}" "$*" >&2; }
die() { say "$*"; exit 1; }

can_install() { [[ $(id -u) -eq 0 && -f /etc/debian_version ]] && command -v apt-get >/dev/null; }

install() {
    say "installing $* (Debian packages) with apt-get"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}
