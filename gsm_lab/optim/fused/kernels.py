"""The compiled passes over g and w (numba), for `step`. They take addresses: cheaper to hand over than arrays.

A table, uint64 [tensors, 4], says where tensors lie: the addresses of weights, gradients and momentum buffers, and
sizes. A group is 64 entries of a tensor, or the fewer at its end; a thread's share of the work is the groups from
`begin` to `end`, counted through all tensors. Values of |g * w| are handled as the bits of non-negative floats, whose
order as integers is theirs (inf, then NaN, on top). Loops start at 0, or numba's handling of negative indices keeps
them from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from gsm_lab.optim.fused.llvm import (
    COMPRESSES,
    bits,
    called,
    chosen,
    fetch_to_read,
    floats,
    fma,
    int32s,
    int64s,
    move,
    ones,
    reached,
    shared_out,
    spread,
    uint64s,
    zeros_below,
)

BLOCK = 64  # groups looked at together: their weights and gradients stay in the fastest cache
SPARE = 16  # entries that may be written to beyond those that are found
INFINITY = np.int32(0x7F800000)  # the bits of float32's infinity; those of NaN are above
GREATEST = np.int32(0x7FFFFFFF)  # all bits but that of the sign
_SOME = 4  # places written for 64 values; more than so many are in the bracket of hardly any 64
_RUN = 2048  # groups updated one after the other: 512 kB of each array
_AHEAD = 16  # values of a sample: where memory is asked for one before it is there
_DIGIT = 8  # bits that the selection among candidates looks at together
_W, _G, _Z, _N = range(4)  # columns of a table


def _kernel(signature: str) -> Any:
    return njit(signature, cache=True, nogil=True, error_model="numpy")


@njit(inline="always")
def _tensor(table, i, column):  # noqa: ANN001
    return carray(floats(table[i, column]), np.int64(table[i, _N]))


@_kernel("int64(uint64[:,::1])")
def groups(table) -> int:  # noqa: ANN001
    """How many there are in all tensors."""
    n = np.int64(0)
    for i in range(table.shape[0]):
        n += (np.int64(table[i, _N]) + 63) // 64
    return n


@njit(inline="always")
def _dropped(histogram):  # noqa: ANN001
    """How many of the 31 bits of a value are dropped by a histogram as long as this."""
    return 31 - np.int64(zeros_below(np.uint64(histogram.size)))


@_kernel("void(uint64[:,::1], int64, int32[::1])")
def sample(table, stride, histogram) -> None:  # noqa: ANN001
    """Count every stride-th value by its leading bits: int32 [a power of two], added to."""
    at, dropped = np.int64(0), _dropped(histogram)
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        while at < w.size:
            ahead = np.uint64(4 * (at + _AHEAD * stride))
            fetch_to_read(table[i, _W] + ahead)
            fetch_to_read(table[i, _G] + ahead)
            histogram[(bits(w[at] * g[at]) & GREATEST) >> dropped] += 1
            at += stride
        at -= w.size


@_kernel("UniTuple(int32, 2)(int32[::1], int64, int64)")
def bracket(histogram, most, least) -> tuple[int, int]:  # noqa: ANN001
    """Bits (low, high): at most `most` of a sample reach high, at least `least` (or all positive ones) reach low."""
    seen, k, dropped = 0, histogram.size, _dropped(histogram)
    while k > 1 and seen + histogram[k - 1] <= most:
        k -= 1
        seen += histogram[k]
    high = np.int32(k << dropped) if k < histogram.size else GREATEST
    while k > 0 and seen < least:
        k -= 1
        seen += histogram[k]
    return np.int32(max(1, k << dropped)), high


@njit(inline="always")
def _put(word, first, places, n):  # noqa: ANN001
    """Write where the bits of a word are set, counted from `first`, to `places[n:]`; returns n plus their number.

    How many there are no processor can predict: so some places are always written, those that are none over again.
    """
    more = n + np.int64(ones(word))
    for k in range(_SOME):
        places[n + k] = first + np.int64(zeros_below(word))
        word &= word - np.uint64(1)
    n += _SOME
    while word:
        places[n] = first + np.int64(zeros_below(word))
        word &= word - np.uint64(1)
        n += 1
    return more


if COMPRESSES:

    @njit(inline="always")
    def _choose(w, g, n, low, high, found):  # noqa: ANN001
        return chosen(w, g, n, low, high, np.uint64(found.ctypes.data))

else:

    @njit(inline="always")
    def _choose(w, g, n, low, high, found):  # noqa: ANN001
        """As `intrinsics.chosen`, for processors whose vectors cannot do that."""
        places = np.empty(64 * BLOCK + _SOME, np.int32)
        above, infinite, some = np.uint64(0), np.uint64(0), np.int64(0)
        for k in range(n):
            skipped = np.uint64(256 * k)
            inside, over, beyond = reached(w + skipped, g + skipped, low, high)
            above += ones(over)
            infinite |= beyond
            some = _put(inside & ~over, 64 * k, places, some)
        x, y = carray(floats(w), 64 * n), carray(floats(g), 64 * n)
        for t in range(some):
            j = np.uint64(places[t])
            found[t] = bits(x[j] * y[j]) & GREATEST
        return some, np.int64(above), np.int64(INFINITY if infinite else 0)


@_kernel("Tuple((int64, int64, boolean))(uint64[:,::1], int64, int64, int32, int32, int32[::1])")
def collect(table, begin, end, low, high, found) -> tuple[int, int, bool]:  # noqa: ANN001
    """Copy the bits of all values of some groups with low <= bits < high to `found`.

    Returns how many these are (-1 where they may not fit), how many values reach `high`, and whether all are finite.
    """
    n, above, greatest = np.int64(0), np.int64(0), np.int64(0)
    group = np.int64(0)
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        its = (w.size + 63) // 64
        first, last = max(begin - group, 0), min(end - group, its)
        group += its
        whole = min(last, w.size // 64)
        for a in range(first, whole, BLOCK):
            b = min(a + BLOCK, whole)
            if n + 64 * (b - a) + SPARE > found.size:
                return -1, above, False
            o = np.uint64(256 * a)
            some, more, top = _choose(table[i, _W] + o, table[i, _G] + o, b - a, low, high, found[n:])
            n += some
            above += more
            greatest = max(greatest, top)
        if first < last == its:
            if n + w.size - 64 * whole > found.size:
                return -1, above, False
            for j in range(64 * whole, w.size):
                v = bits(w[j] * g[j]) & GREATEST
                above += v >= high
                greatest = max(greatest, np.int64(v))
                if low <= v < high:
                    found[n] = v
                    n += 1
    return n, above, greatest < INFINITY


@_kernel("UniTuple(int64, 3)(int32[::1], int64, int32, int32)")
def select(found, q, low, high) -> tuple[int, int, int]:  # noqa: ANN001
    """The q-th greatest of `found`, all from low to below high, which is reordered.

    Returns its bits, and how many of its equals are among the q greatest, and how many beyond.
    """
    left, size, base, width = q, found.size, low, 0
    while (high - 1 - low) >> width > 0:
        width += 1
    histogram = np.empty(1 << _DIGIT, np.int32)
    while width > 0:
        digits = min(_DIGIT, width)
        width -= digits
        histogram[:] = 0
        for i in range(size):
            histogram[(found[i] - base) >> width] += 1
        digit = (1 << digits) - 1
        while histogram[digit] < left:
            left -= histogram[digit]
            digit -= 1
        base += np.int32(digit << width)
        n = 0
        for i in range(size):
            v = found[i]
            found[n] = v
            n += (v - base) >> width == 0
        size = n
    return np.int64(base), left, size - left


@_kernel("boolean(uint64[:,::1])")
def finite(table) -> bool:  # noqa: ANN001
    """Whether all gradients are finite."""
    greatest = np.int32(0)
    for i in range(table.shape[0]):
        g = _tensor(table, i, _G)
        for j in range(g.size):
            greatest = max(greatest, bits(g[j]) & GREATEST)
    return greatest < INFINITY


@_kernel("int64(uint64[:,::1], int64, int64)")
def after_equal(table, wanted, n) -> int:  # noqa: ANN001
    """The flat position after that of the n-th value whose bits are the `wanted` ones."""
    first = 0
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        for j in range(w.size):
            n -= (bits(w[j] * g[j]) & GREATEST) == wanted
            if n == 0:
                return first + j + 1
        first += w.size
    return first


@njit(inline="always")
def _new_momentum(x, w, z, decay, beta, keep, rounding):  # noqa: ANN001
    if decay != 0:
        x = fma(w, decay, x) if rounding & 1 else x + w * decay
    if rounding & 2:
        return fma(x, keep, z * beta)
    if rounding & 4:
        return fma(z, beta, x * keep)
    return z * beta + x * keep


@_kernel("void(uint64[:,::1], int64, int64, int32, int64, float32[:,::1], int64[::1], uint64[::1])")
def update(table, begin, end, limit, upto, settings, rounding, active) -> None:  # noqa: ANN001
    """One SGD step of some groups, with the gradients where |g * w| has at least the bits `limit`, else with zeros.

    From flat position `upto` on, it has to have more than these bits. `settings`: learning rate, decay, momentum, 1 -
    dampening, of each tensor. `rounding`: how products and sums are rounded (`ROUNDINGS`), the same for the rest that
    fills no vector, and the width of a vector. `active`: who passed, a bit for each entry, a word for each group.
    Begins with the last groups: the cache still has what was looked at last.
    """
    group, flat = groups(table), np.int64(table[:, _N].sum())
    for t in range(table.shape[0]):
        i = table.shape[0] - 1 - t
        w, g, z = _tensor(table, i, _W), _tensor(table, i, _G), _tensor(table, i, _Z)
        lr, decay, beta, keep = settings[i, 0], settings[i, 1], settings[i, 2], settings[i, 3]
        flat -= w.size
        group -= (w.size + 63) // 64
        first, last = max(begin - group, 0), min(end - group, (w.size + 63) // 64)
        cut, body = upto - flat, w.size // rounding[2] * rounding[2]
        runs = (last - first + _RUN - 1) // _RUN if first < last else 0
        for back in range(runs):
            a = first + (runs - 1 - back) * _RUN
            b = min(a + _RUN, last)
            whole = min(b, w.size // 64)  # groups
            one = min(max(cut // 64, a), whole)  # where the cut is, if it is in a group
            two = min(one + (0 < cut < w.size and cut % 64 > 0), whole)
            for c, d, least in ((a, one, limit), (two, whole, np.int32(limit + 1))):
                o = np.uint64(256 * c)
                to = np.uint64(active.ctypes.data + 8 * (group + c))
                at_w, at_g, at_z = table[i, _W] + o, table[i, _G] + o, table[i, _Z] + o
                move(at_w, at_g, at_z, to, d - c, least, lr, decay, beta, keep, rounding[0])
            for c, d in ((one, two), (whole, b)):
                for k in range(c, d):
                    word = np.uint64(0)
                    for j in range(64 * k, min(64 * k + 64, w.size)):
                        passes = bits(w[j] * g[j]) & GREATEST >= (limit if j < cut else limit + 1)
                        word |= np.uint64(passes) << np.uint64(j - 64 * k)
                        x, r = g[j] if passes else np.float32(0.0), rounding[0 if j < body else 1]
                        z[j] = _new_momentum(x, w[j], z[j], decay, beta, keep, r)
                        w[j] = fma(z[j], -lr, w[j]) if r & 8 else w[j] - z[j] * lr
                    active[group + k] = word


@_kernel("void(uint64[:,::1], uint64[::1], boolean[::1])")
def unpack(table, active, out) -> None:  # noqa: ANN001
    """The bits that `update` wrote as flags, in flat order: in one pass, which numpy takes two for."""
    group, flat = 0, 0
    for i in range(table.shape[0]):
        size = np.int64(table[i, _N])
        for k in range(size // 64):
            spread(active[group + k], np.uint64(out.ctypes.data + flat + 64 * k))
        for j in range(size // 64 * 64, size):
            out[flat + j] = (active[group + size // 64] >> np.uint64(j % 64)) & np.uint64(1)
        group += (size + 63) // 64
        flat += size


# -- sharing the work out -------------------------------------------------------------------------------------------

# A team, int64: how many threads, and the addresses of `work` and of three functions of the OpenMP that PyTorch uses.
# (None of its threads has to be woken, and none competes with those of PyTorch that still wait for the next operation.)
THREADS, _WORK, _PARALLEL, _NUMBER, _SIZE = range(5)
# A plan, int64: numbers and addresses, which is cheaper than as many arguments. The team's; the table's, how many
# tensors it has, and how many of those compete, first; Q; the stride of the sample, 0 for none; the address of pairs
# (most, least) of it, to be tried in turn, and how many; the addresses and sizes of room to work in, a histogram (int32
# [a power of two]) and candidates (int32); the addresses of what `update` takes.
TEAM, TABLE, TENSORS, COMPETING, Q, STRIDE, BRACKETS, TRIES = range(8)
HISTOGRAM, BINS, FOUND, ROOM, SETTINGS, ROUNDING, ACTIVE = range(8, 15)
_COLLECT, _UPDATE, _ASK = range(3)
# a job, int64: what to do with the groups of a table, and where all that lies which that takes
_WHAT, _PARTS, _TABLE, _TENSORS, _LIMIT, _OTHER, _ROOM, _LENGTH, _SETTINGS, _ROUNDING, _RESULTS, _MINE, _ALL = range(13)


@_kernel("void(int64[::1], int64)")
def _part(job, k) -> None:  # noqa: ANN001
    parts, n = job[_PARTS], job[_TENSORS]
    table = carray(uint64s(np.uint64(job[_TABLE])), (n, 4))
    begin, end = groups(table) * k // parts, groups(table) * (k + 1) // parts
    limit, other, length, room = np.int32(job[_LIMIT]), job[_OTHER], job[_LENGTH], np.uint64(job[_ROOM])
    if job[_WHAT] == _COLLECT:
        results = carray(int64s(np.uint64(job[_RESULTS])), (parts, 3))
        found = carray(int32s(room), length)[length * k // parts : length * (k + 1) // parts]
        some, above, well = collect(table, begin, end, limit, np.int32(other), found)
        results[k, 0], results[k, 1], results[k, 2] = some, above, well
    elif job[_WHAT] == _ASK:
        carray(int32s(room), length)[k] = called(np.uint64(job[_MINE])) + parts * called(np.uint64(job[_ALL]))
    else:
        settings = carray(floats(np.uint64(job[_SETTINGS])), (n, 4))
        rounding = carray(int64s(np.uint64(job[_ROUNDING])), 3)
        update(table, begin, end, limit, other, settings, rounding, carray(uint64s(room), length))


@cfunc("void(voidptr)", cache=True)
def work(data) -> None:  # noqa: ANN001
    """What each thread of a team does: its parts of a job; there may be fewer threads than parts."""
    job = carray(data, _ALL + 1, np.int64)
    k = called(np.uint64(job[_MINE]))
    while k < job[_PARTS]:
        _part(job, k)
        k += max(1, called(np.uint64(job[_ALL])))


@njit(inline="always")
def _do(team, what, table, limit, other, room, settings, rounding, results):  # noqa: ANN001
    job = np.empty(_ALL + 1, np.int64)
    job[_WHAT], job[_PARTS] = what, min(team[THREADS], max(1, groups(table)))
    job[_TABLE], job[_TENSORS], job[_LIMIT], job[_OTHER] = table.ctypes.data, table.shape[0], limit, other
    job[_ROOM], job[_LENGTH], job[_RESULTS] = room.ctypes.data, room.size, results.ctypes.data
    job[_SETTINGS], job[_ROUNDING] = settings.ctypes.data, rounding.ctypes.data
    job[_MINE], job[_ALL] = team[_NUMBER], team[_SIZE]
    if job[_PARTS] == 1:
        _part(job, 0)
    else:
        shared_out(np.uint64(team[_PARALLEL]), np.uint64(team[_WORK]), np.uint64(job.ctypes.data), job[_PARTS])
    return job[_PARTS]


@_kernel("boolean(int64[::1])")
def understood(team) -> bool:  # noqa: ANN001
    """Whether the functions of a team are what they should be: as many threads come as are asked for, and know it."""
    n = team[THREADS]
    table, said, none = np.zeros((1, 4), np.uint64), np.full(n, -1, np.int32), np.empty(0, np.int64)
    table[0, _N] = 64 * n
    _do(team, _ASK, table, 0, 0, said, none, none, none)
    return (said == np.arange(n) + n * n).all()


@njit(inline="always")
def _longs(address, n):  # noqa: ANN001
    return carray(int64s(np.uint64(address)), n)


@njit(inline="always")
def _table(plan, first, last):  # noqa: ANN001
    return carray(uint64s(np.uint64(plan[TABLE])), (plan[TENSORS], 4))[first:last]


@_kernel("Tuple((int64, int64, int64, boolean))(int64[::1])")
def find(plan) -> tuple[int, int, int, bool]:  # noqa: ANN001
    """What `select` returns of all values that compete, and whether all of them are finite.

    All 0 where nothing is positive, and where the sample misled us: there is no room, or the bracket does not hold the
    q-th greatest.
    """
    team, table, q, stride = _longs(plan[TEAM], _SIZE + 1), _table(plan, 0, plan[COMPETING]), plan[Q], plan[STRIDE]
    brackets = carray(int64s(np.uint64(plan[BRACKETS])), (plan[TRIES], 2))
    histogram = carray(int32s(np.uint64(plan[HISTOGRAM])), plan[BINS])
    found = carray(int32s(np.uint64(plan[FOUND])), plan[ROOM])
    if stride:
        histogram[:] = 0
        sample(table, stride, histogram)
    results = np.full((team[THREADS], 3), -1, np.int64)
    for t in range(brackets.shape[0]):
        low, high = np.int32(1), GREATEST
        if stride:
            low, high = bracket(histogram, brackets[t, 0], brackets[t, 1])
        parts = _do(team, _COLLECT, table, low, high, found, results, results, results)
        inside, above, finite, fits = np.int64(0), np.int64(0), True, True
        for k in range(parts):
            n, start = max(np.int64(0), results[k, 0]), found.size * k // parts
            fits &= results[k, 0] >= 0
            for j in range(n if start > inside else 0):
                found[inside + j] = found[start + j]
            inside += n
            above += results[k, 1]
            finite &= results[k, 2] != 0
        if low == 1:  # then all that is positive has been seen, and it may be less than that
            q = min(q, above + inside)
        if fits and above < q <= above + inside:
            edge, kept, left_out = select(found[:inside], q - above, low, high)
            return edge, kept, left_out, finite
    return 0, 0, 0, True


@_kernel("Tuple((float64, boolean))(int64[::1])")
def step(plan) -> tuple[float, bool]:  # noqa: ANN001
    """`find` among the tensors that compete, then `update` of all; one call, since each call costs.

    Returns the threshold, and whether it was done: not where none was found, or something is not finite.
    """
    team, competing, n = _longs(plan[TEAM], _SIZE + 1), plan[COMPETING], plan[TENSORS]
    among, rest = _table(plan, 0, competing), _table(plan, competing, n)
    settings, rounding = carray(floats(np.uint64(plan[SETTINGS])), (n, 4)), _longs(plan[ROUNDING], 3)
    first = groups(among)
    active = carray(uint64s(np.uint64(plan[ACTIVE])), first + groups(rest))
    edge, kept, left_out, well = find(plan)
    if edge == 0 or not well or not finite(rest):
        return 0.0, False
    upto = after_equal(among, edge, kept) if left_out > 0 else np.int64(among[:, _N].sum())
    none = np.empty(0, np.int64)
    _do(team, _UPDATE, among, edge, upto, active[:first], settings[:competing], rounding, none)
    _do(team, _UPDATE, rest, 0, 1 << 62, active[first:], settings[competing:], rounding, none)  # all reach 0
    return np.float64(np.array([edge], np.int32).view(np.float32)[0]), True
