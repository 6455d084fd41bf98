"""What ranks do in the tests of the exchange: they import it by name, so it lives in a module of its own."""

import torch
import torch.distributed as dist

from gsm_lab.studies.sparse_exchange import Exchange, exchange_hook


def exchanged(report, sent):
    """Three steps for each number of weights to send: what each rank had, and what DDP made of it."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    state = Exchange([p for p in model.parameters() if p.ndim >= 2], ranks)
    parallel = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1)
    parallel.register_comm_hook(state, exchange_hook)
    state.listen, found = True, []
    for state.sent in sent:
        state.gathered = state.reduced = 0
        for step in range(3):  # DDP builds its buckets anew after the first
            torch.manual_seed(10 * step + rank + 1)
            x = torch.randn(4, 7)
            parallel.zero_grad()
            (parallel(x) ** 2).mean().backward()
            averaged = [p.grad.clone() for p in model.parameters()]
            alone = torch.autograd.grad((model(x) ** 2).mean(), list(model.parameters()))
            found.append({"sent": state.sent, "local": state.local, "averaged": averaged, "alone": list(alone)})
            report(1)
        found[-1] |= {"gathered": state.gathered, "reduced": state.reduced}
    return found, [p.detach().clone() for p in model.parameters()]


def exchanged_and_refused(report, sent):
    """What `exchanged` returns, and then the error of a model that takes several buckets, as text."""
    found = exchanged(report, sent)
    try:
        two_buckets(report)
    except Exception as error:
        return *found, f"{type(error).__name__}: {error}"
    return *found, "no error"


def two_buckets(report):
    model = torch.nn.Sequential(torch.nn.Linear(700, 700), torch.nn.Linear(700, 700))
    state = Exchange([p for p in model.parameters() if p.ndim >= 2], dist.get_world_size())
    parallel = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1)
    parallel.register_comm_hook(state, exchange_hook)
    for _ in range(2):  # DDP makes one bucket of all in the first step
        parallel(torch.ones(1, 700)).sum().backward()
