"""Compiling the loops once per user, host and release: numba writes code that is then loaded without it.

``python -m crdt_merge_node.resolve.compiled_build FILE`` in a process of its own, because numba takes 120 MiB
and ten seconds. What it writes is an object file behind one line of JSON that says what is in it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba

from . import compiled_counts, compiled_draws, compiled_elections, compiled_means, compiled_sums
from .compiled_code import PREFIX, host_machine
from .compiled_emitted import ENTRIES, signature

MODULES = (compiled_counts, compiled_draws, compiled_elections, compiled_means, compiled_sums)
"""Importing them has filled ENTRIES."""
_NOTHING_OWNED = "define void @NRT_MemInfo_call_dtor(i8* %0) { ret void }"
"""Arrays at addresses own no memory, so what numba calls to free it is never reached."""


def build() -> bytes:
    """Return the machine code of all entries for this host, as :mod:`compiled_code` loads it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    whole = llvm.parse_assembly(_NOTHING_OWNED)
    for name, (function, arguments) in ENTRIES.items():
        whole.link_in(_module(name, function, arguments))
    strays = [f.name for f in whole.functions if f.is_declaration and not _is_known(f.name)]
    if strays:
        raise RuntimeError(f"compiled loops need what only numba has: {', '.join(strays)}")
    table = json.dumps({name: arguments for name, (_, arguments) in ENTRIES.items()})
    code: bytes = host_machine().emit_object(whole)
    return table.encode() + b"\n" + code


def _module(name: str, function: Any, arguments: str) -> llvm.ModuleRef:
    """Return optimised LLVM code with one function that is visible outside."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    made = numba.njit(signature(arguments), error_model="numpy", nogil=True, **options)(function)
    module = llvm.parse_assembly(made.inspect_llvm(made.signatures[0]))
    for found in module.functions:
        if found.is_declaration:
            continue
        if found.linkage == llvm.Linkage.external:
            found.name = PREFIX + name
        else:
            found.linkage = llvm.Linkage.internal
    for variable in module.global_variables:  # Each entry may have one of the same name.
        if not variable.is_declaration:
            variable.linkage = llvm.Linkage.internal
    return module


def _is_known(name: str) -> bool:
    """Tell whether a name is the compiler's own, or the C library's for copying and filling memory."""
    return name.startswith("llvm.") or name in {"memset", "memcpy", "memmove"}


def main() -> None:
    """Write the code into the file that the command line names, whole or not at all."""
    path = Path(sys.argv[1])
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_bytes(build())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
