#!/usr/bin/env bash
# On a machine with a GPU, within ten minutes: installs, runs the tests of the kernels, interpreted and on the device,
# and times them. Writes benchmarks/results/<device>/gpu.json.
#   PYTHON=python3 benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'PyTorch finds no GPU'"
"$PYTHON" -c "import convscan" || "$PYTHON" -m pip install --quiet --no-build-isolation '.[test]'
device=$("$PYTHON" -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))")
mkdir -p "benchmarks/results/$device"
timeout 240 "$PYTHON" -m pytest -q -x tests/gpu/on_device.py
timeout 340 "$PYTHON" benchmarks/gpu.py --seconds 280 --json "benchmarks/results/$device/gpu.json"
