"""Finds instructions that a phone may lack, by their encoding: a program with one of them dies there.

    python elf.py runner libconvscan.a

exits with 1 when one of the AArch64 files has an SVE or SME instruction. It needs nothing but Python, so that the
native tests run it without the package.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

AARCH64 = 183
_EXECUTABLE = 4  # SHF_EXECINSTR
_SYMBOL_TABLE = 2  # SHT_SYMTAB


class NotAarch64(ValueError):
    """The file is no ELF file for AArch64."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def vector_extensions(path: Path) -> list[str]:
    """``member+offset: instruction`` of every SVE and SME instruction in an object, a program or a static library.

    The architecture gives each extension a group of its own in bits 28 to 25 of an instruction: 0010 is SVE, and 0000
    with the top bit set is SME. Constants between instructions are left out where the file marks them ($d).

    Raises :class:`NotAarch64`.
    """
    content = path.read_bytes()
    found = []
    for name, member in _members(path.name, content):
        for offset, word in _instructions(name, member):
            group = word >> 25 & 15
            if group == 2 or (group == 0 and word >> 31):
                found.append(f"{name}+{offset:#x}: {word:#010x}")
    return found


def _members(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The ELF files of a static library, or the file itself."""
    if not content.startswith(b"!<arch>\n"):
        yield name, content
        return
    at = 8
    while at + 60 <= len(content):
        size = int(content[at + 48 : at + 58])
        member = content[at + 60 : at + 60 + size]
        if member.startswith(b"\x7fELF"):
            yield f"{name}({at:#x})", member
        at += 60 + size + size % 2


def _instructions(name: str, content: bytes) -> Iterator[tuple[int, int]]:
    """Offset in the file and encoding of every instruction."""
    if content[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", content, 18)[0] != AARCH64:
        raise NotAarch64(f"{name} is not an ELF file for AArch64")
    (table,) = struct.unpack_from("<Q", content, 40)
    entry, count = struct.unpack_from("<HH", content, 58)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", content, table + i * entry)) for i in range(count)]
    marks = _marks(content, sections)
    for index, section in enumerate(sections):
        if not section.flags & _EXECUTABLE:
            continue
        data = False
        for at in range(0, section.size - 3, 4):
            data = marks.get((index, at), data)
            if not data:
                yield section.offset + at, struct.unpack_from("<I", content, section.offset + at)[0]


def _marks(content: bytes, sections: list[_Section]) -> dict[tuple[int, int], bool]:
    """Where constants begin (True) and end (False), by section and offset: the mapping symbols $d and $x."""
    found = {}
    relocatable = struct.unpack_from("<H", content, 16)[0] == 1
    for table in (s for s in sections if s.kind == _SYMBOL_TABLE):
        strings = sections[table.link].offset
        for at in range(table.offset, table.offset + table.size, table.entry):
            name, _, _, section, value = struct.unpack_from("<IBBHQ", content, at)
            mark = content[strings + name : strings + name + 2]
            if mark in (b"$d", b"$x") and section < len(sections):
                start = 0 if relocatable else sections[section].address
                found[section, value - start] = mark == b"$d"
    return found


def main(arguments: list[str]) -> int:
    """Prints what it finds; the exit code."""
    found = [line for path in arguments for line in vector_extensions(Path(path))]
    print("\n".join(found[:20]) or "no SVE or SME instruction", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
