"""Global Sparse Momentum SGD: the optimizer, what it may prune, and the cut at the end. Needs torch and numpy alone."""

from gsm_lab.optim.groups import cut, keep_masks, param_groups, prunable
from gsm_lab.optim.gsm import GSM
from gsm_lab.optim.selection import budget, top_q

__all__ = ["GSM", "budget", "cut", "keep_masks", "param_groups", "prunable", "top_q"]
