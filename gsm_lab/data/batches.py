"""`Batches`: the order in which training visits a `Dataset`."""

import numpy as np
import torch
from torch import Tensor

from gsm_lab.checks import integer, kind
from gsm_lab.data.dataset import Dataset

_STREAM = 0xBA7C  # of the seed: the order must not be correlated with, say, initial weights drawn from the same seed


class Batches:
    """The seeded order of training batches: a pure function of (seed, step), so a run resumes from its step alone.

    Each epoch is a new permutation of the training set; its incomplete last batch is dropped.

    Raises ValueError unless 1 <= batch_size <= training samples and seed >= 0.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0) -> None:
        self.dataset = kind("dataset", dataset, Dataset, "a Dataset")
        self.batch_size = integer("batch_size", batch_size, 1, len(dataset.train_y))
        self.seed = integer("seed", seed, 0)
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.dataset.train_y) // self.batch_size

    def indices(self, step: int) -> Tensor:
        """Rows of the training set that make up the batch of global step `step` >= 0: int64 [batch_size]."""
        epoch, batch = divmod(integer("step", step, 0), len(self))
        cached, order = self._cached
        if cached != epoch:
            stream = np.random.SeedSequence(self.seed, spawn_key=(_STREAM, epoch))
            order = torch.from_numpy(np.random.default_rng(stream).permutation(len(self.dataset.train_y)))
            order = order.to(self.dataset.train_x.device)
            self._cached = (epoch, order)  # one assignment, so that another thread never sees half of it
        return order[batch * self.batch_size : (batch + 1) * self.batch_size].clone()  # the cache stays out of reach

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs [batch_size, ...features] and labels [batch_size] of global step `step` >= 0."""
        rows = self.indices(step)
        return self.dataset.train_x.index_select(0, rows), self.dataset.train_y.index_select(0, rows)

    def __repr__(self) -> str:
        return f"Batches({len(self):,} of {self.batch_size} an epoch, seed {self.seed}, {self.dataset!r})"
