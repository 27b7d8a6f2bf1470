"""VeRi-776, vehicles ("A Deep Learning-Based Approach to Progressive Vehicle Re-identification ...", ECCV 2016)."""

from datasets.counts import Counts, Published
from datasets.readers.named_files import FolderDataModule, NameRule


class VeRi776(FolderDataModule):
    """ROOT_DIR/VeRi (or VeRi-776) with {image_train, image_query, image_test}; files such as 0001_c001_00016450_0.jpg.

    Published: train 576 identities, 37778 images; query 200, 1678; gallery 200, 11579; 20 cameras in all, not given
    for query and gallery alone. The query images are part of the gallery; gallery images from the query's own camera,
    including the query itself, are not counted as matches.
    """

    folders = ("VeRi", "VeRi-776")
    subfolders = ("image_train", "image_query", "image_test")
    rule = NameRule(num_cameras=20, max_pid=776, pattern=r"([-\d]+)_c(\d+)", example="0001_c001_00016450_0.jpg")
    published = Published(Counts(576, 37778, 20), Counts(200, 1678, None), Counts(200, 11579, None))
