"""The strips of a model show what its network sees."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.metrics import evaluate
from evaluation.retrieval import RetrievalSet
from modelling.evaluation import ranking_options, write_strips
from tests.small import small_config
from tests.support import UPRIGHT, save_turned, stored_pixels


@pytest.mark.parametrize("upright", [True, False])
def test_orientation_follows_the_configuration(tmp_path, upright):
    expected = UPRIGHT[6 if upright else 1](stored_pixels())
    files = {
        "turned": save_turned(tmp_path / "turned" / "a.png", 6),
        "plain": save_turned(tmp_path / "plain" / "a.png", 1, expected),
    }
    strips, thumbnails = [], []
    for name, path in files.items():
        options = {"OUTPUT_DIR": str(tmp_path / "out" / name), "INPUT.EXIF_ORIENTATION": upright}
        hparams = small_config(**options)
        rows = torch.eye(2)
        retrieval = RetrievalSet(rows[:1], rows, [1], [1, 2], [0], [1, 1], [str(path)], [str(path)] * 2)
        results = {"instance": evaluate(retrieval, ranking_options(hparams, "instance"))}
        (page,) = write_strips(retrieval, results, hparams)
        (strip,) = page.parent.rglob("*.png")
        strips.append(np.asarray(Image.open(strip)))
        text = page.read_text(encoding="utf-8")
        thumbnails.append(re.search(r'"thumbnails":(\[.*?\])', text)[1])
        assert f'"{strip.name}"' in text
    np.testing.assert_array_equal(*strips)
    assert thumbnails[0] == thumbnails[1] != "[]"
