#!/usr/bin/env bash
# The CTL model with ResNet-50 and images of 256 x 128 pixels on Street2Shop.
#   DATA_ROOT        folder that holds train/, query/ and gallery/ (default:
#                    data/street2shop/images_reid_cropped_320_320 in the repository)
#   JSON_TRAIN_PATH  COCO file of the training set (default: meta/train_coco_reid.json beside DATA_ROOT)
#   OUTPUT_DIR       folder for logs and checkpoints (default: logs/street2shop/train_ctl_model_s_r50 in the repository)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

DATA_ROOT=${DATA_ROOT:-$REPO/data/street2shop/images_reid_cropped_320_320}

train train_ctl_model.py configs/256_resnet50.yml \
  DATASETS.NAMES street2shop \
  DATASETS.ROOT_DIR "$DATA_ROOT" \
  DATASETS.JSON_TRAIN_PATH "${JSON_TRAIN_PATH:-$(dirname -- "$DATA_ROOT")/meta/train_coco_reid.json}" \
  OUTPUT_DIR "${OUTPUT_DIR:-$REPO/logs/street2shop/train_ctl_model_s_r50}" \
  SOLVER.IMS_PER_BATCH 48 \
  TEST.IMS_PER_BATCH 256 \
  SOLVER.BASE_LR 1e-4 \
  MODEL.KEEP_CAMID_CENTROIDS False \
  DATALOADER.USE_RESAMPLING False \
  "$@"
