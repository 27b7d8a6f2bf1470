r"""A training loop of one's own, without a Trainer, over the two optimisers and the schedule of the code base.

Prints:
    epoch 0 lr 2\.50e-04
    epoch 3 lr 5\.00e-05
    resumed at lr 5\.00e-05
"""
import os
import sys

import torch
from torch import nn

import solver
from config import cfg
from datasets import init_dataset
from losses.center_loss import CenterLoss
from losses.triplet_loss import CrossEntropyLabelSmooth, TripletLoss
from solver import build_optimizer, build_scheduler
from solver.build import build_optimizer as same_optimizer, build_scheduler as same_scheduler

assert build_optimizer is same_optimizer is solver.build_optimizer
assert build_scheduler is same_scheduler is solver.build_scheduler

cfg.merge_from_list([
    'DATASETS.ROOT_DIR', sys.argv[1], 'DATASETS.NAMES', 'market1501', 'INPUT.SIZE_TRAIN', [64, 32],
    'SOLVER.IMS_PER_BATCH', 4, 'SOLVER.BASE_LR', 5e-4, 'SOLVER.USE_WARMUP_LR', True, 'SOLVER.WARMUP_EPOCHS', 2,
    'SOLVER.LR_SCHEDULER_NAME', 'multistep_lr', 'SOLVER.LR_STEPS', (3,), 'SOLVER.GAMMA', 0.1,
    'SOLVER.MAX_EPOCHS', 4, 'SOLVER.CENTER_LR', 0.5, 'SOLVER.CENTER_LOSS_WEIGHT', 0.0005,
])
cfg.freeze()
WANTED = [2.5e-4, 5e-4, 5e-4, 5e-5]


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten())
        self.bn = nn.BatchNorm1d(64)
        self.bn.bias.requires_grad_(False)
        self.fc_query = nn.Linear(64, num_classes, bias=False)
        self.center_loss = CenterLoss(num_classes=num_classes, feat_dim=64, use_gpu=False)

    def forward(self, x):
        feat = self.base(x)
        return feat, self.fc_query(self.bn(feat))


torch.manual_seed(0)
dm = init_dataset(cfg.DATASETS.NAMES, cfg=cfg, num_workers=0)
dm.setup()
loader = dm.train_dataloader()
model = Net(dm.num_classes)
optimizers = build_optimizer(model.named_parameters(), cfg)
assert isinstance(optimizers, list)
opt, opt_center = optimizers
assert isinstance(opt, torch.optim.Adam) and isinstance(opt_center, torch.optim.SGD)
assert [len(group['params']) for group in opt_center.param_groups] == [1]
assert opt_center.param_groups[0]['lr'] == cfg.SOLVER.CENTER_LR
assert not any(p is model.bn.bias for group in opt.param_groups for p in group['params'])
lr_scheduler = build_scheduler(opt, hparams=cfg)
assert isinstance(lr_scheduler, torch.optim.lr_scheduler.LambdaLR)
triplet, xent = TripletLoss(cfg.SOLVER.MARGIN, cfg.SOLVER.DISTANCE_FUNC), CrossEntropyLabelSmooth(dm.num_classes)

history, rates = [], []
for epoch in range(cfg.SOLVER.MAX_EPOCHS):
    lr = lr_scheduler.get_last_lr()[0]
    assert opt.param_groups[0]['lr'] == lr
    print('epoch {} lr {:.2e}'.format(epoch, lr))
    rates.append(lr)
    losses = []
    for imgs, pids, camids, is_real in loader:
        feat, score = model(imgs)
        before = model.center_loss.centers.detach().clone()
        center = model.center_loss(feat, pids)
        loss = triplet(feat, pids, mask=is_real)[0] + xent(score, pids) + cfg.SOLVER.CENTER_LOSS_WEIGHT * center
        opt.zero_grad()
        opt_center.zero_grad()
        loss.backward()
        opt.step()
        for param in model.center_loss.parameters():
            param.grad.data *= (1. / cfg.SOLVER.CENTER_LOSS_WEIGHT)
        opt_center.step()
        # the centres moved by CENTER_LR times the gradient of their loss, whatever its weight
        pid = int(pids[0])
        step = cfg.SOLVER.CENTER_LR * 2 * (before[pid] - feat.detach()[pids == pid]).sum(0) / len(pids)
        assert torch.allclose(model.center_loss.centers[pid], before[pid] - step, atol=1e-4)
        losses.append(loss.item())
    history.append(sum(losses) / len(losses))
    lr_scheduler.step()
assert all(abs(lr / wanted - 1) < 1e-9 for lr, wanted in zip(rates, WANTED)), rates
assert history[-1] < history[0], history

# save all of it and go on from there
states = {'model': model.state_dict(), 'opt': opt.state_dict(), 'sched': lr_scheduler.state_dict()}
torch.save(states, 'last.pth')
again = torch.load('last.pth')
os.remove('last.pth')
opt2, _ = build_optimizer(list(model.named_parameters()), cfg)
sched2 = build_scheduler(opt2, cfg)
opt2.load_state_dict(again['opt'])
sched2.load_state_dict(again['sched'])
assert sched2.last_epoch == 4
print('resumed at lr {:.2e}'.format(sched2.get_last_lr()[0]))

# as this code base published them later
opt3, center3 = build_optimizer(model.named_parameters(), base_lr=0.1, weight_decay=0, center_lr=0.2)
sched3 = build_scheduler(opt3, lambda epoch: 0.5 ** epoch)
opt3.step()
sched3.step()
assert opt3.param_groups[0]['lr'] == 0.05 and center3.param_groups[0]['lr'] == 0.2
