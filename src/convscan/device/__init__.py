"""The operators on an Arm phone: the static runner built, carried there by adb, run, and its results reported."""
