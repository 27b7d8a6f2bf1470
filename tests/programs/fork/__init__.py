# encoding: utf-8
from .bases import BaseDatasetLabelled, BaseDatasetLabelledPerPid, COCODatasetBase, ReidBaseDataModule, collate_fn_alternative, pil_loader
from .df1 import DF1
from .dukemtmcreid import DukeMTMCreID
from .market1501 import Market1501
from .street2shop import Street2Shop

__factory = {
    "market1501": Market1501,
    "dukemtmcreid": DukeMTMCreID,
    "df1": DF1,
    "street2shop": Street2Shop,
}


def get_names():
    return __factory.keys()


def init_dataset(name, *args, **kwargs):
    if name not in __factory.keys():
        raise KeyError("Unknown datasets: {}".format(name))
    return __factory[name](*args, **kwargs)
