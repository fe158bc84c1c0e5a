"""The phone: what is built for it, and what is said and done on the way there and back."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from convscan.device import build, counts, elf, grid, judge, mca, report, results, target
from convscan.ops.causal_conv import cases as conv_cases
from convscan.profiler import cli

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


# ---- a phone behind a fake adb ----

# Answers as the real runner does, with invented times: fft is the fastest, but misses the tolerance on ones.
FAKE_RUNNER = r"""#!/bin/sh
if [ "$1" = machine ]; then
  printf '%s' '{"system": "Linux 6.1", "architecture": "aarch64", "isa": "neon", "cores": 10, "threads": 10, ' \
    '"memory_bytes": 8000000000, "load": 0.5, "copy_bandwidth": [[262144, 9e10]], ' \
    '"triad_bandwidth": [[262144, 9e10]], "peak_flops": 3e11}'
  echo
  exit 0
fi
case "$3" in 4096) exit 137;; esac
taps=0; [ "$1" = causal_conv ] && taps=$4
head='{"op": "%s", "channels": %d, "length": %d, "taps": %d, "implementation": "%s", "status": "%s", '
errors='"within_tolerance": %s, "max_abs": 1e-6, "max_abs_ones": 0, "relative_rms": 1e-7, "of_bound": 0.1, '
rest='"peak_bytes": 4096, "workspace_bytes": 512, "latency_us": %s}\n'
spread='{"min": %d, "p10": %d, "p50": %d, "p90": %d, "max": %d, "avg": %d, "samples": 9}'
op=$1; channels=$2; length=$3
line() { printf "$head$errors$rest" $op $channels $length $taps "$@"; }
same() { printf "$spread" $1 $1 $1 $1 $1 $1; }
line direct ok true "$(same 200)"
line fft ok false "$(same 100)"
line tiled wrong false null
line "time loop" ok true "$(same 800)"
"""


class Fake:
    """A phone that is not there: what it is asked, and how it should answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "disk/convscan").mkdir(parents=True)
        (folder / "out").mkdir()
        self.connect("R5CX10ABCDE\tdevice")
        (folder / "out/convscan_runner").write_text(FAKE_RUNNER)
        self.adb = folder / "adb"
        self.adb.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_adb.py")}" "$@"\n')
        self.adb.chmod(0o755)

    def connect(self, *devices: str) -> None:
        (self.folder / "devices").write_text("\n".join(devices))

    def fail(self, beginning: str, output: str, code: int = 1) -> None:
        words = beginning.split(" ", 3)
        (self.folder / "failures").write_text(json.dumps([[words, output, code]]))

    def run(self, *words: str) -> int:
        return cli.main(["device", *words, "--adb", str(self.adb), "--out", str(self.folder / "out")])

    def commands(self) -> list[str]:
        return [" ".join(json.loads(line)) for line in (self.folder / "log").read_text().splitlines()]


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("FAKE_ADB", str(tmp_path))
    return Fake(tmp_path)


def test_the_grid_goes_to_the_phone_and_its_results_come_back(
    phone: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "QUICK_LENGTHS", (1024, 4096))
    assert phone.run("push") == 0
    assert phone.run("run", "--quick", "--cpus", "4-7", "--threads", "4") == 0
    assert phone.run("pull", "--quick") == 0
    serial, folder = "-s R5CX10ABCDE", "/data/local/tmp/convscan"
    commands = phone.commands()
    asked = ["devices", f"{serial} shell getprop ro.product.cpu.abi"]
    assert commands[:5] == [
        *asked,
        f"{serial} shell rm -rf {folder} && mkdir -p {folder}",
        f"{serial} push {phone.folder}/out/convscan_runner {folder}/convscan_runner",
        f"{serial} shell chmod 755 {folder}/convscan_runner",
    ]
    keep = "> case.jsonl; code=$?; cat case.jsonl; cat case.jsonl >> results.jsonl; exit $code"
    options = "--inputs 3 --runs 3 --seconds 120 --threads 4 --cpus 4-7"
    assert commands[5:10] == [
        *asked,
        f"{serial} shell cd {folder} && ./convscan_runner machine --threads 4 --cpus 4-7 {keep}",
        f"{serial} shell dumpsys thermalservice",
        f"{serial} shell cd {folder} && ./convscan_runner causal_conv 512 1024 4 {options} {keep}",
    ]
    assert f"{serial} pull {folder}/results.jsonl {phone.folder}/out/results.jsonl" in commands

    report = json.loads((phone.folder / "out/device.json").read_text())
    assert report["schema"] == "convscan-profile/1"
    assert report["machine"]["processor"] == "SM-S921B (s5e9945), Android 14"
    records = [r for r in report["records"] if r["case"] == "grid-c512-l1024-k32"]
    assert [(r["implementation"], r["status"]) for r in records] == [
        ("convscan", "ok"), ("direct", "ok"), ("fft", "ok"), ("tiled", "wrong"), ("time loop", "ok")
    ]  # fmt: skip
    assert records[0]["reason"] == "runs direct"  # fft is faster and misses the tolerance
    assert records[0]["latency_us"] == {"p10": 200.0, "median": 200.0, "p90": 200.0, "samples": 9}
    assert records[0]["speedup"] == 4
    assert records[3]["latency_us"] is None
    score = report["challenge"]["scores"][0]
    assert (score["implementation"], score["cases"], score["mean_us"]) == ("convscan", 4, 200)  # L = 4096 was killed
    assert "grid-c512-l1024-k32" in (phone.folder / "out/device.html").read_text()
    output = capsys.readouterr().out
    assert "The challenge's figures" in output
    assert "Score" in output


# Answers as the real judge does: right, and faster than our kernels on the phone that is not there.
FAKE_JUDGE = (
    "#!/bin/sh\nshift 3  # --library-path lib ./convscan_judge\n"
    + FAKE_RUNNER.partition("\n")[2].partition("line direct")[0]
    + 'while [ "$1" != --name ]; do shift; done\nline "$2" ok true "$(same 150)"\n'
)


def test_submissions_are_judged_beside_our_kernels_and_ranked(
    phone: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "QUICK_LENGTHS", (64, 1024))
    monkeypatch.setattr(build, "build", lambda folder, toolchain: folder / "convscan_runner")
    program = phone.folder / "judge"
    program.write_text(FAKE_JUDGE)
    fake = judge.Judge(((program, "lib/loader"),), ("./lib/loader", "--library-path", "lib", "./convscan_judge"))
    monkeypatch.setattr(judge, "build", lambda folder, wheel: fake)
    for taps in (4, 32):  # programs for a part of the shapes only
        (phone.folder / f"mine-512-1024-{taps}.pte").write_text("a program")
    kernels = phone.folder / "theirs.so"
    kernels.write_bytes(aarch64_object([NOP]))
    assert phone.run("submit", str(phone.folder / "mine-{C}-{L}-{K}.pte"), str(kernels), "--quick") == 0
    serial, folder = "-s R5CX10ABCDE", "/data/local/tmp/convscan"
    commands = phone.commands()
    assert f"{serial} shell rm -rf {folder} && mkdir -p {folder} {folder}/lib" in commands
    assert f"{serial} push {phone.folder}/mine-512-1024-4.pte {folder}/submitted-mine-512-1024-4.pte" in commands
    assert f"{serial} push {kernels} {folder}/submitted-theirs.so" in commands
    asked = "./lib/loader --library-path lib ./convscan_judge causal_conv 512 1024 4 --inputs 3 --runs 3 --seconds 120"
    assert any(f"&& {asked} --program ./submitted-mine-512-1024-4.pte --name mine >" in c for c in commands)
    assert any(
        "linear_recurrence 512 64 " in c and "--kernels ./submitted-theirs.so --name theirs" in c for c in commands
    )
    assert commands[-1] == f"{serial} shell rm -rf {folder}"
    report = json.loads((phone.folder / "out/device.json").read_text())
    scores = {(s["op"], s["implementation"]): s for s in report["challenge"]["scores"]}
    assert scores["causal_conv", "theirs"]["cases"] == scores["causal_conv", "convscan"]["cases"] > 2
    assert scores["causal_conv", "mine"]["cases"] == 2
    assert scores["causal_conv", "convscan"]["mean_us"] == 200, "what is submitted is none of ours"
    record = next(r for r in report["records"] if r["implementation"] == "theirs")
    assert not record["ours"]
    assert "theirs" in (phone.folder / "out/device.html").read_text()
    output = capsys.readouterr().out
    ranking = output[output.index("Score") :]
    assert ranking.index("theirs") < ranking.index("convscan") < ranking.index("mine")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("notes.txt", "neither a program of ExecuTorch (.pte) nor a library of kernels (.so)"),
        ("absent.pte", "there is no file"),
        ("x86.so", "is not an ELF file for AArch64. To go on: build it for 64-bit Arm"),
        (None, "To go on: convscan device submit FILE.pte or FILE.so"),
    ],
)
def test_files_that_cannot_be_judged(
    phone: Fake, file: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (phone.folder / "x86.so").write_bytes(b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 62) + bytes(60))
    assert phone.run("submit", *([] if file is None else [str(phone.folder / file)])) == 2
    assert said in capsys.readouterr().err


def test_profiling_waits_for_a_cool_phone_and_cleans_up(
    phone: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "build", lambda folder, toolchain: folder / "convscan_runner")
    (phone.folder / "heat").write_text("2 41.5")
    assert phone.run("profile", "--quick", "--op", "recurrence", "--cool", "0.5") == 0
    commands = phone.commands()
    assert commands.count("-s R5CX10ABCDE shell dumpsys thermalservice") == 3 + 1
    assert commands[-1] == "-s R5CX10ABCDE shell rm -rf /data/local/tmp/convscan"
    assert not (phone.folder / "disk/convscan").exists()
    assert "killed by the system, most likely for its memory" in capsys.readouterr().out


def test_a_hot_phone_is_measured_in_the_end_and_said(phone: Fake) -> None:
    class Hot:
        def thermal(self) -> target.Thermal:
            return target.Thermal(1, 45.0)

    assert grid.wait_until_cool(Hot(), 0.01) == "hot: status 1, 45 °C"  # type: ignore[arg-type]
    assert not target.Thermal(0, 34.5).cool
    assert target.Thermal(0, None).cool


@pytest.mark.parametrize(
    ("devices", "words", "said"),
    [
        ([], [], "no device is connected. To go on: connect a phone by USB"),
        (["A\tunauthorized"], [], "has not authorised this computer. To go on: unlock it, accept the dialog"),
        (["A\toffline"], [], "the device is offline. To go on: reconnect the cable"),
        (["A\tno permissions (user in plugdev group)"], [], "may not open the device. To go on: add the udev rule"),
        (["A\tdevice", "B\tdevice"], [], "several devices are connected. To go on: name one (--serial): A, B"),
        (["A\tdevice"], ["--serial", "B"], "no device B is connected. To go on: see the serial numbers"),
    ],
)
def test_devices_that_cannot_be_used(
    phone: Fake, devices: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.connect(*devices)
    assert phone.run("run", "--quick", *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("beginning", "output", "code", "said"),
    [
        (
            "-s S push",
            "adb: error: failed to copy: remote No space left on device",
            1,
            "has no space left. To go on: free",
        ),
        ("-s S push", "adb: error: failed to copy: remote couldn't create file: Permission denied", 1, "--folder"),
        ("-s S push", "adb: device 'S' not found", 1, "the device has gone. To go on: reconnect"),
        ("-s S shell", "something new", 1, "something new"),
        ("-s S shell getprop ro.product.cpu.abi", "", 0, "runs an unknown system; the runner needs arm64-v8a"),
    ],
)
def test_failures_on_the_way_are_told_apart(
    phone: Fake, beginning: str, output: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    phone.connect("S\tdevice")
    phone.fail(beginning, output, code)
    assert phone.run("push") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo './convscan_runner: not executable: 64-bit ELF file'; exit 126", "it is for another processor"),
        ("kill -ILL $$", "lacks an instruction of the runner"),
        ("echo 'unknown option'; exit 2", "the runner refuses its options"),
    ],
)
def test_runners_that_do_not_run(phone: Fake, script: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    head = FAKE_RUNNER.partition("case")[0]
    (phone.folder / "out/convscan_runner").write_text(f"{head}\n{script}\n")
    assert phone.run("push") == 0
    assert phone.run("run", "--quick") == 2
    assert said in capsys.readouterr().err


def test_without_adb(phone: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["device", "run", "--adb", str(phone.folder / "no-adb")]) == 2
    assert "is not installed. To go on: install Android's platform tools" in capsys.readouterr().err


def test_what_was_not_built_or_run_is_said(phone: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    (phone.folder / "out/convscan_runner").unlink()
    assert phone.run("push") == 2
    assert "To go on: convscan device build" in capsys.readouterr().err
    (phone.folder / "disk/convscan/results.jsonl").write_text('{"half a li')
    assert phone.run("pull") == 2
    assert "nothing has been run since the runner was pushed" in capsys.readouterr().err
    assert phone.run("build", "--toolchain", "absent.cmake") == 2
    assert "there is no toolchain file absent.cmake" in capsys.readouterr().err


# ---- the real runner, built where the cross compiler is, and run where qemu is ----


@pytest.fixture
def runner() -> Path:
    """Of make device-test or of convscan device build, the newer."""
    built = [build.SOURCE / "build" / folder / target.RUNNER for folder in ("aarch64", "device")]
    found = [path for path in built if path.exists()]
    if not found:
        pytest.skip("the runner is not built: make device-test, or convscan device build")
    if counts.emulator() is None:
        pytest.skip("qemu-aarch64 is not installed")
    return max(found, key=lambda path: path.stat().st_mtime)


def aarch64_program(words: list[int]) -> bytes:
    """A static program of these instructions and nothing else."""
    start, size = 0x400000, 120 + 4 * len(words)
    header = struct.pack(
        "<7s9xHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 183, 1, start + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x10000)
    return header + segment + struct.pack(f"<{len(words)}I", *words)


def test_the_runner_is_small_and_starts_at_once(runner: Path, tmp_path: Path) -> None:
    assert runner.stat().st_size <= build.MOST_BYTES
    nothing = tmp_path / "nothing"
    nothing.write_bytes(aarch64_program([0xD2800BA8, 0xD2800040, 0xD4000001]))  # exit(2)
    nothing.chmod(0o755)
    emulator = str(counts.emulator())

    def seconds(program: Path) -> float:  # of the processor's: what is user's and what the system's is sampled coarsely
        def used() -> float:
            of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
            return of_children.ru_utime + of_children.ru_stime

        before = used()
        assert subprocess.run([emulator, str(program)], capture_output=True).returncode == 2  # it says how to use it
        return used() - before

    assert min(seconds(runner) for _ in range(10)) - min(seconds(nothing) for _ in range(10)) <= 0.010


def test_the_runner_under_emulation(runner: Path, tmp_path: Path) -> None:
    emulator = target.Emulator(tmp_path)
    emulator.push([(runner, target.RUNNER)])
    current = grid.Settings(inputs=1, runs=1, threads=2)
    limits = grid.machine(emulator, current)
    case = next(c for c in conv_cases.CASES if c.name == "grid-c512-l256-k32")
    chosen: list[tuple[str, grid.GridCase]] = [("causal_conv", grid.narrow(case))]
    assert grid.run(emulator, chosen, current, lambda *_: None) == []
    found = target.lines(emulator.pull(tmp_path).read_text())
    plugin = build.build_counter(tmp_path)
    if plugin is not None:
        line = next(one for one in found if one.get("implementation") == "direct")
        grid.count(emulator, plugin, [line], lambda *_: None)
        once = line["instructions"]
        products = (
            16 * 256 * 32 / 4
        )  # per output and tap, four in a vector; those with zeros before the signal left out
        assert 0.9 * products <= once["multiply_adds"] <= products
        grid.count(emulator, plugin, [line], lambda *_: None)
        assert line["instructions"] == once
    document, challenge = results.report("qemu", limits, chosen, found, True, {}, [])
    assert {r.implementation: r.reason for r in document.records if r.status == "skipped"} == dict.fromkeys(
        ("direct", "toeplitz", "fft", "fft, spectrum kept", "fft, high precision", "time loop"), results.NOT_TIMED
    )
    assert all(line["within_tolerance"] and line["of_bound"] <= 1 for line in challenge.lines)
    assert results.write(tmp_path, document, challenge)[0].exists()


# ---- counted instructions ----


def test_counts_that_change_are_said() -> None:
    expected = {"a": {"instructions": 2.0, "multiply_adds": 1.0}, "gone": {"instructions": 1.0}}
    found = {"a": {"instructions": 2.039, "multiply_adds": 1.0}, "gone": {"instructions": 1.0}}
    assert counts.differences(expected, found) == []
    found = {"a": {"instructions": 2.05, "multiply_adds": 0.9}, "new": {"instructions": 1.0}}
    assert counts.differences(expected, found) == [
        "new: not in the file of expected counts",
        "gone: expected, and not counted",
        "a: 2.05 instructions an output, expected 2, +2.5 %",
        "a: 0.9 multiply-adds an output, expected 1, -10.0 %",
    ]


def test_expected_counts_are_of_the_shapes_there_are() -> None:
    written = json.loads(Path(__file__).with_name("native").joinpath("instruction_counts.json").read_text())
    assert list(written) == [shape.name for shape in counts.SHAPES]


def test_blocks_of_one_loop_are_one_piece() -> None:
    loop = [counts.Block(0x1000, 1000, (NOP, FMLA)), counts.Block(0x1008, 995, (FMLA,))]
    others = [counts.Block(0x100C, 10, (NOP,)), counts.Block(0x2000, 1000, (NOP,)), counts.Block(0x3000, 1, (NOP,))]
    assert mca.pieces([*others, *loop]) == [
        mca.Piece(1000, (NOP, FMLA, FMLA)),
        mca.Piece(1000, (NOP,)),
        mca.Piece(10, (NOP,)),
    ]


def test_cycles_show_a_loop_that_waits_for_itself() -> None:
    try:
        llvm = mca.tools()
    except mca.DeviceError as error:
        pytest.skip(str(error))
    waiting = [mca.Piece(1000, (0x4E22CC20,))]  # fmla v0.4s, v1.4s, v2.4s: each needs the sum before
    free = [mca.Piece(1000, tuple(0x4E22CC20 + register for register in range(3, 11)))]
    assert 1900 < mca.cycles(waiting, 1000, "cortex-x4", llvm) < 4100
    assert mca.cycles(free, 8000, "cortex-x4", llvm) < 8000 * 0.75


def test_predictions_know_what_binds() -> None:
    slow, fast = ({core: cycles for core in mca.CORES} for cycles in (10.0, 0.01))
    shape = counts.Shape("linear_recurrence", "sequential", "time", 16, 65536)
    phone = report.PHONES[0]
    assert report.predict(shape, slow, phone)[1] == "arithmetic"
    seconds, bound = report.predict(shape, fast, phone)
    assert (seconds, bound) == (512 * 65536 * 12 / 77e9, "memory")
    small = shape._replace(length=64)
    assert report.predict(small, fast, phone)[1] == "arithmetic"  # in the cache
