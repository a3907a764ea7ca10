"""How long ``maskloom --help`` takes, as a whole process, median of ten."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time


def main() -> None:
    command = [sys.executable, "-m", "maskloom", "--help"]
    subprocess.run(command, check=True, capture_output=True)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"benchmark": "startup", "seconds": round(statistics.median(seconds), 3)}))


if __name__ == "__main__":
    main()
