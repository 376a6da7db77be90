"""python -m benchmarks: a table on the terminal, bench.json and a picture in out/bench."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from benchmarks import programs, report
from benchmarks.suites import SUITES, Plan
from benchmarks.timing import Worker, device_name


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs, no more"
    )
    parser.add_argument("--out", type=Path, help="default: out/bench, or out/bench-quick")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES), metavar="SUITE")
    options = parser.parse_args()
    out = options.out or Path("out/bench-quick" if options.quick else "out/bench")
    with Worker() as worker:
        device = worker.ask(device_name)
    plan, rows = Plan(options.quick), []
    names = list(options.only)
    if not device.startswith("cpu") and "single_pass" in names:
        names.remove("single_pass")
        print("single_pass is left out: on an accelerator XLA merges loops without being asked")
    if programs.library() is None and "programs" in names:
        names = [n for n in names if n not in ("programs", "sharing")]
        print(
            "programs and sharing are left out: they need libtpu, 484 MB, which `make tpu` puts into .tpu"
        )
    bar = tqdm(names, desc="benchmarks", disable=None, file=sys.stderr)
    try:
        for name in bar:
            for row in SUITES[name](plan):
                if options.quick:
                    row = row._replace(bar=None, met=None)
                begins = not rows or (row.suite, row.what) != (rows[-1].suite, rows[-1].what)
                rows.append(row)
                if not row.column:
                    bar.write(f"{row.suite}: {report.line(row).strip()}", file=sys.stderr)
                elif begins:
                    bar.write(f"{row.suite}: {row.what}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    finally:  # what there is, also after Ctrl-C or an error
        bar.close()
        if rows:
            report.write(out, device, options.quick, rows)
            print(
                f"{device}: {report.table(rows, options.quick)}\n\n{out}/bench.json, bench.png, bench.svg"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
