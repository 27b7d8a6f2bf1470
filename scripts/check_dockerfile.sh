#!/usr/bin/env bash
# Carries out the Dockerfile where there is no docker: its own instructions, one after the other. A folder for each stage
# stands for /, a virtual environment for the image's Python, and useradd only notes whom it would add.
#
#   scripts/check_dockerfile.sh ENVIRONMENT [CONTEXT [STAGES]]
#
# ENVIRONMENT: a virtual environment with pip, which installs the package there. What it has, pip does not fetch.
# CONTEXT: the folder with Dockerfile and .dockerignore; by default the repository.
# STAGES: where the folders of the stages are kept; by default they are temporary.
set -Eeuo pipefail

environment=$(realpath "$1")
context=$(realpath "${2:-$(dirname "$0")/..}")
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
stages=$(realpath -m "${3:-$temporary/stages}")
root='' line='' number=0 given=() # given: NAME=VALUE of each ARG and ENV that holds

fail() { echo "error: $where: $1" >&2 && exit 1; }
trap 'fail "this failed"' ERR

copy_context() { # .dockerignore leaves all out by '*', then takes in by '!NAME', and out again by '**/GLOB'
    where=.dockerignore
    [[ $(grep -m 1 '^[^#]' "$context/.dockerignore") == '*' ]] || fail "expected first of all a line with *"
    while read -r pattern; do
        where=".dockerignore: $pattern"
        if [[ $pattern =~ ^!([^*?/]+)$ ]]; then
            cp -r "$context/${BASH_REMATCH[1]}" "$temporary/context"
        elif [[ $pattern =~ ^\*\*/([^/]+)$ ]]; then
            find "$temporary/context" -name "${BASH_REMATCH[1]}" -prune -exec rm -r {} +
        elif [[ $pattern != '*' ]]; then
            fail "this is not known here"
        fi
    done < <(grep '^[^#]' "$context/.dockerignore")
}

run() { # HOME COMMAND...
    env -C "$root$folder" "HOME=$1" "PATH=$temporary/bin:$environment/bin:/usr/bin:/bin" "${given[@]}" "${@:2}" </dev/null
}

carry_out() { # INSTRUCTION REST
    local rest=$2 from="$temporary/context" words word target
    [[ ! ${rest,,} =~ libgl|opencv|cv2 ]] || fail "the package needs neither opencv nor libGL"
    if [[ $1 == FROM && -z $root ]]; then before=("${given[@]}"); fi
    if [[ $1 == FROM ]]; then given=("${before[@]}"); fi
    if [[ $1 != RUN && $1 != CMD ]]; then # a shell puts values in the place of $NAME and ${NAME}
        rest=$(env -i "${given[@]}" sh -uc "cat <<END"$'\n'"$rest"$'\nEND')
    fi
    read -ra words <<<"$rest"
    case $1 in
        FROM)
            [[ ${words[0]} == python:3.*-slim ]] || fail "only python:3.*-slim has a stand-in here"
            root=$stages/${words[2]:-image} folder=/ user='' command='' given=()
            mkdir -p "$root" && true >"$temporary/users" ;;
        ARG | ENV) given+=("${words[@]}") ;;
        WORKDIR) folder=$rest && mkdir -p "$root$folder" ;;
        COPY)
            if [[ $rest == --from=* ]]; then from=$stages/${words[0]#*=} words=("${words[@]:1}"); fi
            target=${words[-1]} && cd "$root$folder"
            if [[ $target == /* ]]; then target=$root$target; fi
            if [[ $target == */ ]]; then mkdir -p "$target"; fi
            for word in "${words[@]:0:${#words[@]}-1}"; do
                if [[ -d $from/$word ]]; then word+=/.; fi
                cp -r "$from/$word" "$target"
            done ;;
        RUN) run "$root/root" sh -uc "$(sed -E "s,(^|[ =\"(])/,\1$root/,g" <<<"$rest")" ;;
        USER)
            [[ $rest != root && $rest != 0 ]] || fail "the image would run as root"
            grep -qE -- "--uid $rest | $rest\$" "$temporary/users" || fail "no useradd above adds this user"
            user=$rest ;;
        CMD) command=$rest ;;
        *) fail "this instruction is not known here" ;;
    esac
}

[[ ! -e $environment/bin/ctl-train ]] || where=$environment fail "the package is already there; give another environment"
mkdir "$temporary/bin" "$temporary/context"
printf '#!/bin/sh\necho "$*" >>%q\n' "$temporary/users" >"$temporary/bin/useradd"
chmod +x "$temporary/bin/useradd"
copy_context
while IFS= read -r text; do
    number=$((number + 1))
    if [[ $text =~ ^[[:space:]]*(#|$) ]]; then continue; fi
    line+=$text where="Dockerfile, line $number: $line"
    if [[ $text == *\\ ]]; then line=${line%\\} && continue; fi
    carry_out "${line%% *}" "${line#* }"
    line=''
done <"$context/Dockerfile"

where="Dockerfile, at its end"
[[ -n $user ]] || fail "the image would run as root, since no USER follows the last FROM"
grep -qF -- "--create-home --home-dir $root$folder " "$temporary/users" || fail "the user does not own the WORKDIR"
run "$root$folder" python -c 'from importlib.util import find_spec; exit(find_spec("cv2") and "opencv got installed")'
where="Dockerfile: CMD $command"
run "$root$folder" python -c 'import json, os, sys; w = json.loads(sys.argv[1]); os.execvp(w[0], w)' "$command"
