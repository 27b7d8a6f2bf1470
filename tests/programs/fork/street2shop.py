# encoding: utf-8
from .df1 import DF1


class Street2Shop(DF1):
    pass
