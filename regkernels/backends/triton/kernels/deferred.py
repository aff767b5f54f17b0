"""Computes rows of hyper-parameters from what lies on the device: executes what `regkernels.table.deferred` has written down.

Formulas stand in the optimizers alone; here is only what they are made of, plain IEEE operations in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.arithmetic import constant
from regkernels.backends.triton.kernels.columns import PARAMETERS
from regkernels.table.deferred import OPERATIONS

PROGRAM = ("code", "length", "inputs", "count", "row", "slots")
"""Columns of the table of programs: where its instructions begin and how many there are, where its inputs begin, how many rows it
computes and which is the first, and where there is room for what its instructions yield."""

COLUMNS = tl.constexpr(len(PROGRAM))
CODE, LENGTH, INPUTS, COUNT, ROW, SLOTS = (tl.constexpr(column) for column in range(6))

INSTRUCTION = tl.constexpr(4)
"""Numbers of an instruction: the operation, and up to three operands."""

INSTRUCTIONS = ("constant", "float32", "float64", "store", *OPERATIONS)
CONSTANT, FLOAT32, FLOAT64, STORE = (tl.constexpr(number) for number in range(4))
ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER, ROOT, FLOOR, IS_GREATER, IS_EQUAL, CHOOSE = (
    tl.constexpr(INSTRUCTIONS.index(name))
    for name in (
        *("add", "subtract", "multiply", "divide", "power", "root", "floor", "is_greater", "is_equal", "choose"),
    )
)


@triton.jit
def halves(x):
    """Splits a number into two of 26 bits, whose products are exact. Source: Dekker (1971)."""
    shifted = x * constant(134217729.0, x)  # 2**27 + 1
    high = shifted - (shifted - x)
    return high, x - high


@triton.jit
def product(a, a_rest, b, b_rest):
    """Multiplies two numbers of twice the precision, each of them a float64 and what it lacks."""
    p = a * b
    a_high, a_low = halves(a)
    b_high, b_low = halves(b)
    rest = ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low
    rest = rest + (a * b_rest + a_rest * b)
    total = p + rest
    return total, rest - (total - p)


@triton.jit
def whole_power(base, exponent):
    """Raises to a whole power, by squaring in twice the precision: rounded but once, as far as float64 can tell.

    The library's is made of fused operations that would be another one on each device, and the interpreter has none.
    """
    left = exponent.to(tl.int64)
    result, result_rest = tl.full(base.shape, 1.0, tl.float64), tl.full(base.shape, 0.0, tl.float64)
    square, square_rest = base, result_rest
    while tl.max(left, axis=0) > 0:
        odd = left % 2 == 1
        multiplied, rest = product(result, result_rest, square, square_rest)
        result, result_rest = tl.where(odd, multiplied, result), tl.where(odd, rest, result_rest)
        square, square_rest = product(square, square_rest, square, square_rest)
        left = left // 2
    return tl.where((exponent >= 0) & (exponent == floor(exponent)), result, float("nan"))


@triton.jit
def floor(x):
    is_small = tl.abs(x) < constant(4503599627370496.0, x)  # 2**52: what is not has no fraction
    cut = tl.where(is_small, x, 0.0).to(tl.int64).to(tl.float64)
    return tl.where(is_small, tl.where(cut > x, cut - 1.0, cut), x)


@triton.jit
def applied(operation, a, b, c):
    """Applies an operation, the same for all rows."""
    value = a
    if operation < DIVIDE:
        if operation == ADD:
            value = a + b
        elif operation == SUBTRACT:
            value = a - b
        else:
            value = a * b
    elif operation < FLOOR:
        if operation == DIVIDE:
            value = a / b
        elif operation == POWER:
            value = whole_power(a, b)
        else:
            value = tl.sqrt(a)
    else:
        if operation == FLOOR:
            value = floor(a)
        elif operation == IS_GREATER:
            value = (a > b).to(tl.float64)
        elif operation == IS_EQUAL:
            value = (a == b).to(tl.float64)
        else:
            value = tl.where(a != 0, b, c)
    return value


@triton.jit
def read(operation, bits):
    """Reads an input: a constant, or the number at an address."""
    value = bits.to(tl.float64, bitcast=True)
    if operation == FLOAT32:
        value = tl.load(bits.to(tl.pointer_type(tl.float32))).to(tl.float64)
    elif operation == FLOAT64:
        # In halves: Triton clears the register that it loads into first, and one of 64 bits can be that of the address.
        place = bits.to(tl.pointer_type(tl.uint32))
        low, high = tl.load(place).to(tl.int64), tl.load(place + 1).to(tl.int64)
        value = (low | (high << 32)).to(tl.float64, bitcast=True)
    return value


@triton.jit
def compute_rows(programs, slots, rows, BLOCK: tl.constexpr):
    """Runs a program for some of the rows that it computes. What an instruction yields is kept for each row, under its number."""
    program = programs + tl.program_id(0) * COLUMNS
    code = programs + tl.load(program + CODE)
    count = tl.load(program + COUNT)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    places = tl.where(mask, places, count - 1)  # all threads have something to read
    inputs = programs + tl.load(program + INPUTS) + places
    own = slots + tl.load(program + SLOTS) + places
    row = rows + (tl.load(program + ROW) + places) * PARAMETERS
    # What is beyond the rows does nothing, or two programs would write to the same place.
    length = tl.where(tl.program_id(1) * BLOCK < count, tl.load(program + LENGTH), 0)
    for number in range(length):
        instruction = code + number * INSTRUCTION
        operation = tl.load(instruction)
        first, second, third = tl.load(instruction + 1), tl.load(instruction + 2), tl.load(instruction + 3)
        if operation == STORE:
            tl.store(row + second, tl.load(own + first * count), mask=mask)
        else:
            if operation < STORE:
                value = read(operation, tl.load(inputs + first * count))
            else:
                a, b, c = tl.load(own + first * count), tl.load(own + second * count), tl.load(own + third * count)
                value = applied(operation, a, b, c)
            tl.store(own + number * count, value, mask=mask)
            tl.debug_barrier()  # what is read may have been written by another thread
