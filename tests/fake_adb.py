"""A stand-in for adb: speaks its command line, keeps the device's files in a folder, writes down what it was asked.

The folder FAKE_ADB holds ``devices`` (what ``adb devices`` lists), ``log`` (a line of JSON a call), ``failures``
(JSON: the beginning of a command line, the output and the exit code it then gives), ``heat`` (thermal status and
degrees, of the first time that somebody asks), and ``disk``, the device's root. Shell commands run in a real shell,
with the device's paths led to ``disk``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROPERTIES = {
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.product.model": "SM-S921B",
    "ro.soc.model": "s5e9945",
    "ro.build.version.release": "14",
}
THERMAL = """IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
	Temperature{{mValue=99.0, mType=0, mName=CPU0, mStatus=0}}
Current temperatures from HAL:
	Temperature{{mValue={celsius}, mType=0, mName=BIG, mStatus=0}}
	Temperature{{mValue=29.5, mType=0, mName=LITTLE, mStatus=0}}
	Temperature{{mValue=41.0, mType=2, mName=BATTERY, mStatus=0}}
Current cooling devices from HAL:
"""


def shell(root: Path, command: str) -> int:
    """What the device's shell does."""
    if command.startswith("getprop "):
        print(PROPERTIES[command.split()[1]])
        return 0
    if command == "dumpsys thermalservice":
        heat = root / "heat"
        status, celsius = heat.read_text().split() if heat.exists() else ("0", "31.2")
        heat.unlink(missing_ok=True)  # it cools down
        print(THERMAL.format(status=status, celsius=celsius))
        return 0
    return subprocess.run(["sh", "-c", command.replace("/data/local/tmp", str(root / "disk"))]).returncode


def main(words: list[str]) -> int:
    root = Path(os.environ["FAKE_ADB"])
    with (root / "log").open("a") as log:
        log.write(json.dumps(words) + "\n")
    failures = root / "failures"
    for beginning, output, code in json.loads(failures.read_text()) if failures.exists() else []:
        if words[: len(beginning)] == beginning:
            print(output, file=sys.stderr)
            return int(code)
    if words == ["devices"]:
        print("List of devices attached\n" + (root / "devices").read_text() + "\n")
        return 0
    assert words[0] == "-s", words
    action, *rest = words[2:]
    disk = str(root / "disk")
    if action == "push":
        shutil.copy(rest[0], rest[1].replace("/data/local/tmp", disk))
    elif action == "pull":
        shutil.copy(rest[0].replace("/data/local/tmp", disk), rest[1])
    else:
        sys.stdout.flush()
        return shell(root, rest[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
