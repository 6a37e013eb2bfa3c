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

# is_fresh COMPONENT FILE...: the component was made of these files as they are now. made_of COMPONENT FILE... notes it.
is_fresh() {
    local component=$1
    shift
    [[ -f $component ]] && sha256sum "$@" | cmp -s - "$component.sources"
}
made_of() {
    local component=$1
    shift
    sha256sum "$@" >"$component.sources"
}

# stage_template NAME DIR: templates/NAME as "polygate guest new" writes it for a handler named "template".
stage_template() {
    local template=$guests/templates/$1 file
    rm -rf "$2"
    mkdir -p "$2"
    cp -r "$template/." "$guests/../wit" "$2"
    for file in $(sed -n 's/^copy = \[\(.*\)\]$/\1/p' "$template/template.toml" | tr -d '",'); do
        cp "$template/$file" "$2"
    done
    grep -rl '{{name}}' "$2" | xargs sed -i 's/{{name}}/template/g'
}
