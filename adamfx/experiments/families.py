"""One optimizer of each family, each at its best rate, on digits and on a small language model."""

from __future__ import annotations

import functools

import adamfx as fx
from adamfx.experiments import data as datasets
from adamfx.experiments import figures
from adamfx.experiments.paper import classification, epoch
from adamfx.experiments.problems.language import language_model
from adamfx.experiments.problems.network import network
from adamfx.experiments.runner import Experiment, Options, Study

FAMILIES = {
    "Momentum": fx.sgd(1.0, momentum=0.9),
    "AdamW": fx.adamw(1.0),
    "Lion": fx.lion(1.0),
    "AdEMAMix": fx.ademamix(1.0),
    "Adafactor": fx.adafactor(1.0, min_dim_size_to_factor=2, multiply_by_parameter_scale=False),
    "Muon": fx.muon(1.0, consistent_rms=0.2),
    "Shampoo": fx.shampoo(1.0),
    "SOAP": fx.soap(1.0),
    "Kron": fx.kron(1.0),
    "Schedule-free": fx.schedule_free_adamw(1.0),
    "Prodigy": fx.prodigy(1.0),
    "DoG": fx.dog(1.0),
}

QUICK = ("AdamW", "Muon")  # the others take long to compile


def families(options: Options) -> tuple[str, list[Study]]:
    """Every family on both problems; the last two set their own rate, and are swept like the rest."""
    digits = datasets.digits()
    text, letters = datasets.letters(30_000 if options.quick else 400_000)
    rates = [0.01] if options.quick else [float(f"{10 ** (i / 2):.2g}") for i in range(-8, 2)]
    axes, seeds = {"learning_rate": rates}, 1 if options.quick else 3
    chosen = {n: tx for n, tx in FAMILIES.items() if n in QUICK} if options.quick else FAMILIES
    n = epoch(digits)
    more = {"axes": axes, "seeds": seeds, "together": 30, "evaluated": True}
    steps = n * 2 if options.quick else n * 20
    tests = classification(network((64, 64, 10)), digits)
    studies = [options.study("digits", tests, chosen, steps, every=n, **more)]
    every = 20 if options.quick else 50
    model = language_model(letters)
    length = every if options.quick else 500
    studies.append(options.study("letters", model, chosen, length, every=every, **more))
    name = f"{digits.name}, network 64-64-10; {text}, one layer of width 32"
    return name, studies


EXPERIMENTS = {
    "families": Experiment(
        "One optimizer of each family at its best rate of ten: what small problems can show",
        families,
        functools.partial(figures.learning_curves, column="train_loss"),
        "train_loss",
    ),
}
