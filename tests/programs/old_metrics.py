r"""Distances, ranking metrics and ranked images, as scripts around the original compute them.

Prints:
    Rank-1\s*:\s*100\.0%
    strips written: 6
"""
import glob
import os
import os.path as osp
import re
import sys

import numpy as np
import torch

from config import cfg
from train_ctl_model import CTLModel
from utils.eval_reid import eval_func, k_list, top_k_retrieval
from utils.reid_metric import R1_mAP, cosine_similarity, get_cosine, get_dist_func, get_euclidean
from utils.visrank import visualize_ranked_results

np.random.seed(0)
torch.manual_seed(0)


def read_dir(path):
    data = []
    for img_path in sorted(glob.glob(osp.join(path, '*.jpg'))):
        pid, camid = map(int, re.search(r'([-\d]+)_c(\d)', osp.basename(img_path)).groups())
        if pid > 0:
            data.append((img_path, pid, camid - 1, len(data)))
    return data


root = osp.join(sys.argv[1], 'market1501')
query, gallery = read_dir(osp.join(root, 'query')), read_dir(osp.join(root, 'bounding_box_test'))
query = query[:6]
n_q = len(query)
q_pids, g_pids = [np.asarray([row[1] for row in rows]) for rows in (query, gallery)]
q_camids, g_camids = [np.asarray([row[2] for row in rows]) for rows in (query, gallery)]

# embeddings of which those of an identity lie close together, as float64 out of numpy
centers = {pid: np.random.randn(16) for pid in sorted(set(q_pids) | set(g_pids))}
qf = np.stack([centers[pid] + 0.05 * np.random.randn(16) for pid in q_pids])
gf = np.stack([centers[pid] + 0.05 * np.random.randn(16) for pid in g_pids])
qf, gf = torch.from_numpy(qf), torch.from_numpy(gf)
assert qf.dtype == torch.float64

# ---------------------------------------------------------------- distances
similarity = cosine_similarity(qf, gf, eps=1e-12)
assert similarity.shape == (n_q, len(gallery)) and similarity.dtype == torch.float64
expected = (qf.numpy() @ gf.numpy().T) / np.linalg.norm(qf, axis=1)[:, None] / np.linalg.norm(gf, axis=1)
assert np.allclose(similarity.numpy(), expected, atol=1e-14)
distances = {}
for name in ('euclidean', 'cosine'):
    cfg.merge_from_list(['SOLVER.DISTANCE_FUNC', name])
    dist_func = get_dist_func(cfg.SOLVER.DISTANCE_FUNC)
    distances[name] = dist_func(x=qf, y=gf)
    assert distances[name].dtype == torch.float64
    one = dist_func(qf[0:1], gf)                                # [1, D] against [N, D]
    assert one.shape == (1, len(gallery)) and np.allclose(one[0], distances[name][0])
assert np.allclose(distances['euclidean'], ((qf[:, None] - gf[None]) ** 2).sum(-1))
assert np.allclose(distances['cosine'], np.abs(1 - expected))
assert torch.equal(get_euclidean(qf, gf, eps=1e-12), distances['euclidean'])
assert torch.equal(get_cosine(x=qf, y=gf, eps=1e-12), distances['cosine'])
for feats in (torch.randn(300, 64), torch.randn(300, 64).double()):
    own = get_cosine(feats, feats)
    assert own.dtype == feats.dtype and own.min() > 0           # a logarithm of it is finite
    assert get_cosine(feats, feats, 1e-4).min() >= 1e-4 * 0.999

# ---------------------------------------------------------------- ranks
distmat = distances['euclidean'].cpu().numpy()
indices = np.argsort(distmat, axis=1)
cmc, mAP, all_topk, single = eval_func(indices, q_pids, g_pids, q_camids, g_camids, 50)
assert cmc.shape == (50,) or cmc.shape == (len(gallery),)
assert single.shape == (n_q, 3) and np.allclose(single[:, 2].mean(), mAP)
assert list(k_list) == [1, 5, 10, 20, 50]
for top_k, kk in zip(all_topk, k_list):
    print('top-k, Rank-{:<3}:{:.1%}'.format(kk, top_k))

found = []
for q_idx in range(n_q):
    order = indices[q_idx]
    remove = (g_pids[order] == q_pids[q_idx]) & (g_camids[order] == q_camids[q_idx])
    matches = (g_pids[order] == q_pids[q_idx]).astype(np.int32)[np.invert(remove)]
    found.append(top_k_retrieval(matches))
    assert top_k_retrieval(matches, k=[1]) == found[-1][:1]
assert all(type(value) is int for row in found for value in row)
assert np.allclose(np.array(found).mean(0), all_topk)

# ---------------------------------------------------------------- R1_mAP, as a model makes it
feats = torch.cat([qf, gf]).float()
pids, camids = np.concatenate([q_pids, g_pids]), np.concatenate([q_camids, g_camids])
cfg.merge_from_list(['MODEL.PRETRAINED', False, 'MODEL.NAME', 'resnet18', 'MODEL.BACKBONE_EMB_SIZE', 512])
for name in ('euclidean', 'cosine'):
    cfg.merge_from_list(['SOLVER.DISTANCE_FUNC', name])
    model = CTLModel(cfg.clone(), num_classes=5, num_query=n_q)
    forms = [
        R1_mAP(pl_module=model, num_query=n_q, max_rank=50, feat_norm=False),
        R1_mAP(model, n_q, 50, False),
        R1_mAP(model, num_query=model.hparams.num_query, feat_norm=False),
        R1_mAP(n_q, 50, False, name),                            # of the code base of today
    ]
    order = np.argsort(distances[name].numpy(), axis=1, kind='stable')
    wanted = eval_func(order, q_pids, g_pids, q_camids, g_camids, 50)
    for metric in forms:
        cmc, mAP, all_topk = metric.compute(feats, pids, camids, respect_camids=False)
        assert np.allclose(mAP, wanted[1]) and np.allclose(all_topk, wanted[2])
        assert np.allclose(cmc[:len(wanted[0])], wanted[0])
    # gallery items with several cameras
    sets = [[camid] for camid in q_camids] + [[camid, 9] for camid in g_camids]
    cmc2, mAP2, _ = forms[0].compute(feats, pids, sets, respect_camids=True)
    assert np.allclose(mAP2, mAP) and np.allclose(cmc2, cmc)

# ---------------------------------------------------------------- ranked images
save_dir = osp.join('log', 'visrank')
visualize_ranked_results(distmat, (query, gallery), data_type='image', width=64, height=128, save_dir=save_dir, topk=5)
files = sorted(os.listdir(save_dir))
assert len(files) == n_q, files
print('strips written: {}'.format(len(files)))
