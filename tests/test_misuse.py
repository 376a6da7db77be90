"""Wrong arguments of everything public: each is refused, in words of this library that name the argument.

None may pass in silence, and none may be answered by a message from inside JAX, NumPy or Python. What is left
out is left out with its reason; what is right though it looks wrong is at the end.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from misuses import (
    COUNT,
    ESTIMATOR,
    FLAG,
    FUNCTION,
    INF,
    NAN,
    OBJECTS,
    STRINGS,
    TX,
    Nothing,
    P,
    but,
    construction,
    function,
    generator,
    used,
    verdict,
)

import adamfx as fx

# JAX says so of the generators among the wrong trees.
pytestmark = pytest.mark.filterwarnings("ignore:Python iterable type:DeprecationWarning")


def groups(cases):
    """The cases by function and argument."""
    found = {}
    for name, argument, what, call in cases:
        found.setdefault((name, argument), []).append((what, call))
    return found


def test_construction():
    wrong = [
        (name, argument, what, said)
        for name, argument, what, call in construction()
        if (said := verdict(functools.partial(used, call), name, argument))
    ]
    assert not wrong


def test_there_are_many_cases():
    assert sum(1 for _ in construction()) > 17_000
    assert sum(1 for _ in itertools.chain(uses(), training())) > 2_000


# ---- functions and methods -----------------------------------------------------------------------

ADAM = fx.adam(0.1)
STATE = ADAM.init(P)
OTHER = fx.sgd(0.1).init(P)
LIVE = fx.live(ADAM).init(P)
AVERAGE = fx.average_params(ADAM).init(P)

NO_TREE = {
    "string": "a wrong string", "bytes": b"bytes", "object": Nothing(), "class": Nothing, "lambda": function,
    "generator": generator(), "module": np, "object array": OBJECTS, "strings": STRINGS, "ellipsis": ...,
    "set": {1.5}, "of strings": {"w": "a", "b": "b"}, "of objects": {"w": OBJECTS, "b": OBJECTS},
}  # fmt: skip
OTHER_TREES = {
    "one leaf less": {"w": jnp.ones((3, 4))},
    "one leaf more": {**P, "c": jnp.ones(2)},
    "a list": [jnp.ones((3, 4)), jnp.ones(4)],
    "an array": jnp.ones(4),
    "wrong shape": {"w": jnp.ones((4, 3)), "b": jnp.ones(4)},
}
NO_STATE = NO_TREE | {
    "of another": OTHER, "empty": {}, "none": None, "list": [1, 2], "one": 1, "params": P,
    "without count": {k: x for k, x in STATE.items() if k != "count"},
    "of other params": ADAM.init({"w": jnp.ones((4, 3)), "b": jnp.ones(4)}),
    "of fewer params": ADAM.init({"w": jnp.ones((3, 4))}),
}  # fmt: skip
WORDS = but("strings", one=1)  # an array of strings is a sequence of strings
NO_PATH = but("string", "empty string", "bytes", none=None, half=1.5)


def one_loss(p):
    return jnp.sum(p["w"] ** 2) + jnp.sum(p["b"] ** 2)


def of(f, *right, **wrong):
    """(name, argument, what, call): of a right call of `f` each argument replaced by what is wrong for it."""
    given = dict(zip(inspect.signature(f).parameters, right, strict=False))
    for n, values in wrong.items():
        for what, x in values.items():
            yield f.__name__, n, what, functools.partial(f, **{**given, n: x})


def many(name, argument, wrong, call):
    """The same for arguments that have no place of their own: `call(x)`."""
    for what, x in wrong.items():
        yield name, argument, what, functools.partial(call, x)


def uses():
    yield from of(
        fx.apply_updates, P, P, params=NO_TREE | OTHER_TREES, updates=NO_TREE | OTHER_TREES
    )
    yield from of(
        fx.incremental_update, P, P, 0.5,
        new_tensors=NO_TREE | OTHER_TREES, old_tensors=NO_TREE | OTHER_TREES,
        step_size=but("lambda", none=None, true=True, nan=NAN, inf=INF, more=1.5, less=-1, vector=np.ones(2)),
    )  # fmt: skip
    yield from of(
        fx.periodic_update, P, P, 0, 2, new_tensors=NO_TREE | OTHER_TREES, old_tensors=NO_TREE | OTHER_TREES,
        steps=COUNT, update_period=COUNT | {"zero": 0, "less": -1},
    )  # fmt: skip
    yield from of(fx.global_norm, P, tree=NO_TREE)
    yield from of(
        fx.get, STATE, "mu", state=NO_TREE | {"one": 1, "array": np.ones(2)},
        name=but("string", "empty string"),
    )  # fmt: skip
    yield from many("set", "state", NO_TREE | {"one": 1}, lambda x: fx.set(x, count=0))
    wrong = but("lambda", none=None, vector=np.ones(2), half=1.5, nan=NAN)
    yield from many("set", "count", wrong, lambda x: fx.set(STATE, count=x))
    yield from many("set", "mu", NO_TREE | OTHER_TREES, lambda x: fx.set(STATE, mu=x))
    wrong = but(none=None, vector=np.ones(2))
    yield from many(
        "set_hyperparams",
        "learning_rate",
        wrong,
        lambda x: fx.set_hyperparams(LIVE, learning_rate=x),
    )
    yield from of(
        fx.averaged_params,
        AVERAGE,
        P,
        state=NO_TREE | {"without": STATE},
        params=NO_TREE | OTHER_TREES,
    )
    yield from of(fx.read, "adam(0.1)", text=but("string", "empty string"), names=but("dict"))
    yield from of(fx.page, fx.adam, function=but(none=None, word=ADAM, block=fx.scale))
    yield from of(fx.configure, single_pass=FLAG)
    yield from of(
        fx.along,
        jnp.ones((2, 3)),
        (0, 1),
        x=NO_TREE,
        axes=but(none=None, halves=(0.5, 1), one=1, three=(0, 1, 2)),
    )
    yield from of(fx.value_and_grad_from_state, one_loss, value_fn=FUNCTION)
    yield from of(fx.make_step, one_loss, loss_fn=FUNCTION, has_aux=FLAG, donate=FLAG)
    yield from of(
        fx.per_example_grads,
        one_loss,
        loss=FUNCTION,
        microbatch_size={k: x for k, x in COUNT.items() if x is not None},
    )
    yield from of(
        fx.hutchinson,
        one_loss,
        P,
        jax.random.key(0),
        loss=FUNCTION,
        params=NO_TREE,
        key=but(none=None, one=1),
    )
    yield from of(
        fx.gauss_newton_bartlett, one_loss, 4, sampled_loss=FUNCTION, batch_size=COUNT | {"zero": 0}
    )
    yield from of(fx.per_mesh, ADAM, transformation=TX)
    yield from of(fx.abstract_state, ADAM, P, tx=TX, params=NO_TREE)
    yield from of(
        fx.History,
        columns=but(
            "dict",
            "tuple",
            "list",
            "empty string",
            "generator",
            strings={"a": STRINGS},
            objects={"a": OBJECTS},
            ragged={"a": [1.0], "b": [1.0, 2.0]},
            one=1,
            matrix={"a": np.ones((2, 2))},
        ),
    )
    yield from of(
        fx.no_improvement, column=but("string", "empty string"), patience=COUNT | {"zero": 0},
        min_delta=but(none=None, true=True, nan=NAN, inf=INF, less=-1), mode=but(none=None, one=1),
    )  # fmt: skip

    # what is many
    yield from many("chain", "transformations", TX, lambda x: fx.chain(ADAM, x))
    yield from many(
        "path_matches", "patterns", but("string", "empty string", one=1), fx.path_matches
    )
    yield from many("has_dtype", "dtypes", but("int class", none=None, one=1), fx.has_dtype)
    for f in (fx.all_of, fx.any_of):
        yield from many(f.__name__, "predicates", but(one=1, true=True, none=None), f)
    yield from many("stored", "mu", ESTIMATOR | {"none": None}, lambda x: fx.stored(ADAM, mu=x))
    yield from many(
        "partition",
        "transforms",
        but(none=None),
        lambda x: fx.partition({"a": x}, {"a": fx.ndim_at_least(1)}),
    )
    yield from many(
        "partition",
        "transforms",
        {"key": {1: ADAM}},
        lambda x: fx.partition(x, {"a": fx.ndim_at_least(1)}),
    )

    # how one writes a block
    for f in (fx.block, fx.estimator, fx.statistic, fx.storage, fx.lens, fx.schedule):
        yield from many(f.__name__, "function", but("lambda", none=None, one=1), f)
    functions = (
        "leaf",
        "init",
        "shared",
        "init_shared",
        "sums",
        "norms",
        "gradient_at",
        "evaluate_at",
        "together",
    )
    optional = {k: x for k, x in FUNCTION.items() if x is not None}
    yield from of(
        fx.leafwise, function, **dict.fromkeys(functions, optional), whole_tree=FLAG, needs_params=FLAG,
        elementwise=FLAG, moments=but(one=1, true=True), needs=WORDS,
        per_leaf=WORDS, seed=but(half=1.5, true=True),
    )  # fmt: skip
    yield from of(
        fx.treewise, function, run=FUNCTION, init=optional, init_shared=optional, gradient_at=optional,
        evaluate_at=optional, needs=WORDS,
        inside=but(one=1, numbers={"a": 1}),
    )  # fmt: skip
    for what, x in but(none=None, one=1).items():
        for make in (fx.block, fx.estimator, fx.statistic, fx.storage, fx.lens, fx.schedule):
            if make is fx.schedule and what in ("lambda", "class", "int class"):
                continue  # a schedule returns a function
            call = functools.partial(_made, make, x)
            yield "returning", "returning", f"{make.__name__} returns {what}", call

    # methods
    yield from of(ADAM.init, params=NO_TREE)
    for f in (ADAM.update, ADAM.step):
        yield from of(
            f, P, STATE, P, grads=NO_TREE | OTHER_TREES, state=NO_STATE,
            params=NO_TREE | OTHER_TREES,
        )  # fmt: skip
    held = fx.keep_average().init(P)
    yield from of(fx.keep_average().evaluate_at, held, P, state=NO_STATE, params=NO_TREE)
    yield from many(
        "scale_by_lr",
        "learning_rate",
        but("lambda", none=None, true=True),
        lambda x: ADAM.replace(learning_rate=x),
    )
    yield from many(
        "constant_schedule", "count", but("lambda", none=None, true=True), fx.constant_schedule(0.1)
    )


def _made(make, x):
    @make
    def returning():
        return x

    return returning()


def verdict_of(name, argument, call):
    kinds = (
        (TypeError, ValueError, KeyError)
        if name in ("get", "set", "set_hyperparams")
        else (TypeError, ValueError)
    )
    words = {
        "grads": "gradients?",
        "state": "states?",
        "updates": "updates?",
        "params": "params|parameters?",
        "key": "key",
    }
    return verdict(call, name, words.get(argument, argument), kinds)


def _wrong(cases):
    return [(*case, said) for *case, call in cases if (said := verdict_of(*case[:2], call))]


USES = groups(uses())


@pytest.mark.parametrize(("name", "argument"), USES, ids=lambda x: x)
def test_use(name, argument):
    assert not _wrong((name, argument, what, call) for what, call in USES[name, argument])


# ---- training, files -----------------------------------------------------------------------------

LOSSES = {
    "a vector": lambda p, *b: p["w"], "a pair": lambda p, *b: (one_loss(p), 1.0), "an int": lambda p, *b: 1,
    "a bool": lambda p, *b: True, "a string": lambda p, *b: "a", "none": lambda p, *b: None,
    "a tree": lambda p, *b: p, "complex": lambda p, *b: jax.lax.complex(one_loss(p), one_loss(p)),
    "a list": lambda p, *b: [one_loss(p)],
    "objects": lambda p, *b: OBJECTS, "one value": lambda p, *b: one_loss(p)[None],
    "no arguments": lambda: 1.0, "two more": lambda p, x, y, z: one_loss(p),
}  # fmt: skip
AUXES = {
    "no pair": lambda p, *b: one_loss(p), "three": lambda p, *b: (one_loss(p), 1, 2),
    "none": lambda p, *b: None,
    "a string": lambda p, *b: (one_loss(p), "a"), "strings": lambda p, *b: (one_loss(p), {"a": "b"}),
    "objects": lambda p, *b: (one_loss(p), {"a": OBJECTS}), "a list": lambda p, *b: [one_loss(p), {}],
    "vector": lambda p, *b: (p["w"], {}), "object": lambda p, *b: (one_loss(p), {"a": Nothing()}),
    "int": lambda p, *b: (1, {}), "function": lambda p, *b: (one_loss(p), {"a": function}),
}  # fmt: skip
NO_BATCHES = {
    "int": 3, "none": None, "half": 1.5, "object": Nothing(), "class": Nothing, "lambda": function,
    "string": "abc", "strings": ["a", "b"], "objects": [Nothing()],
    "lambdas": [function], "object arrays": [OBJECTS], "string arrays": [STRINGS], "a dict": {"x": 1.0},
    "of dicts of strings": [{"x": "a"}], "of two": [(1.0, 2.0)], "module": np, "ellipsis": ..., "complex": 1j,
    "classes": [Nothing], "sets": [{1.0}],
}  # fmt: skip
EVALUATIONS = {
    "a string": lambda p, s: "1.5", "none": lambda p, s: None, "a vector": lambda p, s: np.ones(2),
    "one value": lambda p, s: np.ones(1), "a list": lambda p, s: [1.0], "complex": lambda p, s: 1j,
    "a dict of strings": lambda p, s: {"a": "1"}, "a dict of dicts": lambda p, s: {"a": {"b": 1.0}},
    "objects": lambda p, s: OBJECTS, "a function": lambda p, s: function, "loss": lambda p, s: {"loss": 1.0},
    "no arguments": lambda: 1.0, "one argument": lambda p: 1.0, "tree": lambda p, s: p,
}  # fmt: skip
STOPS = {
    "none": lambda h: None, "a string": lambda h: "no", "a vector": lambda h: np.zeros(2, bool),
    "a list": lambda h: [], "the history": lambda h: h, "objects": lambda h: OBJECTS,
    "no arguments": lambda: True, "two": lambda a, b: True, "a column": lambda h: h["loss"],
}  # fmt: skip


def batch_loss(p, x):
    return one_loss(p) * jnp.mean(x)


BATCHES = [np.ones(2, np.float32)] * 2


def training():
    fit = functools.partial(fx.fit, batch_loss, ADAM, P, BATCHES, progress=False)
    functions = {k: x for k, x in FUNCTION.items() if "class" not in k}

    def one(argument, wrong, call=None):
        call = call or (lambda x: fit(**{argument: x}))
        yield from many("fit", argument, wrong, call)

    yield from one(
        "loss_fn", functions | LOSSES, lambda f: fx.fit(f, ADAM, P, BATCHES, progress=False)
    )
    yield from one(
        "loss_fn", AUXES, lambda f: fx.fit(f, ADAM, P, BATCHES, progress=False, has_aux=True)
    )
    yield from one("tx", TX, lambda tx: fx.fit(batch_loss, tx, P, BATCHES, progress=False))
    wrong = NO_TREE | {"none": None, "empty": {}, "frozen": {"n": 1}}
    yield from one("params", wrong, lambda p: fx.fit(batch_loss, ADAM, p, BATCHES, progress=False))
    yield from one("batches", NO_BATCHES, lambda b: fx.fit(batch_loss, ADAM, P, b, progress=False))
    yield from one("state", {k: x for k, x in NO_STATE.items() if x is not None})
    yield from one("history", but("dict", columns={"a": "b"}, one=1, ragged={"a": [1.0], "b": []}))
    yield from one("has_aux", FLAG)
    no_count = {k: x for k, x in COUNT.items() if x is not None}
    yield from one("steps", no_count | {"less": -1})
    yield from one("epochs", COUNT | {"zero": 0})
    yield from one("steps_per_dispatch", no_count | {"zero": 0})
    no_function = {k: x for k, x in functions.items() if x is not None}
    yield from one("evaluate", no_function | EVALUATIONS)
    yield from one("evaluate_every", COUNT | {"zero": 0})
    yield from one("stop", no_function | STOPS)
    yield from one("progress", {k: x for k, x in FLAG.items() if x is not None})
    yield from one("checkpoints", but("string", "empty string", one=1, bytes=b"a"))
    yield from many("make_step", "loss_fn", LOSSES, lambda g: fx.make_step(g)(ADAM, P, STATE, 1.0))
    with_aux = functools.partial(fx.make_step, has_aux=True)
    yield from many("make_step", "loss_fn", AUXES, lambda g: with_aux(g)(ADAM, P, STATE, 1.0))
    step = fx.make_step(batch_loss)
    yield from many("step", "tx", TX, lambda x: step(x, P, STATE, 1.0))
    wrong = NO_TREE | {
        "wrong shape": OTHER_TREES["wrong shape"]
    }  # others the loss itself cannot take
    yield from many("step", "params", wrong, lambda x: step(ADAM, x, STATE, 1.0))
    yield from many("step", "state", NO_STATE, lambda x: step(ADAM, P, x, 1.0))
    yield from many("step", "batch", NO_TREE, lambda x: step(ADAM, P, STATE, x))
    losses = {k: f for k, f in LOSSES.items() if k != "two more"}
    yield from many(
        "per_example_grads", "loss", losses, lambda g: fx.per_example_grads(g)(P, np.ones(2))
    )


def files(folder):
    path = folder / "a.npz"
    fx.save(path, P)
    no_tree = {
        k: x for k, x in NO_TREE.items() if k != "strings"
    }  # such arrays are kept as they are
    yield from of(fx.save, path, P, path=NO_PATH, tree=no_tree)
    yield from of(fx.load, path, P, path=NO_PATH, like=no_tree | OTHER_TREES, partial=FLAG)
    yield from many("Checkpoints", "folder", NO_PATH, fx.Checkpoints)
    for n, wrong in {
        "every": {k: x for k, x in COUNT.items() if x is not None} | {"zero": 0}, "keep": COUNT | {"zero": 0},
        "best": but("string", "empty string", one=1),
        "mode": but(one=1, none=None), "minutes": but("lambda", zero=0, less=-1),
    }.items():  # fmt: skip
        yield from many(
            "Checkpoints", n, wrong, lambda x, n=n: fx.Checkpoints(folder / "c", **{n: x})
        )


MAYBE = {k: x for k, x in COUNT.items() if x is not None}


def sweeps_and_callbacks(folder):
    right = {"loss_fn": batch_loss, "values": {}, "tx": ADAM, "params": P, "batches": BATCHES}
    wrong = {
        "loss_fn": but("lambda", "class", "int class", one=1, none=None), "tx": TX,
        "values": but("lambda", one=1, none=None),
        "params": {k: x for k, x in NO_TREE.items() if k not in ("lambda", "class")} | {"one": "1"},
        "seeds": but("lambda", "list", "tuple", zero=0, half=1.5, none=None), "steps": MAYBE,
        "epochs": COUNT | {"zero": 0}, "has_aux": FLAG, "evaluate_every": COUNT | {"zero": 0},
        "mode": but(one=1, none=None), "at_once": MAYBE | {"zero": 0},
        "score": but("string", "empty string", one=1), "evaluate": but("lambda", "int class", one=1),
        "progress": but(string="yes"), "steps_per_dispatch": MAYBE | {"zero": 0},
    }  # fmt: skip
    settings = {"progress": False, "steps": 1}
    for name, values in wrong.items():
        yield from many(
            "sweep", name, values, lambda x, n=name: fx.sweep(**right | settings | {n: x})
        )
    of_two = wrong | {
        "seed": COUNT, "explore_every": COUNT | {"zero": 0}, "factors": but(one=1, none=None),
        "quantile": but(zero=0, one=1, none=None),
    }  # fmt: skip
    for name, values in of_two.items():
        if name not in ("at_once",):
            yield from many(
                "population", name, values,
                lambda x, n=name: fx.population(**right | settings | {"explore_every": 1} | {n: x}),
            )  # fmt: skip
    names = ["learning_rate"]
    tuned = {"loss_fn": batch_loss, "names": names, "tx": ADAM, "params": P, "batches": BATCHES}
    tuned |= {"optimizer": ADAM, "every": 1, "progress": False}
    mine = {k: wrong[k] for k in ("loss_fn", "tx", "params", "epochs", "progress")}
    mine |= {
        "names": but("lambda", "strings", one=1, none=None), "optimizer": TX, "every": COUNT | {"zero": 0},
        "turns": MAYBE, "restart": FLAG,
        "checkpoints": {k: x for k, x in NO_PATH.items() if x is not None},
    }  # fmt: skip
    for name, values in mine.items():
        yield from many("tune", name, values, lambda x, n=name: fx.tune(**tuned | {n: x}))
    no_batches = {
        "one": 1,
        "none": None,
        "half": 1.5,
        "lambda": function,
        "string": "abc",
        "bytes": b"a",
    }
    yield from of(fx.prefetch, BATCHES, 2, batches=no_batches, size=COUNT | {"zero": 0})
    for kind, name in ((fx.Table, "path"), (fx.TensorBoard, "folder"), (fx.Profile, "folder")):
        yield from many(kind.__name__, name, NO_PATH, kind)
    yield from many("Summary", "show", but("lambda", "class", "int class", one=1), fx.Summary)
    for name, wrong in {"first": COUNT, "steps": COUNT | {"zero": 0}}.items():
        yield from many("Profile", name, wrong, lambda x, n=name: fx.Profile(folder, **{n: x}))
    wrong = but(
        "generator", one=1, none=None, ones=[1], classes=[fx.Summary], value=ADAM, values=[ADAM]
    )
    yield from many(
        "fit", "callbacks", wrong,
        lambda x: fx.fit(batch_loss, ADAM, P, BATCHES, callbacks=x, progress=False),
    )  # fmt: skip


def test_sweeps_and_callbacks(tmp_path):
    assert not _wrong(sweeps_and_callbacks(tmp_path))


TRAINING = groups(training())


@pytest.mark.parametrize(("name", "argument"), TRAINING, ids=lambda x: x)
def test_training(name, argument):
    assert not _wrong((name, argument, what, call) for what, call in TRAINING[name, argument])


def test_files(tmp_path):
    assert not _wrong(files(tmp_path))


# ---- what a schedule returns ---------------------------------------------------------------------

RETURNS = {
    "a string": "0.1", "none": None, "a vector": np.ones(2), "complex": 1j, "a list": [0.1],
    "object": Nothing(),
    "objects": OBJECTS, "strings": STRINGS, "a dict": {"a": 0.1},
}  # fmt: skip
TAKES_SCHEDULES = {
    "scale_by_lr": fx.scale_by_lr, "scale_by_moments": lambda f: fx.scale_by_moments(f, 0.9),
    "add_decayed_weights": fx.add_decayed_weights, "clip": fx.clip,
    "accumulate": lambda f: fx.accumulate(fx.sgd(0.1), f),
    "warmup_schedule": lambda f: fx.scale_by_lr(fx.warmup_schedule(0.1, 2, f)),
}  # fmt: skip


def _updated(make, rate):
    tx = make(rate)
    return tx.update(P, tx.init(P), P)


@pytest.mark.parametrize("name", TAKES_SCHEDULES)
def test_a_schedule_returns_one_real_number(name):
    def rate(count, x):
        return x

    for x in RETURNS.values():
        returning = functools.wraps(rate)(lambda count, x=x: x)
        words = r"the schedule rate returned .*must return one real number"
        with pytest.raises(TypeError, match=words):
            _updated(TAKES_SCHEDULES[name], returning)


# ---- what is right -------------------------------------------------------------------------------

NUMBERS = {
    "int": 1, "numpy float": np.float32(0.5), "numpy double": np.float64(0.5), "numpy int": np.int64(1),
    "numpy 0-d": np.asarray(0.5, np.float32), "jax 0-d": jnp.asarray(0.5),
    "bfloat16": jnp.asarray(0.5, "bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("x", NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_all_kinds_are_numbers(x):
    for make in (fx.scale_by_lr, fx.scale, fx.clip, fx.adamw):
        tx = make(x)
        tx.update(P, tx.init(P), P)
    jax.jit(lambda y: fx.adam(y).init(P))(x)
    assert fx.incremental_update(P, P, x)["b"].shape == (4,)


def test_whole_numbers_of_all_kinds_are_counts():
    for n in (2, 2.0, np.int32(2), np.float64(2.0)):
        assert fx.lookahead(fx.sgd(0.1), n, 0.5) == fx.lookahead(fx.sgd(0.1), 2, 0.5)
        assert fx.linear_schedule(0.1, 0.2, n) == fx.linear_schedule(0.1, 0.2, 2)


def test_flags_masks_dtypes_and_words_of_numpy_are_right():
    assert fx.adam(0.1, nesterov=np.bool_(True)).init(P)
    for mask in (True, {"w": np.bool_(True), "b": False}, {"w": None, "b": True}, lambda p: True):
        assert fx.adamw(0.1, mask=mask).init(P)
    for dtype in ("bfloat16", jnp.bfloat16, np.float32, np.dtype("float32")):
        assert fx.adam(0.1, mu_dtype=dtype).init(P)
    assert fx.bias_correct(np.str_("first")).name == "bias_correct"
    for betas in ([0.0, 0.9], np.asarray([0.0, 0.9])):
        assert fx.aggmo(0.1, betas).init(P)


def test_a_block_of_ones_own_may_be_infinite_where_its_default_is():
    @fx.block
    def limited(most: fx.Dynamic = INF):
        return fx.leafwise(lambda u, here: jnp.minimum(u, most))

    assert limited(INF) == limited()


def test_errors_of_the_callers_own_functions_pass_as_they_are():
    def broken(p, x):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine"):
        fx.fit(broken, ADAM, P, BATCHES, progress=False)
    with pytest.raises(TypeError, match=r"^mine"):
        fx.fit(batch_loss, ADAM, P, BATCHES, progress=False, evaluate=broken)


# ---- the judge -----------------------------------------------------------------------------------


def _named():
    raise TypeError("scale: step_size must be a number")


def test_the_judge_sees_what_is_silent_internal_or_unnamed():
    assert verdict(lambda: fx.scale("a"), "scale", "step_size") is None
    for call, words in (
        (lambda: 3, "silent"),
        (_named, "internal"),  # right words, but not raised in the package
        (lambda: fx.scale(0.1).init(P).missing, "internal"),
        (lambda: len(3), "internal"),
        (lambda: jnp.zeros(2).reshape(3), "internal"),
    ):
        assert verdict(call, "scale", "step_size").startswith(words)
    assert verdict(lambda: fx.scale("a"), "scale", "other").startswith("does not name other")
    assert verdict(lambda: fx.scale("a"), "clip", "step_size").startswith("does not name clip")
