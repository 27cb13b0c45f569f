"""``make torture``: each part in turn; its figures, and status 1 if any of them failed."""

import importlib
import importlib.util
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "DIP-Recon")]
BUDGET = {"kills": 420.0, "fuzz": 240.0, "load": 420.0}  # seconds, of 20 minutes in all


def main(names: list[str]) -> int:
    if unknown := set(names) - BUDGET.keys():
        sys.exit(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(BUDGET)}")
    failed = 0
    for name, budget in BUDGET.items():
        if (names and name not in names) or not importlib.util.find_spec(f"torture.{name}"):
            continue
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        figures = importlib.import_module(f"torture.{name}").run(budget, say)
        failed += figures["failed"]
        for what, value in figures.items():
            print(f"{what:<40}{value}")
        print(f"{'seconds':<40}{time.monotonic() - began:.0f}", flush=True)
    return int(failed > 0)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
