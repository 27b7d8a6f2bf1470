"""Center loss (Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CenterLoss(nn.Module):
    """Mean squared Euclidean distance of each embedding to the learned centre of its class.

    Only the rows' own centres are touched, so the cost does not grow with the number of classes. (The original
    added, for each other class, the constant 1e-12, which is below float32 resolution.)

    Args:
        num_classes: number of identities.
        feat_dim: embedding dimension D.
        use_gpu: accepted for old callers and ignored; the loss computes where its module is.
    """

    def __init__(self, num_classes: int = 751, feat_dim: int = 2048, use_gpu: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feat_dim = feat_dim
        self.centers = nn.Parameter(torch.randn(num_classes, feat_dim))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch.

        Args:
            x: [N, feat_dim] floating.
            labels: [N] int64 in [0, num_classes).

        Returns:
            Scalar float32 >= 1e-12.

        Raises:
            ValueError: x and labels differ in length, or x has another width than the centres.
        """
        if x.shape != (len(labels), self.feat_dim):
            raise ValueError(
                f"x must be [{len(labels)}, {self.feat_dim}] for {len(labels)} labels, but it is {list(x.shape)}."
            )
        own_centers = F.embedding(labels, self.centers)  # [N, feat_dim]
        return (x.float() - own_centers.float()).square().sum(1).clamp(1e-12, 1e12).mean()
