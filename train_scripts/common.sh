# Sourced by the experiments in the folders beside this file.
#
# Environment of every experiment:
#   PYTHON  the Python program (default: python)
# Any further arguments (KEY VALUE pairs or options of the training script) are passed on and override the experiment's.

set -euo pipefail

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)

# absolute PATH: print PATH, relative to the user's current folder, as an absolute path; '' stays '', and what begins with
# ~ or $ is left to the program, which writes it out.
absolute() {
  local path=$1
  case $path in [\'\"]*[\'\"]) path=${path:1:${#path}-2} ;; esac # quotes that belong to the value
  case $path in '' | /* | '~'* | '$'*) ;; *) path=$PWD/$path ;; esac
  printf '%s' "$path"
}

# train SCRIPT CONFIG_FILE [KEY VALUE ...]: run SCRIPT in the repository root, replacing this shell.
train() {
  local script=$1 config_file=$2 python=${PYTHON:-python} previous='' argument
  local arguments=()
  shift 2
  case $python in */*) python=$(absolute "$python") ;; esac
  for argument in "$@"; do
    case $argument in
      --config_file=* | --config-file=*) argument=${argument%%=*}=$(absolute "${argument#*=}") ;;
    esac
    case $previous in
      MODEL.PRETRAIN_PATH)
        case $argument in
          auto) ;;
          auto:*) argument=auto:$(absolute "${argument#auto:}") ;;
          *) argument=$(absolute "$argument") ;;
        esac
        ;;
      DATASETS.ROOT_DIR | DATASETS.JSON_TRAIN_PATH | DATASETS.CSV_PATH | DATALOADER.CACHE_DIR | OUTPUT_DIR | \
        --config_file | --config-file)
        argument=$(absolute "$argument")
        ;;
    esac
    arguments+=("$argument")
    previous=$argument
  done
  cd -- "$REPO"
  exec "$python" "$script" --config_file "$config_file" "${arguments[@]}"
}
