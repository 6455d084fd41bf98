"""From a pruned model to a file that is as small as what is left of it, and what each layer costs."""

from gsm_lab.deploy.cost import cost
from gsm_lab.deploy.export import export, load

__all__ = ["cost", "export", "load"]
