"""Street2Shop ("Where to Buy It: Matching Street Clothing Photos in Online Shops", ICCV 2015)."""

from datasets.readers.coco import CocoDataModule


class Street2Shop(CocoDataModule):
    """The COCO files and images that scripts/street2shop_coco2reid.py writes."""
