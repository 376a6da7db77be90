"""The command line: python -m adamfx.experiments list | run NAME | plot NAME | all."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import jax

import adamfx as fx
from adamfx.checks import shortened
from adamfx.experiments import ctrl_c, families, lessons, paper, results, runner
from adamfx.experiments.data import DataError

EXPERIMENTS = {**lessons.EXPERIMENTS, **paper.EXPERIMENTS, **families.EXPERIMENTS}


MOST_SEEDS = 1000
NEEDS = {"run": ("matplotlib", "sklearn", "tqdm"), "plot": ("matplotlib",), "list": ()}
FAULTS = """\
exit codes:
  0    done
  1    data or results that are missing, damaged or too large; a folder that cannot be written; a full
       disk, too little memory; a package that is not installed. An optimizer that diverges is a result
  2    wrong usage: arguments, sentences, optimizers that do not fit an experiment
  130  Ctrl-C; what is complete is kept, and the same command with --resume continues. The second
       Ctrl-C ends the program at once

A fault is one line on stderr: what came, what is allowed, what to do. With ADAMFX_TRACEBACK=1 in the
environment it is preceded by the place in the code. Any other traceback is a bug: please report it.
"""


class MisfitError(ValueError):
    """A sentence of the command line does not fit an experiment."""


class MissingError(Exception):
    """Packages are not installed."""


class StoppedError(Exception):
    """Ctrl-C: what is kept, and where."""


# What is expected to go wrong, and the exit code; any other exception is a bug, with its traceback.
CODES: dict[type[BaseException], int] = {
    MisfitError: 2,
    MissingError: 1,
    DataError: 1,
    results.ResultsError: 1,
    OSError: 1,
    MemoryError: 1,
    jax.errors.JaxRuntimeError: 1,
    StoppedError: ctrl_c.STOPPED,
    KeyboardInterrupt: ctrl_c.STOPPED,
}


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)}; see {self.prog} --help\n")


def one_line(text: str) -> str:
    """The text with nothing in it that moves a terminal's cursor, and not too long to be read."""
    text = " ".join(text.split())
    return shortened("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), 1500)


def said(error: BaseException) -> str:
    """What an expected error tells the user."""
    match error:
        case KeyboardInterrupt():
            return "stopped; files that were written are whole"
        case MissingError() | MisfitError() | DataError() | results.ResultsError() | StoppedError():
            return str(error)
        case OSError():
            where = error.filename or "the output"
            return f"{where}: {error.strerror}; see where it goes, what was saved is whole"
        case _:
            return f"{error or 'out of memory'}; --quick and fewer --seeds take less memory"


def folder(text: str) -> Path:
    """A folder's name, for argparse."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must name a folder, got {text!r}")
    return Path(text)


def seeds(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if not 1 <= number <= MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {MOST_SEEDS:,}, got {shortened(text)!r}"
        )
    return number


def composition(text: str) -> Any:
    """A sentence, for argparse."""
    try:
        value = fx.read(text)
    except fx.SentenceError as error:
        trace()
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(value, fx.GradientTransformation):
        raise argparse.ArgumentTypeError(
            f"{shortened(text)!r} is {type(value).__name__}, not an optimizer; write a call, such as "
            "adam(0.001)"
        )
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; ends the program with a message where they are bad."""
    parser = Parser(
        prog="python -m adamfx.experiments",
        description="The Adam paper's experiments and claims.",
        epilog=FAULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            type=folder,
            metavar="DIR",
            help="default: out, out/quick, and out/own with --optimizer",
        )
    for command in (run, every):
        command.add_argument("--quick", action="store_true", help="smaller models, grids and times")
        command.add_argument("--seeds", type=seeds, metavar="N", help="where chance plays a part")
        command.add_argument(
            "--data-dir",
            type=folder,
            metavar="DIR",
            help="MNIST, CIFAR-10 and IMDB in their own formats",
        )
        command.add_argument(
            "--resume", action="store_true", help="keep what the same command has computed before"
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


def options(args: argparse.Namespace) -> runner.Options:
    """What the experiments may know of the command line."""
    own = None if args.optimizer is None else {repr(tx): tx for tx in args.optimizer}
    return runner.Options(args.quick, args.seeds, args.data_dir, own)


def check(name: str, args: argparse.Namespace) -> None:
    """Sees that the data is there and that the sentences fit, before the first experiment runs."""
    if args.data_dir is None and args.optimizer is None:
        return
    at = "the optimizer"
    try:
        for study in EXPERIMENTS[name].studies(options(args))[1]:
            for one in runner.apart(study) if args.optimizer else ():
                at = f"{shortened(next(iter(one.compositions)))} ({study.part})"
                runner.check(one)
    except DataError:
        raise
    except Exception as error:
        if args.optimizer is None:
            raise
        raise MisfitError(  # whatever it is, it comes from a sentence
            f"{at} does not fit the experiment {name}: {shortened(str(error), 600)}"
        ) from error


def run(name: str, args: argparse.Namespace, place: str) -> None:
    """Runs an experiment and writes its results, after every composition, and its pictures."""
    from tqdm import tqdm

    file, experiment = args.out / f"{name}.jsonl", EXPERIMENTS[name]
    began, records, done, total = time.perf_counter(), [], 0, 0
    try:
        data, studies = experiment.studies(options(args))
        header = {
            "experiment": name,
            "title": experiment.title,
            "data": data,
            "quick": args.quick,
            "versions": {"jax": jax.__version__},
        }
        kept = results.kept(file, header) if args.resume else []
        ones = [one for study in studies for one in runner.apart(study)]
        total = len(ones)
        with tqdm(
            total=sum(map(runner.measurements, ones)),
            unit="measurement",
            desc=name,
            dynamic_ncols=True,
            disable=sys.stderr is None,
        ) as bar:

            def progress(text: str, n: int) -> None:
                if ctrl_c.swallowed.is_set():
                    raise KeyboardInterrupt
                bar.set_postfix_str(text[:40], refresh=False)
                bar.update(n)

            for one in ones:
                found = runner.found(one, kept)
                if found is None:
                    found = list(runner.run(one, progress))
                    results.save(file, header, records + found)
                else:
                    progress("kept", runner.measurements(one))
                records += found
                done += 1
        if kept:  # more may have been in the file
            results.save(file, header, records)
        print(f"{experiment.title}\n{data}; {time.perf_counter() - began:.0f} s")
        _, records = results.load(file)
        if experiment.column is not None and experiment.column in records[0]:
            print(results.table(records, experiment.column))
        print(f"\nwrote {file}")
        draw(name, args.out)
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped in {name}, {place}: {done} of {total or 'its'} compositions are kept in {args.out}; "
            "the same command with --resume continues"
        ) from None


def draw(name: str, out: Path) -> None:
    """Draws what is in the results file, as PNG and SVG."""
    header, records = results.load(out / f"{name}.jsonl")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of letters in sentences
        figure = EXPERIMENTS[name].draw(header, records)
        for kind in ("png", "svg"):
            path = out / f"{name}.{kind}"
            results.write(path, lambda to, kind=kind: figure.savefig(to, format=kind, dpi=120))
            print(f"wrote {path}")


def plot(name: str, out: Path) -> None:
    """Draws results that may come from elsewhere: what a picture lacks is a fault of the file."""
    path = out / f"{name}.jsonl"
    holds = results.load(path)[0]["experiment"]
    if holds != name:
        raise results.ResultsError(
            f"{path}: results of {shortened(holds, 60)!r}, expected those of {name}; run {name}"
        )
    try:
        draw(name, out)
    except results.ResultsError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise results.ResultsError(
            f"{path}: cannot be drawn ({type(error).__name__}: {error}), expected what {name} measures; "
            "run the experiment again"
        ) from error


def command(args: argparse.Namespace) -> None:
    """Does what the command line says."""
    needs = NEEDS.get(args.command, NEEDS["run"])
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(
            f"{' and '.join(missing)} not installed; run: pip install 'adamfx[experiments]'"
        )
    if args.command == "list":
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<16} {experiment.title}")
        return
    names = list(EXPERIMENTS if args.command == "all" else dict.fromkeys(args.names))
    if args.command == "plot":
        for name in names:
            plot(name, args.out)
        return
    results.prepare(args.out)
    for name in names:
        check(name, args)
    for i, name in enumerate(names, 1):
        run(name, args, f"experiment {i} of {len(names)}")


def trace() -> None:
    """Shows where the exception in hand comes from, if that is asked for."""
    if os.environ.get("ADAMFX_TRACEBACK"):
        traceback.print_exc()


def main(argv: list[str] | None = None) -> int:
    """Does what the command line says; the exit code. An expected error is one line."""
    try:
        try:
            command(parse(argv))
        finally:
            print(end="", flush=True)  # an output that is closed or full says so now
    except tuple(CODES) as error:
        trace()
        with contextlib.suppress(OSError):
            print(f"error: {one_line(said(error))}", file=sys.stderr)
        try:
            print(end="", flush=True)
        except OSError:  # at its end Python would try again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return next(code for kind, code in CODES.items() if isinstance(error, kind))
    return 0


if __name__ == "__main__":
    ctrl_c.running()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an output may know fewer letters
    code = main()
    if (
        code == ctrl_c.STOPPED
    ):  # XLA may still compute, and Python's end is not safe under its threads
        os._exit(code)
    sys.exit(code)
