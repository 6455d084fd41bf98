"""Instructions that compiled loops (numba) use and Python has no word for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def floats(_: Any, address: Any) -> Any:
    """The pointer to float32 that an address is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.uint64), generate


@intrinsic
def bits(_: Any, x: Any) -> Any:
    """The bits of a float32 as an int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def ones(_: Any, x: Any) -> Any:
    """How many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@intrinsic
def zeros_below(_: Any, x: Any) -> Any:
    """How many bits of a uint64 are zero below its lowest one; 64 where there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


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

        def everywhere(x: Any) -> Any:
            none = ir.Constant(numbers, ir.Undefined)
            first = builder.insert_element(none, x, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, none, ir.Constant(numbers, [0] * 64))

        product = builder.bitcast(builder.fmul(load(args[0]), load(args[1])), numbers)
        sizes = builder.and_(product, ir.Constant(numbers, [0x7FFFFFFF] * 64))
        limits = [everywhere(args[2]), everywhere(args[3]), ir.Constant(numbers, [0x7F800000] * 64)]
        words = [builder.bitcast(builder.icmp_signed(">=", sizes, limit), ir.IntType(64)) for limit in limits]
        return context.make_tuple(builder, signature.return_type, words)

    addresses, limits = (types.uint64, types.uint64), (types.int32, types.int32)
    return types.UniTuple(types.uint64, 3)(*addresses, *limits), generate


@intrinsic
def fetch(_: Any, address: Any) -> Any:
    """Ask for the cache line of an address that will be written to soon."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate
