#!/usr/bin/env bash
# The base model, without the centroid loss, with ResNet-50 and images of 256 x 128 pixels on DukeMTMC-reID.
#   DATA_ROOT   folder that holds DukeMTMC-reID/ (default: data in the repository)
#   OUTPUT_DIR  folder for logs and checkpoints (default: logs/dukemtmc/train_base_model_s_r50 in the repository)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

train train_base_model.py configs/256_resnet50.yml \
  DATASETS.NAMES dukemtmcreid \
  DATASETS.ROOT_DIR "${DATA_ROOT:-$REPO/data}" \
  OUTPUT_DIR "${OUTPUT_DIR:-$REPO/logs/dukemtmc/train_base_model_s_r50}" \
  SOLVER.IMS_PER_BATCH 16 \
  TEST.IMS_PER_BATCH 128 \
  SOLVER.BASE_LR 3.5e-4 \
  DATALOADER.USE_RESAMPLING True \
  USE_MIXED_PRECISION False \
  MODEL.USE_CENTROIDS False \
  REPRODUCIBLE_NUM_RUNS 1 \
  "$@"
