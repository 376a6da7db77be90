"""The command line: python -m adamfx.experiments list | run NAME | plot NAME | all."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax

import adamfx as fx
from adamfx.experiments import families, lessons, paper, results, runner
from adamfx.experiments.data import DataError
from adamfx.training.interrupts import Interrupts

EXPERIMENTS = {**lessons.EXPERIMENTS, **paper.EXPERIMENTS, **families.EXPERIMENTS}


class _Stopped(Exception):
    """Ctrl-C between two measurements."""


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def composition(text: str) -> Any:
    """A sentence, for argparse."""
    try:
        value = fx.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(value, fx.GradientTransformation):
        raise argparse.ArgumentTypeError(
            f"{text!r} is {type(value).__name__}, not an optimizer; write a call, such as adam(0.001)"
        )
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; ends the program with a message where they are bad."""
    parser = argparse.ArgumentParser(
        prog="python -m adamfx.experiments", description="The Adam paper's experiments and claims."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="what there is")
    run = commands.add_parser("run", help="run some experiments and plot them")
    plot = commands.add_parser("plot", help="plot results again")
    every = commands.add_parser("all", help="run and plot all of them")
    for command in (run, plot):
        command.add_argument(
            "names", nargs="+", choices=EXPERIMENTS, metavar="NAME", help="see list"
        )
    for command in (run, plot, every):
        command.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="default: out, out/quick, and out/own with --optimizer",
        )
    for command in (run, every):
        command.add_argument("--quick", action="store_true", help="smaller models, grids and times")
        command.add_argument(
            "--seeds", type=positive, metavar="N", help="where chance plays a part"
        )
        command.add_argument(
            "--data-dir",
            type=Path,
            metavar="DIR",
            help="MNIST, CIFAR-10 and IMDB in their own formats",
        )
        command.add_argument(
            "--optimizer",
            type=composition,
            action="append",
            metavar="SENTENCE",
            help="instead of the experiment's; may be repeated",
        )
    args = parser.parse_args(argv)
    if getattr(args, "out", "") is None:  # no short trial writes over a long run
        own, quick = getattr(args, "optimizer", None), getattr(args, "quick", False)
        args.out = Path("out") / ("own" if own else "") / ("quick" if quick else "")
    return args


def run(name: str, args: argparse.Namespace, interrupts: Interrupts) -> bool:
    """Runs an experiment and writes its results and pictures; whether it came to its end."""
    from tqdm import tqdm

    experiment = EXPERIMENTS[name]
    compositions = None if args.optimizer is None else {repr(tx): tx for tx in args.optimizer}
    options = runner.Options(args.quick, args.seeds, args.data_dir, compositions)
    data, studies = experiment.studies(options)
    header = {
        "experiment": name,
        "title": experiment.title,
        "data": data,
        "quick": args.quick,
        "versions": {"jax": jax.__version__},
    }
    records: list[dict] = []
    began, whole = time.perf_counter(), True
    total = sum(map(runner.measurements, studies))
    with tqdm(total=total, unit="measurement", desc=name, dynamic_ncols=True) as bar:

        def progress(text: str, n: int) -> None:
            if interrupts.pressed:
                raise _Stopped
            bar.set_postfix_str(text[:40], refresh=False)
            bar.update(n)

        try:
            for study in studies:
                records.extend(runner.run(study, progress))
        except _Stopped:
            whole = False
    if not records:
        return False
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{name}.jsonl"
    results.save(file, header, records)
    print(f"{experiment.title}\n{data}; {time.perf_counter() - began:.0f} s")
    header, records = results.load(file)
    if experiment.column is not None and experiment.column in records[0]:
        print(results.table(records, experiment.column))
    print(f"\nwrote {file}")
    plot(name, args.out)
    return whole


def plot(name: str, out: Path) -> None:
    """Draws what is in the results file, as PNG and SVG."""
    header, records = results.load(out / f"{name}.jsonl")
    figure = EXPERIMENTS[name].draw(header, records)
    for kind in ("png", "svg"):
        path = out / f"{name}.{kind}"
        results.write(path, lambda beside, kind=kind: figure.savefig(beside, format=kind, dpi=120))
        print(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    """Does what the command line says; the exit code."""
    args = parse(argv)
    if args.command == "list":
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<16} {experiment.title}")
        return 0
    names = list(EXPERIMENTS) if args.command == "all" else args.names
    try:
        import matplotlib  # noqa: F401  # is it there? now, not after the run

        if args.command == "plot":
            for name in names:
                plot(name, args.out)
            return 0
        args.out.mkdir(parents=True, exist_ok=True)
        if args.data_dir is not None:  # is all there? now, not after the first experiments
            for name in names:
                EXPERIMENTS[name].studies(runner.Options(args.quick, data_dir=args.data_dir))
        with Interrupts() as interrupts:
            for i, name in enumerate(names):
                if not run(name, args, interrupts):
                    print(f"stopped in {name}, {i} of {len(names)} complete", file=sys.stderr)
                    return 130  # what shells expect of a program stopped by Ctrl-C
    except ImportError as error:
        print(f"{error}; run: pip install 'adamfx[experiments]'", file=sys.stderr)
        return 1
    except (DataError, results.ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
