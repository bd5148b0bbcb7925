"""Loading compiled loops: machine code from the cache, called through its addresses. No numba is imported.

Importing numba takes a process two seconds and a hundred mebibytes, LLVM alone a tenth of a second and a
quarter of the memory. So numba compiles in a process of its own, once (``compiled_build.py``), and what it
writes is kept where only this user may write: what is loaded from a cache is run.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

import llvmlite
import llvmlite.binding as llvm

PREFIX: Final = "crdt_merge_"
_KINDS: Final[dict[str, Any]] = {"i": ctypes.c_int64, "d": ctypes.c_double}
Loop = Callable[..., int]


class CompiledCode:
    """The entries of one file of machine code, as attributes: functions that return an integer."""

    def __init__(self, written: bytes) -> None:
        table, _, code = written.partition(b"\n")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.check_jit_execution()  # Where memory may not be executable, finalising would not say so.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), host_machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._loops = {name: self._loop(name, kinds) for name, kinds in json.loads(table).items()}

    def __getitem__(self, name: str) -> Loop:
        """Return a loop by its name.

        Raises:
            KeyError: There is none of that name.
        """
        return self._loops[name]

    def __contains__(self, name: str) -> bool:
        return name in self._loops

    def _loop(self, name: str, kinds: str) -> Loop:
        address = self._engine.get_function_address(PREFIX + name)
        if not address:
            raise LookupError(f"compiled code without {name}")
        # By numba's convention a function returns a status and writes its result and its error.
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *(_KINDS[kind] for kind in kinds)
        )
        function = prototype(address)
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        to_result, to_error = ctypes.addressof(result), ctypes.addressof(error)

        def call(*arguments: Any) -> int:
            status = function(to_result, to_error, *arguments)
            if status:
                raise ArithmeticError(f"compiled loop {name} ended with status {status}")
            return result.value

        return call


def host_machine() -> llvm.TargetMachine:
    """Return what code is made for: this processor, everything that it can do."""
    target = llvm.Target.from_default_triple()
    machine: llvm.TargetMachine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
    )
    return machine


def host() -> str:
    """Return what tells code for this host and compiler from code for another."""
    parts = [llvmlite.__version__, str(llvm.llvm_version_info), llvm.get_default_triple()]
    parts += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
