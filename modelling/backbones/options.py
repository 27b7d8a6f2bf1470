"""What a configuration says about how its network is built."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkOptions:
    """How to build a network; each looks at what means something to it.

    Attributes:
        last_stride: MODEL.LAST_STRIDE, stride of the last stage of a ResNet.
        stem_relu: MODEL.STEM_RELU, whether a ReLU follows the first batch norm of a ResNet.
        image_size: INPUT.SIZE_TRAIN, height and width; what position embeddings are made for.
        test_size: INPUT.SIZE_TEST; the network computes images of this size too.
        drop_path: MODEL.DROP_PATH, the rate at which the last block is skipped in training, 0 to below 1.
        patch_stride: MODEL.PATCH_STRIDE, pixels between two patches; 0 is the size of a patch.
    """

    last_stride: int = 1
    stem_relu: bool = False
    image_size: tuple[int, int] = (256, 128)
    test_size: tuple[int, int] = (256, 128)
    drop_path: float = 0.0
    patch_stride: int = 0
