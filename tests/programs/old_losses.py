r"""The losses as another project's training script calls them, by position and by name.

Prints:
    mean dist_ap 1\.0000, mean dist_an 2\.5000, triplet loss 0\.5000
"""
import numpy as np
import torch

from losses.center_loss import CenterLoss
from losses.triplet_loss import (CrossEntropyLabelSmooth, TripletLoss, cosine_dist, euclidean_dist,
                                 hard_example_mining, normalize)

torch.manual_seed(0)
feat = torch.tensor([[0.0], [1], [3], [4]], requires_grad=True)
labels = torch.tensor([7, 7, 8, 8])

# mining, with indices
dist_mat = euclidean_dist(feat, feat)
dist_ap, dist_an, p_inds, n_inds = hard_example_mining(dist_mat, labels, return_inds=True)
assert p_inds.tolist() == [1, 0, 3, 2] and n_inds.tolist() == [2, 2, 1, 1]
assert torch.equal(dist_mat[range(4), p_inds], dist_ap) and torch.equal(dist_mat[range(4), n_inds], dist_an)
dist_ap, dist_an = hard_example_mining(dist_mat, labels)

# margin, a warm-up margin for single calls, printed statistics
triplet = TripletLoss(2.0, 'euclidean')
loss, dist_ap, dist_an = triplet(feat, labels)
assert np.isclose(loss.item(), 0.5)
assert np.isclose(triplet(feat, labels, 3.0)[0].item(), 1.5)
assert np.isclose(triplet(feat, labels, warmup_margin=3.0)[0].item(), 1.5)
assert np.isclose(triplet(feat, labels)[0].item(), 0.5)
loss, _, _ = triplet(feat, labels, None, True)
loss.backward()
assert feat.grad is not None and feat.grad.abs().sum() > 0

# all of them in order: warmup_margin, print_data, normalize_feature, mask
x, y = torch.randn(8, 16), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
mask = torch.tensor([True, True, True, False, True, True, False, False])
for dist_func, func in (('euclidean', euclidean_dist), ('cosine', cosine_dist)):
    total, ap, an = TripletLoss(0.3, dist_func)(x, y, 0.5, False, True, mask)
    unit = normalize(x)
    wanted_ap, wanted_an = (d[mask] for d in hard_example_mining(func(unit, unit), y))
    assert torch.equal(ap, wanted_ap) and torch.equal(an, wanted_an)
    assert np.isclose(total.item(), torch.clamp(wanted_ap - wanted_an + 0.5, min=0).mean().item())
    by_name, _, _ = TripletLoss(margin=0.3, dist_func=dist_func)(
        x, y, warmup_margin=0.5, print_data=False, normalize_feature=True, mask=mask)
    assert torch.equal(total, by_name)
soft, ap, an = TripletLoss()(x, y)
assert np.isclose(soft.item(), torch.log1p(torch.exp(ap - an)).mean().item())

# a mask where the margin stands now is said, not taken for a number
try:
    TripletLoss(0.3)(x, y, mask)
except ValueError as error:
    assert 'mask=' in str(error)
else:
    raise AssertionError('the mask was taken for a margin')

xent = CrossEntropyLabelSmooth(num_classes=4, epsilon=0.1, use_gpu=False)
assert np.isclose(xent(torch.zeros(8, 4), y).item(), np.log(4))
center = CenterLoss(num_classes=4, feat_dim=16, use_gpu=False)
assert np.isclose(center(x, y).item(), ((x - center.centers[y]) ** 2).sum(1).mean().item(), rtol=1e-5)
