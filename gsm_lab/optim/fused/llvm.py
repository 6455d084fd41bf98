"""Instructions that compiled loops (numba) use and Python has no word for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

ROUNDINGS = [a | b | c for a in (0, 1) for b in (0, 2, 4) for c in (0, 8)]  # what is rounded once in an update: bits
_AT_ONCE = 16  # numbers in a vector: what the widest registers hold; where they hold less, several take its place


def _of_one(result: Any, argument: Any, build: Callable[[Any, Any], Any]) -> Any:
    """What `build` makes of a builder and one argument; where that is None, it returns nothing."""

    @intrinsic
    def operation(_: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = build(builder, args[0])
            return context.get_dummy_value() if value is None else value

        return result(argument), generate

    return operation


def _pointer(kind: Any, entry: ir.Type) -> Any:
    return _of_one(types.CPointer(kind), types.uint64, lambda builder, x: builder.inttoptr(x, entry.as_pointer()))


# the pointer that an address is
floats = _pointer(types.float32, ir.FloatType())
int32s = _pointer(types.int32, ir.IntType(32))
int64s = _pointer(types.int64, ir.IntType(64))
uint64s = _pointer(types.uint64, ir.IntType(64))
# the bits of a float32 as an int32
bits = _of_one(types.int32, types.float32, lambda builder, x: builder.bitcast(x, ir.IntType(32)))
# how many bits of a uint64 are set, and how many are zero below its lowest one (64 where there is none)
ones = _of_one(types.uint64, types.uint64, lambda builder, x: builder.ctpop(x))
zeros_below = _of_one(types.uint64, types.uint64, lambda builder, x: builder.cttz(x, ir.Constant(ir.IntType(1), 0)))


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """The number a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def reached(_: Any, a: Any, b: Any, low: Any, high: Any) -> Any:
    """Which of 64 products |a * b| of float32 at two addresses reach `low`, `high` and infinity, as the bits of floats.

    Three uint64, the first product in the lowest bit. A comparison of vectors whose result is taken as bits: to write
    it as a loop over flags takes several times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        floats, numbers = ir.VectorType(ir.FloatType(), 64), ir.VectorType(ir.IntType(32), 64)

        def load(address: Any) -> Any:
            return builder.load(builder.inttoptr(address, floats.as_pointer()), align=4)

        product = builder.bitcast(builder.fmul(load(args[0]), load(args[1])), numbers)
        sizes = builder.and_(product, ir.Constant(numbers, [0x7FFFFFFF] * 64))
        limits = [*(_everywhere(builder, x, numbers) for x in args[2:]), ir.Constant(numbers, [0x7F800000] * 64)]
        words = [builder.bitcast(builder.icmp_signed(">=", sizes, limit), ir.IntType(64)) for limit in limits]
        return context.make_tuple(builder, signature.return_type, words)

    addresses, limits = (types.uint64, types.uint64), (types.int32, types.int32)
    return types.UniTuple(types.uint64, 3)(*addresses, *limits), generate


# whether the processor that numba compiles for moves the chosen numbers of a vector to its front
_FEATURES = (
    config.CPU_FEATURES if config.CPU_FEATURES is not None else "" if config.CPU_NAME else get_host_cpu_features()
)
COMPRESSES = "+avx512f" in _FEATURES.split(",")


@intrinsic
def chosen(_: Any, w: Any, g: Any, n: Any, low: Any, high: Any, found: Any) -> Any:
    """Copy the bits of those of n * 64 products |a * b|, n > 0, of float32 at two addresses that are in [low, high).

    Only where `COMPRESSES`. `found`: where to; up to 16 numbers more are written. Returns three int64: how many there
    were, how many reached `high`, and the greatest bits of all.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, number, size = ir.IntType(64), ir.IntType(32), _AT_ONCE
        floats, numbers, flags = (ir.VectorType(x, size) for x in (ir.FloatType(), number, ir.IntType(1)))
        kind = ir.FunctionType(numbers, [numbers, numbers, flags])
        compress = builder.module.declare_intrinsic("llvm.x86.avx512.mask.compress.v16i32", (), kind)
        count = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(size)])
        zeros, ones = ir.Constant(numbers, [0] * size), ir.Constant(numbers, [1] * size)
        least, beyond = _everywhere(builder, args[3], numbers), _everywhere(builder, args[4], numbers)
        width = builder.sub(beyond, least)
        before, loop, done = builder.block, *(builder.append_basic_block(name) for name in ("look", "looked"))
        builder.branch(loop)
        builder.position_at_end(loop)
        state = [builder.phi(kind) for kind in (word, word, numbers, numbers)]
        for phi, start in zip(state, (ir.Constant(word, 0), ir.Constant(word, 0), zeros, zeros), strict=True):
            phi.add_incoming(start, before)
        k, n, above, greatest = state
        for part in range(64 // size):
            skipped = builder.add(builder.mul(k, ir.Constant(word, 256)), ir.Constant(word, 4 * size * part))
            a, b = (builder.load(_place(builder, x, skipped, floats), align=4) for x in args[:2])
            v = builder.and_(builder.bitcast(builder.fmul(a, b), numbers), ir.Constant(numbers, [0x7FFFFFFF] * size))
            inside = builder.icmp_unsigned("<", builder.sub(v, least), width)
            there = _place(builder, args[5], builder.mul(n, ir.Constant(word, 4)), numbers)
            builder.store(builder.call(compress, [v, zeros, inside]), there, align=4)
            n = builder.add(n, builder.zext(builder.call(count, [builder.bitcast(inside, ir.IntType(size))]), word))
            above = builder.add(above, builder.select(builder.icmp_signed(">=", v, beyond), ones, zeros))
            greatest = builder.select(builder.icmp_signed(">", v, greatest), v, greatest)
        k = builder.add(k, ir.Constant(word, 1))
        for phi, now in zip(state, (k, n, above, greatest), strict=True):
            phi.add_incoming(now, builder.block)
        builder.cbranch(builder.icmp_signed("<", k, args[2]), loop, done)
        builder.position_at_end(done)
        results = [n]
        for name, vector in (("add", above), ("smax", greatest)):
            reduce = builder.module.declare_intrinsic(
                f"llvm.vector.reduce.{name}.v{size}i32", (), ir.FunctionType(number, [numbers])
            )
            results.append(builder.zext(builder.call(reduce, [vector]), word))
        return context.make_tuple(builder, signature.return_type, results)

    addresses, limits = (types.uint64, types.uint64), (types.int32, types.int32)
    return types.UniTuple(types.int64, 3)(*addresses, types.int64, *limits, types.uint64), generate


def _everywhere(builder: Any, x: Any, vector: Any) -> Any:
    """A vector that has x in all places."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    )


def _place(builder: Any, address: Any, skipped: Any, kind: Any) -> Any:
    """The pointer to what lies some bytes behind an address."""
    return builder.inttoptr(builder.add(address, skipped), kind.as_pointer())


def _fetch(writes: int) -> Any:
    def build(builder: Any, address: Any) -> None:
        pointer, number = builder.inttoptr(address, ir.IntType(8).as_pointer()), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, number(writes), number(3), number(1)])

    return _of_one(types.void, types.uint64, build)


# ask for the cache line of an address that will be written to soon, or read
fetch, fetch_to_read = _fetch(1), _fetch(0)


@intrinsic
def spread(_: Any, word: Any, address: Any) -> Any:
    """Write the bits of a uint64 to an address as 64 bytes of 0 and 1, the lowest first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_of_all = ir.VectorType(ir.IntType(8), 64)
        flags = builder.bitcast(args[0], ir.VectorType(ir.IntType(1), 64))
        place = builder.inttoptr(args[1], bytes_of_all.as_pointer())
        builder.store(builder.zext(flags, bytes_of_all), place, align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def move(
    _: Any, w: Any, g: Any, z: Any, to: Any, n: Any, limit: Any, lr: Any, decay: Any, beta: Any, keep: Any, code: Any
) -> Any:
    """SGD's step for n times 64 float32 at the addresses of weights, gradients and momenta, where |g * w| passes.

    `to`: where to write which did, a uint64 for every 64, the first in the lowest bit. `limit`: bits that those of
    |g * w| have to reach. `code`: one of ROUNDINGS. As vectors, since a loop that stores a flag for each weight
    takes longer than SGD's own; and a loop for each rounding, since to ask in the loop costs a third.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size, word = _AT_ONCE, ir.IntType(64)
        floats, numbers = ir.VectorType(ir.FloatType(), size), ir.VectorType(ir.IntType(32), size)
        kind = ir.FunctionType(floats, [floats] * 3)
        once = builder.module.declare_intrinsic(f"llvm.fma.v{size}f32", (), kind)
        none, one = ir.Constant(word, 0), ir.Constant(word, 1)

        def fma(a: Any, b: Any, c: Any, rounded_once: int) -> Any:
            return builder.call(once, [a, b, c]) if rounded_once else builder.fadd(builder.fmul(a, b), c)

        def step(code: int, k: Any) -> None:
            words = []
            for part in range(64 // size):
                skipped = builder.add(builder.mul(k, ir.Constant(word, 256)), ir.Constant(word, 4 * size * part))
                at_w, at_g, at_z = (_place(builder, x, skipped, floats) for x in args[:3])
                w, g, z = (builder.load(at, align=4) for at in (at_w, at_g, at_z))
                product = builder.and_(builder.bitcast(builder.fmul(w, g), numbers), without_sign)
                passes = builder.icmp_signed(">=", product, least)
                x = builder.select(passes, g, zero)
                x = builder.select(decays, fma(w, decay, x, code & 1), x)
                if code & 4:
                    z = fma(z, beta, builder.fmul(x, keep), True)
                else:
                    z = fma(x, keep, builder.fmul(z, beta), code & 2)
                builder.store(z, at_z, align=4)
                builder.store(fma(z, back, w, code & 8), at_w, align=4)
                flags = builder.zext(builder.bitcast(passes, ir.IntType(size)), word)
                words.append(builder.shl(flags, ir.Constant(word, size * part)))
            builder.store(
                functools.reduce(builder.or_, words),
                _place(builder, args[3], builder.mul(k, ir.Constant(word, 8)), word),
            )

        zero, without_sign = ir.Constant(floats, [0.0] * size), ir.Constant(numbers, [0x7FFFFFFF] * size)
        least = _everywhere(builder, args[5], numbers)
        lr, decay, beta, keep = (_everywhere(builder, x, floats) for x in args[6:10])
        back, decays = builder.fneg(lr), builder.fcmp_unordered("!=", args[7], ir.Constant(ir.FloatType(), 0))
        done = builder.append_basic_block("moved")
        loops = {code: builder.append_basic_block(f"rounding{code}") for code in ROUNDINGS}
        some = builder.append_basic_block("some")
        builder.cbranch(builder.icmp_signed(">", args[4], none), some, done)
        builder.position_at_end(some)
        switch = builder.switch(args[10], done)
        for code, block in loops.items():
            switch.add_case(code, block)
            builder.position_at_end(block)
            k = builder.phi(word)
            k.add_incoming(none, some)
            step(code, k)
            after = builder.add(k, one)
            k.add_incoming(after, block)
            builder.cbranch(builder.icmp_signed("<", after, args[4]), block, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    addresses, settings = (types.uint64,) * 4, (types.float32,) * 4
    return types.void(*addresses, types.int64, types.int32, *settings, types.int64), generate


def _call(builder: Any, function: Any) -> Any:
    kind = ir.FunctionType(ir.IntType(32), [])
    return builder.sext(builder.call(builder.inttoptr(function, kind.as_pointer()), []), ir.IntType(64))


called = _of_one(types.int64, types.uint64, _call)  # what the C function at an address returns, an int; no argument


@intrinsic
def shared_out(_: Any, parallel: Any, function: Any, data: Any, threads: Any) -> Any:
    """Have a team of threads call the C function at an address with `data`; `parallel`: OpenMP's GOMP_parallel."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, number, number])
        function, data = (builder.inttoptr(x, pointer) for x in args[1:3])
        threads = builder.trunc(args[3], number)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [function, data, threads, number(0)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64, types.int64), generate
