"""Center loss (Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CenterLoss(nn.Module):
    """Mean squared Euclidean distance between each embedding and the learned centre of its class.

    Only the centres of the classes in the batch are read, so the cost does not grow with the number of classes. (The
    original added the constant 1e-12 for every other class, which is below float32 resolution.)

    Args:
        num_classes: number of identities.
        feat_dim: embedding dimension D.
        use_gpu: accepted for old callers and ignored; the loss is computed on the device of its module.

    Example:
        >>> center_loss = CenterLoss(num_classes=2, feat_dim=2)
        >>> _ = center_loss.load_state_dict({"centers": torch.tensor([[1.0, 0], [0, 1]])})
        >>> center_loss(torch.tensor([[1.0, 2], [0, 3]]), torch.tensor([0, 1])).item()
        4.0
    """

    def __init__(self, num_classes: int = 751, feat_dim: int = 2048, use_gpu: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feat_dim = feat_dim
        self.centers = nn.Parameter(torch.randn(num_classes, feat_dim))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Average the clamped squared distances over the batch.

        Args:
            x: [N, feat_dim] floating.
            labels: [N] int64 in [0, num_classes).

        Returns:
            Scalar float32 >= 1e-12; NaN for an empty batch.

        Raises:
            ValueError: x and labels differ in length, or x is not as wide as the centres.
        """
        if x.shape != (len(labels), self.feat_dim):
            raise ValueError(
                f"x must be [{len(labels)}, {self.feat_dim}] for {len(labels)} labels; it has shape {list(x.shape)}."
            )
        own_centers = F.embedding(labels, self.centers)  # [N, feat_dim]
        return (x.float() - own_centers.float()).square().sum(1).clamp(1e-12, 1e12).mean()
