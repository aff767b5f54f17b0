"""What the compiler makes of the kernels, for every architecture that has an entry of its own. Needs no device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import product

import pytest
import torch
import triton

from regkernels import reference
from regkernels.backends.triton.architectures import ARCHITECTURES
from regkernels.backends.triton.kernels.groups import STAGES
from regkernels.backends.triton.kernels.penalties import FORMULAS
from regkernels.table.formats import ROUNDINGS
from tests.support import cases
from tests.triton.compiled import METRICS, OPERATORS, PENALTIES, compiled_for
from tests.triton.kernel import BY_GROUPS_FUNCTIONS, Kernel
from tests.triton.traffic import VALUES, bytes_moved, elements, stored_states, wide_accesses
from tests.triton.updates import ALWAYS, BY_GROUPS, FURTHER, SHARES, SHIFTED, WITH_SUMS, taken

pytestmark = pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in FURTHER])

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
NVIDIA = [architecture for architecture in ARCHITECTURES if not architecture.startswith("gfx")]


def relatives(architecture: str) -> list[str]:
    """The architectures of the same compiler, itself among them."""
    return [other for other in SHARES if (other in NVIDIA) == (architecture in NVIDIA)]


def assert_all(
    kernels: Iterable[Kernel], facts: Callable[[Kernel], object], expected: Callable[[Kernel], object]
) -> None:
    found = [(str(kernel), facts(kernel), expected(kernel)) for kernel in kernels]
    assert found
    assert not [difference for difference in found if difference[1] != difference[2]]


def having(architecture: str, *functions: str) -> list[Kernel]:
    """The kernels that walk over tensors, but for slower ones of shifted parts; of those only the named functions."""
    chosen = functions or ("update", "reduce", "elementwise", "proximal", *VALUES)
    return [kernel for kernel in compiled_for(architecture) if kernel.function in chosen and not kernel.shifted]


GROUPS = ("group_squares", "group_norms", "group_gradient")

ROWS = 2
"""Of hyper-parameters, which a thread computes at a time."""


def counted(architecture: str) -> list[Kernel]:
    """The kernels whose divisions and roots are counted: all but those of the penalties, each of which has others, and of what
    threads divide for each other."""
    return [
        kernel
        for kernel in compiled_for(architecture)
        if kernel.penalty == "plain"
        and kernel.function not in (*BY_GROUPS_FUNCTIONS, "group_gradient")
        and not kernel.shifted
    ]


def divisions(kernel: Kernel) -> int:
    """One per element to shrink it, one more where the step takes a root; see `roots`."""
    if kernel.function in VALUES:
        return 2 * elements(kernel) * (kernel.formula in ("log_sum_value", "log_sum_slope", "l_half_slope"))
    if kernel.function == "compute_rows":
        return ROWS
    return 2 * elements(kernel) + roots(kernel) if kernel.function in ("update", "proximal") else 0


def roots(kernel: Kernel) -> int:
    """Every formula is there twice: for whole blocks and for what is left."""
    if kernel.function == "group_norms":
        return 1
    if kernel.function == "compute_rows":
        return ROWS
    if kernel.function in VALUES:
        return 2 * elements(kernel) * kernel.formula.startswith("l_half")
    if kernel.function == "proximal":
        return 2 * elements(kernel) if kernel.metric == "root" else 0
    return 2 * elements(kernel) if kernel.function == "update" and reference.RULES[kernel.rule].step_per_element else 0


def fused_per_root(kernel: Kernel) -> int:
    """On AMD. LLVM's float32 root is another one where its argument cannot be subnormal, as one that was a float16 cannot."""
    if kernel.dtype == torch.float64:
        return 7
    return 5 if kernel.function == "proximal" and kernel.dtype == torch.float16 else 2


def spelled_out(kernel: Kernel) -> bool:
    """Triton before 3.7 writes down the root of a float32 for AMD itself, in fused operations that look like any other."""
    return VERSION < (3, 7) and kernel.is_amd and kernel.dtype != torch.float64 and roots(kernel) > 0


def test_every_rule_is_compiled_for_every_dtype_with_and_without_sums(architecture: str) -> None:
    updates = [(kernel.rule, kernel.dtype, kernel.stats) for kernel in having(architecture, "update")]
    always, with_sums = (taken(architecture, updates) for updates in (ALWAYS, WITH_SUMS))
    assert set(updates) >= {(update.rule, update.dtype, stats) for update, stats in product(always, (True, False))}
    assert len(updates) == 2 * len(always) + len(with_sums) + len(OPERATORS)


def test_every_format_is_compiled_by_groups(architecture: str) -> None:
    found = having(architecture, *BY_GROUPS_FUNCTIONS)
    others = [
        kernel
        for kernel in found
        if not kernel.is_wide or kernel.stage != "whole" or kernel.name.startswith("update_groups adam of 1 ")
    ]
    assert len(found) - len(others) == 2 * len(taken(architecture, BY_GROUPS))
    assert {kernel.stage for kernel in others} == {"whole", *STAGES}


def test_the_shares_of_a_compiler_make_a_whole(architecture: str) -> None:
    for updates in (ALWAYS, WITH_SUMS, SHIFTED, BY_GROUPS):
        assert {update for other in relatives(architecture) for update in taken(other, updates)} == set(updates)
        assert taken(architecture, updates)


def test_a_compiler_sees_every_rule_dtype_rounding_and_number_of_draws(architecture: str) -> None:
    updates = [kernel for other in relatives(architecture) for kernel in having(other, "update")]
    rules = ("sgd", "momentum", "adam", "amsgrad")
    found = {(kernel.rule, kernel.dtype, kernel.stats) for kernel in updates}
    assert found >= set(product(rules, cases.DTYPES, (True, False)))
    assert {rule for rule, _, _ in found} == reference.RULES.keys()
    assert {kernel.draws for kernel in updates} == {0, 1, 2, 3, 4}
    by_groups = [kernel for other in relatives(architecture) for kernel in having(other, *BY_GROUPS_FUNCTIONS)]
    assert {kernel.dtype for kernel in by_groups} == set(cases.DTYPES)
    assert {kernel.rounding for kernel in by_groups} == set(ROUNDINGS)
    assert {kernel.draws for kernel in by_groups} == {0, 4}


def test_rows_are_moved_16_bytes_at_a_time(architecture: str) -> None:
    """Once each: a program holds them until it stores them."""
    # Where tiles are on their way ahead of time, the loads of the first ones are there, too.
    assert_all(
        [kernel for kernel in having(architecture, "update_resident") if kernel.is_wide],
        lambda kernel: (min(kernel.wide_loads, wide_accesses(kernel)[0]), kernel.wide_stores),
        wide_accesses,
    )


def test_columns_and_long_rows_are_moved_16_bytes_at_a_time(architecture: str) -> None:
    """As a thread has 16 bytes of float32, one store for each buffer."""
    kernels = [
        kernel
        for kernel in having(architecture, "update_groups")
        if kernel.is_wide and kernel.dtype == torch.float32 and kernel.stage in ("whole", "write")
    ]
    assert_all(
        kernels,
        lambda kernel: (kernel.wide_loads > 0, kernel.wide_stores),
        lambda kernel: (True, len(bytes_moved(kernel)[1])),
    )


def test_every_other_kernel_is_compiled_for_every_dtype(architecture: str) -> None:
    found = {kernel.name for kernel in compiled_for(architecture)}
    names = (
        "reduce weight both",
        "reduce gradient square",
        "elementwise penalty_gradient by fp64",
        "elementwise shrink",
    )
    names += tuple(f"proximal {metric}" for metric in METRICS)
    expected = {f"{name} {str(dtype)[6:]}" for name, dtype in product(names, cases.DTYPES)}
    expected |= {f"reduce_value {formulas}_value {str(dtype)[6:]}" for formulas, (_, dtype) in PENALTIES.items()}
    expected |= {
        f"slope {formulas}_slope {str(PENALTIES[formulas][1])[6:]}" for formulas in FORMULAS if FORMULAS[formulas].slope
    }
    expected |= {f"reduce weight {wanted} float32" for wanted in ("absolute", "square")}
    expected |= {"reduce_weighted bfloat16", "slope_weighted bfloat16", "total float32", "total float64"}
    expected |= {f"{name} float32" for name in ("group_squares", "group_gradient")} | {"group_norms float64"}
    assert found >= expected | {
        "compute_rows float64",
        "add_runs float64",
        "add_totals float64",
        "square_sum float64",
        "penalty float32",
        "penalty float64",
    }


def test_whole_blocks_are_moved_16_bytes_at_a_time(architecture: str) -> None:
    def number(kernel: Kernel) -> tuple[int, int]:
        # Of a state with half the bytes of a weight, a thread has 8 bytes.
        read, written = ([elements(kernel) * size // 16 for size in sizes] for sizes in bytes_moved(kernel))
        return sum(read), sum(written)

    # A compiler may read tables that way, too, and may make a second loop for the case that nothing is written.
    assert_all(
        having(architecture),
        lambda kernel: (min(kernel.wide_loads, number(kernel)[0]), kernel.wide_stores),
        number,
    )


def test_threads_exchange_no_more_than_wide_states_within_whole_blocks(architecture: str) -> None:
    """A thread has 32 bytes of each float32 state of half-precision weights; Triton deals them out anew to store them, or computes
    them twice. None are exchanged for random numbers."""

    def exchanges(kernel: Kernel) -> tuple[int, int]:
        loops = re.findall(r"^( *)(?:%\S+ = )?scf\.for(.*?)^\1}", kernel.text("ttgir"), re.MULTILINE | re.DOTALL)
        # Of what is on its way ahead of time, only whether a block is one is asked for.
        unmasked = [body for _, body in loops if re.search(r"tt\.load %\w+ : tensor|async_copy_global_to_local", body)]
        return len(unmasked), max(sum(body.count("convert_layout") for body in unmasked), most(kernel))

    def most(kernel: Kernel) -> int:
        return stored_states(kernel).count(4) if kernel.dtype in cases.HALF else 0

    assert_all(having(architecture), exchanges, lambda kernel: (1, most(kernel)))


def test_nothing_is_spilled(architecture: str) -> None:
    def spilled(kernel: Kernel) -> int:
        # Three passes with the hyper-parameters of all steps have more scalars than AMD has registers for them; so has a
        # step with a random counter for each element. Others may have a few that only what is jumped over reads.
        is_large = kernel.function in BY_GROUPS_FUNCTIONS or kernel.shifted
        allowed = kernel.spilled_scalars if is_large else min(kernel.spilled_scalars, 12)
        return kernel.usage.spilled - allowed

    assert_all(compiled_for(architecture), spilled, lambda kernel: 0)
    assert_all(compiled_for(architecture), lambda kernel: 8 <= kernel.usage.registers <= 255, lambda kernel: True)


def test_eight_neighbours_share_the_computation_of_their_random_numbers(architecture: str) -> None:
    """Philox takes two products in each of its ten rounds, and every formula is there twice. The first products may do for
    both, or for all states: the step and the slot are the same for all elements."""
    product_of_words = r"mul\.hi\.u32" if architecture in NVIDIA else r"v_(?:mul_hi_u32|mad_u64_u32)"

    def excess(kernel: Kernel) -> bool:
        most = 2 * 20 * kernel.draws
        return 0.8 * most <= kernel.count(product_of_words) <= most + 4  # addresses take some, too

    kernels = [kernel for kernel in having(architecture, "update") if kernel.draws]
    assert kernels
    assert_all(kernels, excess, lambda kernel: True)


def test_divisions_and_roots_are_those_of_ieee(architecture: str) -> None:
    division, root = (
        (r"div\.rn\.f", r"sqrt\.rn\.f") if architecture in NVIDIA else (r"v_div_fixup_f", r"v_(?:sqrt|rsq)_f")
    )
    assert_all(
        counted(architecture),
        lambda kernel: (kernel.count(division), kernel.count(root)),
        lambda kernel: (divisions(kernel), roots(kernel)),
    )


def test_nothing_is_fused_approximated_or_flushed_to_zero(architecture: str) -> None:
    # mad of integers computes addresses.
    ptx = r"\bfma\.|\bmad\.(?:r[nzmp]\.)?f|\.(?:ftz|approx|full)\b"
    llvm = r"llvm\.fma|fmuladd|\bfpmath\b|\b(?:fast|contract|reassoc|arcp|afn|nnan|ninf|nsz) "

    def found(kernel: Kernel) -> list[str]:
        if not kernel.is_amd:
            return re.findall(ptx, kernel.text("ptx"))
        flushes = re.findall(r"amdhsa_float_denorm_mode\w+ [012]", kernel.assembly)
        return flushes + re.findall(llvm, kernel.text("llir"))

    kernels = [kernel for kernel in compiled_for(architecture) if not spelled_out(kernel)]
    assert_all(kernels, found, lambda kernel: [])


def test_machine_code_fuses_within_divisions_and_roots_only(architecture: str) -> None:
    """The last compiler may fuse what was separate until then. The numbers are those of LLVM's and ptxas's expansions."""
    if architecture not in NVIDIA:
        assert_all(
            # Groups are found by divisions of integers, which take fused operations, too.
            [kernel for kernel in counted(architecture) if not spelled_out(kernel) and kernel.function not in GROUPS],
            lambda kernel: kernel.count(r"\bv_(?:pk_)?(?:fma|mac|mad)\w*_f(?:16|32|64)"),
            # Numbers become integers, exactly, by a fused operation each: seed and step, or what is rounded down and exponents.
            lambda kernel: (
                5 * divisions(kernel)
                + fused_per_root(kernel) * roots(kernel)
                + 2 * (kernel.draws > 0)
                + 3 * ROWS * (kernel.function == "compute_rows")
            ),
        )
        return

    kernels = {kernel.name: kernel for kernel in compiled_for(architecture)}

    def beyond_divisions(name: str) -> int:
        return len(re.findall(r"\b[FD]FMA\b", kernels[name].machine_code)) - 5 * divisions(kernels[name])

    assert beyond_divisions("elementwise penalty_gradient by fp64 float32") == 0
    assert beyond_divisions("reduce weight both float32") == 0
    # All divisions share a function for operands out of the ordinary.
    assert beyond_divisions("update sgd float32") == beyond_divisions("update sgd float16")
