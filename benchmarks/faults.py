"""The fault campaign: kills, closed windows and damaged files, many of each, counted.

    python benchmarks/faults.py [--kills 100] [--closes 50] [--files 2000]

Needs a display, or Xvfb for a virtual one. Takes a quarter to half a minute for every kill and every closed window.
The same tests run a few times each with ``pytest tests/faults``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).parents[1] / "tests" / "faults"


def main() -> int:
    """Run the tests with these numbers and count what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("kills", 100), ("closes", 50), ("files", 2000)):
        parser.add_argument(f"--{name}", type=int, default=number)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = os.environ | {f"CELLBRUSH_{k.upper()}": str(v) for k, v in vars(arguments).items()}
        options = ["-q", "-p", "no:cacheprovider", "--timeout=0", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, str(FOLDER)]
        code = subprocess.run(command, env=environment, check=False).returncode
        print_counts(report)
    return code


def print_counts(report: Path) -> None:
    """One line for each test: how often, how often it held, how long an exit took."""
    held: dict[str, int] = defaultdict(int)
    tried: dict[str, int] = defaultdict(int)
    seconds: dict[str, list[float]] = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "").partition("[")[0]
        tried[name] += 1
        held[name] += case.find("failure") is None and case.find("error") is None
        seconds[name] += [float(note.get("value", "nan")) for note in case.iter("property")
                          if note.get("name") == "exit_seconds"]
    for name in tried:
        times = sorted(seconds[name])
        longest = f", exits: median {times[len(times) // 2]:.1f} s, longest {times[-1]:.1f} s" if times else ""
        print(f"{held[name]:5} of {tried[name]:5}  {name}{longest}")


if __name__ == "__main__":
    sys.exit(main())
