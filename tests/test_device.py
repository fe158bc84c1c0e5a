"""The phone: what is built for it, and what is said and done on the way there and back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from convscan.device import elf

NOP, CNTD, SMSTART, FMLA = 0xD503201F, 0x04E0E3E0, 0xC0800000, 0x4E21CC00


def aarch64_object(words: list[int], data: tuple[int, ...] = ()) -> bytes:
    """A relocatable file with one section of instructions, of which those at the indices ``data`` are constants."""
    text = struct.pack(f"<{len(words)}I", *words)
    strings = b"\0$d\0$x.0\0"
    symbols = [struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)]
    for index in data:
        symbols += [struct.pack("<IBBHQQ", name, 0, 0, 1, 4 * at, 0) for name, at in ((1, index), (4, index + 1))]
    bodies = [b"", text, b"".join(symbols), strings]
    kinds = [(0, 0, 0, 0), (1, 4, 0, 0), (2, 0, 3, 24), (3, 0, 0, 0)]  # kind, flags, link, size of an entry
    offsets = [64 + sum(len(b) for b in bodies[:i]) for i in range(4)]
    header = struct.pack(
        "<6s10xHHIQQQIHHHHHH", b"\x7fELF\x02\x01", 1, 183, 1, 0, 0, 64 + sum(map(len, bodies)), 0, 64, 0, 0, 64, 4, 3
    )
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, flags, 0, offset, len(body), link, 0, 1, entry)
        for (kind, flags, link, entry), offset, body in zip(kinds, offsets, bodies, strict=True)
    )
    return header + b"".join(bodies) + table


@pytest.mark.parametrize(
    ("words", "data", "found"),
    [
        ([NOP, FMLA], (), []),
        ([NOP, CNTD, FMLA], (), ["a.o+0x44: 0x04e0e3e0"]),
        ([SMSTART, NOP], (), ["a.o+0x40: 0xc0800000"]),
        ([NOP, CNTD, FMLA], (1,), []),
        ([NOP, CNTD, CNTD], (1,), ["a.o+0x48: 0x04e0e3e0"]),
    ],
)
def test_instructions_that_phones_lack_are_found(
    words: list[int], data: tuple[int, ...], found: list[str], tmp_path: Path
) -> None:
    content = aarch64_object(words, data)
    path = tmp_path / "a.o"
    path.write_bytes(content)
    assert elf.vector_extensions(path) == found
    assert elf.main([str(path)]) == bool(found)
    library = tmp_path / "liba.a"
    header = f"{'a.o/':<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(content):<10}`\n".encode()
    library.write_bytes(b"!<arch>\n" + header + content)
    assert len(elf.vector_extensions(library)) == len(found)


def test_files_for_other_processors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x86.o"
    path.write_bytes(aarch64_object([NOP]).replace(struct.pack("<HH", 1, 183), struct.pack("<HH", 1, 62)))
    with pytest.raises(elf.NotAarch64, match=r"x86\.o is not an ELF file for AArch64"):
        elf.vector_extensions(path)
