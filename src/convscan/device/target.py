"""Where the runner runs: a phone behind adb, or this machine under qemu-aarch64. Both do the same few things."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from . import counts
from .errors import DeviceError, explain

FOLDER = "/data/local/tmp/convscan"
RUNNER, RESULTS = "convscan_runner", "results.jsonl"
RUN = (f"./{RUNNER}",)
CASE_SECONDS = 3600.0
# The gate before a case: what the challenge waits for.
COOL_CELSIUS = 34.0


class Done(NamedTuple):
    """A finished program: its exit code, and all that it printed."""

    code: int
    output: str


class Thermal(NamedTuple):
    """Android's thermal status (0: nothing is throttled) and the hottest zone of the processor in degrees Celsius."""

    status: int
    celsius: float | None

    @property
    def cool(self) -> bool:
        """Whether a measurement may begin."""
        return self.status == 0 and (self.celsius is None or self.celsius < COOL_CELSIUS)


class Target(Protocol):
    """A machine that runs the runner."""

    @property
    def emulated(self) -> bool:
        """Whether times mean nothing."""
        ...

    def describe(self) -> str:
        """Name and processor."""
        ...

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Puts files there, under these names, into an empty folder; all may be run."""
        ...

    def run(self, arguments: Sequence[str], command: Sequence[str] = RUN) -> Done:
        """Runs the runner, or another command, in that folder; what it prints is kept there as well."""
        ...

    def pull(self, folder: Path) -> Path:
        """Fetches the results of all runs since the push."""
        ...

    def thermal(self) -> Thermal | None:
        """How hot it is; None where that cannot be known."""
        ...

    def clean(self) -> None:
        """Removes everything that was put there."""
        ...


def _call(command: Sequence[str], seconds: float = 60.0, folder: Path | None = None) -> Done:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, cwd=folder)
    except FileNotFoundError:
        raise DeviceError(
            f"{command[0]} is not installed. To go on: install Android's platform tools (Debian: apt install adb), "
            "name the program (--adb PATH), or run without a phone (--qemu)"
        ) from None
    except PermissionError:
        raise DeviceError(f"{command[0]} is no program that may be run. To go on: name another (--adb PATH)") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{shlex.join(command[:4])} … did not answer within {seconds:.0f} s. To go on: reconnect the device, or: "
            "adb kill-server"
        ) from None
    return Done(done.returncode, done.stdout.decode(errors="replace"))


class Phone:
    """A device behind adb, in a folder of its own there."""

    emulated = False

    def __init__(self, serial: str | None = None, adb: str = "adb", folder: str = FOLDER) -> None:
        self.adb, self.folder = adb, folder
        self.serial = self._choose(serial)
        abi = self._shell("getprop ro.product.cpu.abi").output.strip()
        if abi != "arm64-v8a":
            raise DeviceError(
                f"the device {self.serial} runs {abi or 'an unknown system'}; the runner needs arm64-v8a. "
                "To go on: name a 64-bit Arm device (--serial)"
            )

    def _choose(self, serial: str | None) -> str:
        done = _call([self.adb, "devices"])
        if done.code != 0:
            raise explain("adb devices", done.output)
        listed: list[tuple[str, str]] = re.findall(r"^(\S+)\t(.+)$", done.output, re.MULTILINE)
        if serial is not None:
            listed = [one for one in listed if one[0] == serial]
            if not listed:
                raise DeviceError(
                    f"no device {serial} is connected. To go on: see the serial numbers with: adb devices"
                )
        if not listed:
            raise DeviceError(
                "no device is connected. To go on: connect a phone by USB, switch on developer options and USB "
                "debugging on it, and accept its dialog; or run without one (--qemu)"
            )
        ready = [name for name, state in listed if state.strip() == "device"]
        if len(ready) > 1:
            raise DeviceError(f"several devices are connected. To go on: name one (--serial): {', '.join(ready)}")
        if not ready:
            name, state = listed[0]
            raise explain(f"device {name}", f"device {state}")
        return ready[0]

    def _adb(self, action: str, *words: str, seconds: float = 60.0) -> str:
        done = _call([self.adb, "-s", self.serial, *words], seconds)
        if done.code != 0:
            raise explain(action, done.output)
        return done.output

    def _shell(self, command: str, seconds: float = 60.0) -> Done:
        """A command of the device's shell, with its own exit code."""
        return _call([self.adb, "-s", self.serial, "shell", command], seconds)

    def describe(self) -> str:
        """Model, system on a chip, Android's version."""
        names = ("ro.product.model", "ro.soc.model", "ro.build.version.release")
        model, soc, version = (self._shell(f"getprop {name}").output.strip() for name in names)
        return f"{model or self.serial} ({soc or 'unknown processor'}), Android {version or '?'}"

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Into an empty folder of its own."""
        folder = shlex.quote(self.folder)
        inner = sorted({str(Path(self.folder, name).parent) for _, name in files})
        done = self._shell(f"rm -rf {folder} && mkdir -p {shlex.join(inner)}")
        if done.code != 0:
            raise explain(f"making {self.folder}", done.output)
        for path, name in files:
            self._adb(f"copying {path.name}", "push", str(path), f"{self.folder}/{name}", seconds=600.0)
        done = self._shell(f"chmod 755 {shlex.join(f'{self.folder}/{name}' for _, name in files)}")
        if done.code != 0:
            raise explain("making the files executable", done.output)

    def run(self, arguments: Sequence[str], command: Sequence[str] = RUN) -> Done:
        """The lines go through the device's memory card, so that a cable that comes loose costs one case."""
        whole = shlex.join([*command, *arguments])
        done = self._shell(
            f"cd {shlex.quote(self.folder)} && {whole} > case.jsonl; code=$?; cat case.jsonl; "
            f"cat case.jsonl >> {RESULTS}; exit $code",
            CASE_SECONDS,
        )
        if done.code in (126, 127) or (done.code == 1 and not done.output.lstrip().startswith("{")):
            raise explain("running the runner", done.output)
        return done

    def pull(self, folder: Path) -> Path:
        """The file of all lines."""
        path = folder / RESULTS
        self._adb("fetching the results", "pull", f"{self.folder}/{RESULTS}", str(path), seconds=120.0)
        return path

    def thermal(self) -> Thermal | None:
        """From Android's thermal service, whose temperatures of type 0 are the processor's."""
        text = self._shell("dumpsys thermalservice").output
        status = re.search(r"^Thermal Status: (\d+)", text, re.MULTILINE)
        if status is None:
            return None
        current = text.partition("Current temperatures from HAL")[2].partition("Current cooling")[0]
        zones = [float(value) for value in re.findall(r"mValue=([\d.]+), mType=0\b", current)]
        return Thermal(int(status[1]), max(zones, default=None))

    def clean(self) -> None:
        """The folder and all in it."""
        self._shell(f"rm -rf {shlex.quote(self.folder)}")


class Emulator:
    """The runner under qemu-aarch64 on this machine. Times mean nothing; answers and workspace are the device's."""

    emulated = True

    def __init__(self, folder: Path, cpu: str = counts.CPU) -> None:
        found = counts.emulator()
        if found is None:
            raise DeviceError("qemu-aarch64 is not installed. To go on: install it (Debian: apt install qemu-user)")
        self.command = [found, "-cpu", cpu]
        self.cpu, self.folder = cpu, folder
        self._names: list[str] = []

    def describe(self) -> str:
        """The emulator and the processor that it is."""
        version = re.search(r"version (\S+)", _call([self.command[0], "--version"]).output)
        return f"qemu {version[1] if version else ''} -cpu {self.cpu}, emulated"

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copies, beside the results."""
        self._names = [name for _, name in files]
        for path, name in files:
            to = self.folder / name
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.resolve() != to.resolve():
                shutil.copy(path, to)
        (self.folder / RESULTS).unlink(missing_ok=True)

    def run(self, arguments: Sequence[str], command: Sequence[str] = RUN) -> Done:
        """The same lines as a device's."""
        done = _call([*self.command, *command, *arguments], CASE_SECONDS, self.folder)
        with (self.folder / RESULTS).open("a", encoding="utf-8") as results:
            results.write(done.output)
        return done

    def pull(self, folder: Path) -> Path:
        """The file of all lines."""
        path = folder / RESULTS
        if path.resolve() != (self.folder / RESULTS).resolve():
            shutil.copy(self.folder / RESULTS, path)
        return path

    def thermal(self) -> Thermal | None:
        """An emulated processor stays cool."""
        return None

    def count(self, plugin: Path, arguments: Sequence[str], command: Sequence[str] = RUN) -> dict[str, int] | None:
        """Instructions of one call, by kind; None where this qemu takes no plugins."""
        try:
            return counts.count(self.command, plugin, command, arguments, working_folder=self.folder).kinds
        except counts.CountError:
            return None

    def clean(self) -> None:
        """The copies."""
        for name in self._names:
            (self.folder / name).unlink(missing_ok=True)


def lines(text: str) -> list[dict[str, Any]]:
    """The lines of JSON in what a runner printed; a line that was cut off is left out."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found
