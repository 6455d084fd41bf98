"""What ranks do in the tests of ranks: they import it by name, so it lives in a module of its own."""

import os
import signal
import threading

import torch
import torch.distributed as dist


def total(report, add):
    """Sum of rank + add over the ranks, by a real all-reduce."""
    number = torch.tensor(float(dist.get_rank() + add))
    dist.all_reduce(number)
    report(3)
    return dist.get_rank(), number.item(), torch.get_num_threads()


def fails_on_one(report):
    report(5)
    if dist.get_rank() == 1:
        raise ValueError("the data of this rank is bad")
    dist.barrier()


def killed(report):
    report(7)
    dist.barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def leaves(report):
    report(1)
    dist.barrier()
    if dist.get_rank() == 2:
        print("no room", flush=True)
        os._exit(3)
    threading.Event().wait()


def silent(report):
    if dist.get_rank() == 1:
        threading.Event().wait()
    dist.barrier()


def interrupts(report, pid):
    """As a notebook's stop button would while the ranks are at work."""
    report(1)
    dist.barrier()
    if dist.get_rank() == 0:
        os.kill(pid, signal.SIGINT)
    threading.Event().wait()


def pids_then_silent(report, folder):
    with open(os.path.join(folder, str(dist.get_rank())), "w") as file:
        file.write(str(os.getpid()))
    dist.barrier()
    report(2)
    threading.Event().wait()
