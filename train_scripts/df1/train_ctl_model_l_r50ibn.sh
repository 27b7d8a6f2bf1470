#!/usr/bin/env bash
# The CTL model with ResNet-50-IBN-a and images of 320 x 320 pixels on DeepFashion Consumer-to-Shop.
#   DATA_ROOT        folder that holds train/, query/ and gallery/ (default: data/df1/320_320_cropped_images in the
#                    repository)
#   JSON_TRAIN_PATH  COCO file of the training set (default: train_reid_cropped_320_320.json beside DATA_ROOT)
#   OUTPUT_DIR       folder for logs and checkpoints (default: logs/df1/train_ctl_model_l_r50ibn in the repository)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

DATA_ROOT=${DATA_ROOT:-$REPO/data/df1/320_320_cropped_images}

train train_ctl_model.py configs/320_resnet50_ibn_a.yml \
  DATASETS.NAMES df1 \
  DATASETS.ROOT_DIR "$DATA_ROOT" \
  DATASETS.JSON_TRAIN_PATH "${JSON_TRAIN_PATH:-$(dirname -- "$DATA_ROOT")/train_reid_cropped_320_320.json}" \
  OUTPUT_DIR "${OUTPUT_DIR:-$REPO/logs/df1/train_ctl_model_l_r50ibn}" \
  SOLVER.IMS_PER_BATCH 12 \
  TEST.IMS_PER_BATCH 128 \
  SOLVER.BASE_LR 1e-4 \
  MODEL.KEEP_CAMID_CENTROIDS False \
  DATALOADER.USE_RESAMPLING False \
  "$@"
