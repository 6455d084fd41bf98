"""Data sets in memory: the three that ship with the project, the user's own, and the order of their batches."""

from gsm_lab.data.batches import Batches
from gsm_lab.data.dataset import Dataset
from gsm_lab.data.sources import NAMES, DataCorrupted, DataNotFound, fetch, load

__all__ = ["NAMES", "Batches", "DataCorrupted", "DataNotFound", "Dataset", "fetch", "load"]
