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

# Makes a project of the template of a language, as `polygate guest new` does: instantiate LANGUAGE FOLDER
instantiate() {
    local template=$guests/templates/$1 from to
    rm -rf "$2"
    mkdir -p "$2"
    cp -r "$template/." "$2"
    cp -r "$guests/../wit" "$2/wit"
    rm "$2/template.toml"
    grep -rlZ '{{name}}' "$2" | xargs -0 -r sed -i "s/{{name}}/lines/g"
    while read -r from to; do
        mkdir -p "$(dirname "$2/$to")"
        cp -r "$template/$from" "$2/$to"
    done < <(sed -n 's/.*{ from = "\([^"]*\)", to = "\([^"]*\)" }.*/\1 \2/p' "$template/template.toml")
}
