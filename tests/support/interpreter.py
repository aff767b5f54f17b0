"""Triton's interpreter, several times as fast: it goes on computing the same numbers by the same operations of NumPy.

Nearly all of its time goes into what surrounds these operations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy
import triton.language as tl
from triton.runtime import interpreter


def make_fast() -> None:
    _patch_once()
    _leave_out_checks_whose_outcome_is_dropped()
    _call_builtins_directly()
    _remember_shapes()
    _remember_types()
    _leave_equal_shapes_alone()


def _patch_once() -> None:
    """Triton replaces its language by the interpreter's at each launch and at each call of a device function, and puts it back
    after the launch. Where kernels are interpreted, nobody wants it back."""
    patch = interpreter._patch_lang
    seen: set[Any] = set()
    patched: set[tuple[bool, ...]] = set()

    def patch_what_is_not(function: Any) -> Any:
        if function not in seen:
            seen.add(function)
            modules = tuple(any(value is lang for value in function.__globals__.values()) for lang in (tl, tl.core))
            if modules not in patched:
                patched.add(modules)
                patch(function)
        return nothing_to_restore

    nothing_to_restore = interpreter._LangPatchScope()
    interpreter._patch_lang = patch_what_is_not


def _leave_out_checks_whose_outcome_is_dropped() -> None:
    """Each sum, difference and product of integers is formed and compared in int64, too; then `device_assert` returns before it
    looks at what came out, since ``debug`` is off."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _call_builtins_directly() -> None:
    """Past two wrappers that take ``_semantic`` out of the arguments, and look whether it is there."""
    semantic = interpreter.interpreter_semantic

    def patch(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function = getattr(member, "__wrapped__", member)

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return function(*args, **kwargs)

        scope.set_attr(obj, name, call)

    interpreter._patch_attr = patch


def _remember_shapes() -> None:
    """Every tensor makes a tuple of its shape, with a type; there are few shapes."""
    make = tl.tensor.__init__
    known: dict[Any, tuple[Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = type.shape if type.is_block() else ()
        if shape not in known:
            make(self, handle, type)
            known[shape] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[shape]

    tl.tensor.__init__ = init


def _remember_types() -> None:
    """The table from Triton's types to NumPy's is made anew for each look into it, and types of blocks are made by the thousand."""
    look_up, block = interpreter._get_np_dtype, tl.core.block_type.__init__
    dtypes: dict[str, numpy.dtype[Any]] = {}
    blocks: dict[tuple[Any, Any], dict[str, Any]] = {}

    def found(type: Any) -> numpy.dtype[Any]:
        if type.name not in dtypes:
            dtypes[type.name] = look_up(type)
        return dtypes[type.name]

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, tuple(shape)
        if key not in blocks:
            block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key])

    interpreter._get_np_dtype = found
    tl.core.block_type.__init__ = init


def _leave_equal_shapes_alone() -> None:
    """Most operands need no broadcast, which Triton finds by comparing their shapes number by number, wrapped and unwrapped."""
    broadcast = tl.semantic.TritonSemantic.broadcast_impl_value

    def leave(self: Any, lhs: Any, rhs: Any) -> Any:
        shapes = [operand.type.shape.values if operand.type.is_block() else None for operand in (lhs, rhs)]
        return (lhs, rhs) if shapes[0] == shapes[1] else broadcast(self, lhs, rhs)

    tl.semantic.TritonSemantic.broadcast_impl_value = leave
