"""What GSM costs over many machines, and what it does to compressed gradients (the reviewers' question 5).

    looks = local_gradients({"data": "digits"}, ranks=2)     # real processes, trained with DDP
    agreement(looks); quantised(looks)                       # do the ranks agree on the top Q?
    with_hook({"data": "digits"}, factors=(1, 2, 4, 8))      # and if each sent only its own top kQ?
    cost(ranks=[2, 4, 8]); cost(**AT_SCALE)                  # bytes and seconds, by formula

*Rank*: one of R processes, each with its part of the batch. *Local*: from a rank's own gradient. *Global*: from the
mean over all ranks, which is what GSM is defined on. Under DDP every rank holds that mean, and so the same set, without
another byte. Under FSDP2 a rank holds the mean of its own shard only, and the ranks exchange counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from gsm_lab.checks import is_number, number, positive, several, shown
from gsm_lab.optim.ranks.digits import HEADER
from gsm_lab.optim.selection import DIGITS, budget
from gsm_lab.studies.agreement import STAGES, agreement, quantised
from gsm_lab.studies.parallel_runs import LOOKS, RankGradients, local_gradients, with_hook

__all__ = [
    "AT_SCALE",
    "LOOKS",
    "STAGES",
    "RankGradients",
    "agreement",
    "cost",
    "counts",
    "local_gradients",
    "quantised",
    "with_hook",
]

# A thousand ranks and a hundred billion weights: bfloat16 gradients, 64-bit indices (32 bits do not reach), one network
# port of 400 Gb/s a rank, 5 microseconds from one rank to the next. Nothing overlaps with anything.
AT_SCALE: dict[str, Any] = {
    "weights": 100_000_000_000, "ranks": 1000, "compression": 60, "value_bytes": 2, "index_bytes": 8,
    "link": 50.0, "latency": 5.0,
}  # fmt: skip


def cost(
    weights: int | Iterable[int] = 266_200,
    ranks: int | Iterable[int] = 2,
    compression: float = 60,
    *,
    factor: float = 1.0,
    bits: int = 8,
    value_bytes: float = 4,
    index_bytes: int = 4,
    count_bytes: int | None = None,
    count_rounds: int | None = None,
    link: float = 1.25,
    latency: float = 50.0,
) -> pd.DataFrame:
    """Bytes that one rank sends in one step, and how long that takes, scheme by scheme.

    Args:
        weights: N, one or several. (Biases and norms come on top in every scheme.)
        ranks: R >= 2, one or several.
        compression: C; Q = N / C.
        factor: k, where each rank sends its local top kQ.
        bits: a weight, of the quantised scheme.
        value_bytes, index_bytes: of one gradient, and of one index.
        count_bytes, count_rounds: of GSM's exchange of counts: bytes a rank hands over in a step, in so many messages
            one after the other. Unless given, those of a usual step of `gsm_lab.optim.ranks.digits`, see `counts`.
        link: GB/s (1e9 bytes) that a rank sends; latency: microseconds from one rank to the next.

    Returns:
        A row for each N, R and scheme: `weights`, `ranks`, `scheme`; `exact`, whether the set it leads to is the exact
        global top Q; `bytes`; `messages` one after the other; `seconds` = messages * latency + bytes / link; `share`
        of the dense bytes; `formula` of the bytes, with b and i for the bytes of a value and an index.

    All but the counts go round a ring: 2 (R - 1) messages and 2 (R - 1) / R of the data for a sum that all get, half of
    that for its first half (every rank gets the sum of one part), R - 1 times the own data where everything goes to
    everybody. Counts are small, so they go up and down a tree of ceil(log2 R) levels. Scales of quantised values are
    left out. QSGD's 2.8 N + 32 bits are the expected size at sqrt(N) levels (Alistarh et al. 2017, section 3), sent to
    everybody as in that paper; signSGD sends a bit to the vote and a bit back (Bernstein et al. 2018).

    Raises ValueError: an argument out of range, or indices too small for so many weights.
    """
    assumed = {"factor": factor, "bits": bits, "value_bytes": value_bytes, "index_bytes": index_bytes,
               "link": link}  # fmt: skip
    for name, value in assumed.items():
        positive(name, value)
    compression, factor = number("compression", compression, 1), float(factor)
    for name, value in {"count_bytes": count_bytes, "count_rounds": count_rounds, "latency": latency}.items():
        if value is not None or name == "latency":
            number(name, value, 0)
    tables = []
    most = 256 ** min(index_bytes, 32)
    for n, r in itertools.product(_several("weights", weights), _several("ranks", ranks)):
        if not (is_number(r) and r >= 2 and r == int(r)):
            raise ValueError(f"ranks must be a whole number >= 2, got {shown(r)}")
        if not (is_number(n) and 1 <= n <= most):
            raise ValueError(
                f"weights must be from 1 to 256^index_bytes = {most:,}, "
                f"got {f'{n:,}' if is_number(n) and isinstance(n, (int, float)) else shown(n)}"
            )
        q = budget(int(n), compression=compression)
        sent = min(n, max(1, int(min(factor * q, n))))
        rest, levels = r - 1, math.ceil(math.log2(r))
        half, both = rest / r, 2 * rest / r
        usual_bytes, usual_rounds = counts(n)
        up_and_down = 2 * (usual_bytes if count_bytes is None else count_bytes)
        climbs = 2 * levels * (usual_rounds if count_rounds is None else count_rounds)
        b, pair = value_bytes, value_bytes + index_bytes
        of = f"{factor:g}Q" if factor != 1 else "Q"
        rows = [
            ("dense all-reduce", True, both * b * n, 2 * rest, "2 (R−1)/R · b N"),
            (f"{bits} bits a weight", False, both * n * bits / 8, 2 * rest, f"2 (R−1)/R · {bits}/8 N"),
            ("QSGD, to everybody", False, rest * (2.8 * n + 32) / 8, rest, "(R−1) · (2.8 N + 32)/8"),
            ("1 bit, signSGD", False, both * n / 8, 2 * rest, "2 (R−1)/R · N/8"),
            (f"local top {of}, to everybody", False, rest * sent * pair, rest, f"(R−1) · (b+i) {of}"),
            ("reduce-scatter, then the active", True, half * (b * n + pair * q) + up_and_down,
             2 * rest + climbs, "(R−1)/R · (b N + (b+i) Q) + counts"),
            ("active only, set known", True, both * b * q, 2 * rest, "2 (R−1)/R · b Q"),
            ("GSM under FSDP2, in addition", True, up_and_down, climbs, "2 · counts"),
            ("GSM under DDP, in addition", True, 0, 0, "0"),
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=["scheme", "exact", "bytes", "messages", "formula"])
        table.insert(0, "weights", int(n))
        table.insert(1, "ranks", int(r))
        table.insert(6, "seconds", 1e-6 * latency * table["messages"] + table["bytes"] / (1e9 * link))
        table.insert(7, "share", table["bytes"] / table["bytes"][0])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def counts(weights: float) -> tuple[int, int]:
    """What GSM's exchange hands over on each rank in a usual step under FSDP2: bytes, and messages.

    That is the header and a histogram for each digit (`gsm_lab.optim.ranks.digits`), whatever N, `weights`, and
    Q; ties at the threshold take more, at most 41.1 KiB.
    """
    positive("weights", weights)
    return 8 * (HEADER + sum(1 << width for _, width in DIGITS)), len(DIGITS)


def _several(name: str, value: float | Iterable[float]) -> list[float]:
    return [value] if is_number(value) else several(name, value)
