"""What goes wrong on the way to a device and back, told apart, each with what to do about it."""

from __future__ import annotations

import re


class DeviceError(Exception):
    """A request that cannot be carried out; the message says why and what to do."""


# What adb prints, and what it means. The first that matches counts.
_MEANINGS = (
    (r"no space left|not enough space", "the device has no space left", "free some, or name another folder (--folder)"),
    (
        r"device unauthorized|unauthorized",
        "the device has not authorised this computer",
        "unlock it, accept the dialog that asks for USB debugging, and try again",
    ),
    (
        r"no permissions|insufficient permissions",
        "this computer's user may not open the device",
        "add the udev rule for it (Debian: package android-sdk-platform-tools-common), reconnect",
    ),
    (r"device offline", "the device is offline", "reconnect the cable, or: adb reconnect"),
    (r"no devices/emulators found|no devices found", "no device is connected", "see the note on connecting one"),
    (r"device '?.*'? not found|closed$", "the device has gone", "reconnect the cable and run the command again"),
    (
        r"not executable|exec format error|bad elf|cannot execute binary",
        "the device refuses the program: it is for another processor",
        "a 64-bit Arm system (arm64-v8a) is needed",
    ),
    (
        r"permission denied|operation not permitted|read-only file system",
        "the device does not let programs run or be written there",
        "name a folder that allows it (--folder), such as /data/local/tmp",
    ),
)


def explain(action: str, output: str) -> DeviceError:
    """The error for what adb or the device's shell said."""
    text = output.strip()
    for pattern, what, remedy in _MEANINGS:
        if re.search(pattern, text, re.IGNORECASE | re.MULTILINE):
            return DeviceError(f"{action}: {what}. To go on: {remedy}. It said: {text.splitlines()[-1]}")
    return DeviceError(f"{action} failed: {text or 'nothing was said'}")
