r"""Networks built by hand, as scripts around the original did: by function, by class, by name, with weights of one's own.

Prints:
resnet50_ibn_a .*\(2, 2048, 4, 2\)
pretrained=True: nothing is downloaded.*resnet101_ibn_a.*load_param
all networks done
"""
import copy
import os

import torch
from torch import nn

from config import cfg
from modelling.backbones.resnet import BasicBlock, Bottleneck, ResNet
from modelling.backbones.resnet_ibn_a import Bottleneck_IBN, ResNet_IBN, resnet50_ibn_a, resnet101_ibn_a, resnet152_ibn_a
from modelling.baseline import Baseline, weights_init_classifier, weights_init_kaiming
from utils.misc import get_backbone

x = torch.randn(2, 3, 64, 32)

# By function. The map comes out, not a vector; heads are hung on afterwards.
net = resnet50_ibn_a(1, pretrained=False)
print("resnet50_ibn_a", tuple(net(x).shape))
net.avgpool = nn.AdaptiveAvgPool2d((1, 1))
net.fc = nn.Linear(net.fc.in_features, 13)
assert net(x).shape == (2, 2048, 4, 2)
assert net.fc(net.avgpool(net(x)).flatten(1)).shape == (2, 13)
net.fc = nn.Sequential()
assert net(x).shape == (2, 2048, 4, 2)
assert resnet101_ibn_a(last_stride=2, pretrained=True)(x).shape == (2, 2048, 2, 1)
with torch.device("meta"):
    assert len(resnet152_ibn_a(1).layer3) == 36

# By class, with blocks of different kinds.
small = ResNet_IBN(1, Bottleneck_IBN, [1, 1, 1, 1], num_classes=10)
assert small.fc.weight.shape == (10, 2048)
assert hasattr(small.layer3[0].bn1, "IN") and not hasattr(small.layer4[0].bn1, "IN")
assert small(x).shape == (2, 2048, 4, 2)
block = Bottleneck_IBN(64, 16, ibn=True)
assert block(torch.randn(2, 64, 8, 4)).shape == (2, 64, 8, 4)
assert ResNet()(x).shape == (2, 2048, 2, 1)
plain = ResNet(last_stride=1, block=BasicBlock, layers=[2, 2, 2, 2])
assert plain(x).shape == (2, 512, 4, 2)
assert ResNet(1, Bottleneck, [1, 1, 1, 1])(x).shape == (2, 2048, 4, 2)


class SEBottleneck(nn.Module):
    """A block of one's own."""

    expansion = 4

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super(SEBottleneck, self).__init__()
        self.conv1 = nn.Conv2d(inplanes, planes * 4, 3, stride, 1)
        self.downsample = downsample

    def forward(self, x):
        return torch.relu(self.conv1(x) + (x if self.downsample is None else self.downsample(x)))


assert ResNet(1, SEBottleneck, [1, 1, 1, 1])(x).shape == (2, 2048, 4, 2)

# Weights: a file as torchvision writes it, then random ones again.
weights = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
weights.update({key: value + 1 for key, value in plain.state_dict().items()})
torch.save(weights, "resnet18-of-mine.pth")
plain.load_param("resnet18-of-mine.pth")
assert torch.equal(plain.conv1.weight, weights["conv1.weight"])
plain.random_init()
assert abs(float(plain.conv1.weight.mean())) < 0.01 and float(plain.bn1.weight.min()) == 1
try:
    small.load_param("resnet18-of-mine.pth")
    raise SystemExit("weights of another network were loaded")
except ValueError as error:
    print("refused:", error)

# By name.
assert get_backbone("resnet18")(x).shape == (2, 512, 4, 2)
assert get_backbone("resnet34", last_stride=2, pretrained=False)(x).shape == (2, 512, 2, 1)
try:
    get_backbone("resnet19")
    raise SystemExit("resnet19 does not exist")
except KeyError as error:
    assert "resnet152_ibn_a" in str(error)

# The network with its pooling.
cfg.merge_from_list(["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", 512, "MODEL.PRETRAINED", False])
backbone = Baseline(cfg)
print(backbone.model_name, "gives", backbone.in_planes, "channels")
assert (backbone.model_name, backbone.in_planes) == ("resnet18", 512)
before = copy.deepcopy(backbone.state_dict())
backbone.load_param(os.path.join(os.getcwd(), "resnet18-of-mine.pth"))
assert torch.equal(backbone.base.conv1.weight, weights["conv1.weight"])
torch.save(before, "baseline.pth")
backbone.load_param("baseline.pth")
assert torch.equal(backbone.base.layer4[1].conv2.weight, before["base.layer4.1.conv2.weight"])

# Heads of one's own, initialised as bags of tricks do.
neck = nn.BatchNorm1d(backbone.in_planes)
neck.bias.requires_grad_(False)
classifier = nn.Linear(backbone.in_planes, 751, bias=False)
nn.Sequential(neck, nn.Linear(512, 512)).apply(weights_init_kaiming)
classifier.apply(weights_init_classifier)
assert 0.0009 < float(classifier.weight.std()) < 0.0011
_, features = backbone.eval()(x)
assert classifier(neck(features)).shape == (2, 751)

# It trains like any other module.
optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
small.train()
small(x).mean().backward()
optimizer.step()
print("all networks done")
