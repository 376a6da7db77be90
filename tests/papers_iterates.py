"""Float64 NumPy loops from the papers, second part: methods that see all layers at once.

Parameter-free step sizes, iterate sequences, directions from past gradients, private aggregation
and target networks. grads is a dict of (steps, *shape) arrays, theta a dict of arrays, updates are
a dict as grads: u_t, theta_t = theta_{t-1} + u_t, sign and learning rate included. As in papers.py
t counts from 1, schedules are called with t - 1, and 0/0 is 0. Inner products and norms run over
all leaves. An inner optimizer is `base(t, g, params) -> update`, dicts in and out, -lr included
(it may keep a state: make a new one for every run; sgd_step and adam_step below make them); a
gradient at other points is `grad_fn(t, params) -> dict`.
"""

import numpy as np
from papers import _at, _float64, _ratio


def _map(f, *trees):
    return {k: f(*(tree[k] for tree in trees)) for k in trees[0]}


def _trees(grads, theta):
    """The gradients as a list of dicts, one a step, and theta, all float64."""
    pairs = {k: _float64(grads[k], theta[k]) for k in theta}
    assert set(grads) == set(theta), (set(grads), set(theta))
    steps = {len(g) for g, _ in pairs.values()}
    assert len(steps) == 1, steps
    per_step = [{k: g[t] for k, (g, _) in pairs.items()} for t in range(steps.pop())]
    return per_step, {k: p for k, (_, p) in pairs.items()}


def _tree(theta):
    return {k: np.asarray(p, np.float64) for k, p in theta.items()}


def _stack(trees):
    return {k: np.array([tree[k] for tree in trees]) for k in trees[0]}


def _dot(a, b):
    return float(sum(np.sum(a[k] * b[k]) for k in a))


def _norm(a):
    return float(np.sqrt(_dot(a, a)))


def _add(a, b):
    return _map(np.add, a, b)


def _sub(a, b):
    return _map(np.subtract, a, b)


def _scale(c, a):
    return _map(lambda x: c * x, a)


def _mix(c, a, b):
    """c a + (1 - c) b."""
    return _map(lambda x, y: c * x + (1 - c) * y, a, b)


def _lerp(c, a, b):
    """(1 - c) a + c b in the form that returns a exactly where b = a."""
    return _map(lambda x, y: x + c * (y - x), a, b)


def _divide(a, b):
    """a / b for numbers with 0/0 = 0 and a/0 infinite."""
    if b == 0:
        return 0.0 if a == 0 else float(np.copysign(np.inf, a))
    return a / b


# Inner optimizers


def sgd_step(learning_rate):
    """base of plain gradient descent: -lr g."""
    return lambda t, g, params: _scale(-_at(learning_rate, t - 1), g)


def adam_step(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    """base of Kingma & Ba 2015, Algorithm 1 (with decoupled decay at params if asked for)."""
    state = {}

    def base(t, g, params):
        m = state.get("m", _scale(0.0, g))
        v = state.get("v", _scale(0.0, g))
        state["m"] = m = _mix(b1, m, g)
        state["v"] = v = _mix(b2, v, _map(np.square, g))

        def leaf(m, v, p):
            direction = _ratio(m / (1 - b1**t), np.sqrt(v / (1 - b2**t)) + eps)
            return -_at(learning_rate, t - 1) * (direction + weight_decay * p)

        return _map(leaf, m, v, params)

    return base


# Parameter-free step sizes


def dog(
    grads,
    theta,
    *,
    learning_rate=1.0,
    init_step=("heuristic", 1e-6),
    eps=1e-8,
    weight_decay=None,
):
    """Ivgi, Hinder & Carmon 2023, eq. 2: u = -lr r_bar / sqrt(G + eps) g, r_bar = max of r_eps and
    the distances |theta_i - theta_0|, G = sum |g|^2. r_eps: ("heuristic", a) is a (1 + |theta_0|),
    ("distance", r) is r, ("learning_rate", eta): the first step is eta g, r_eps 0. L2 decay in g.
    """
    return _distance_over_gradients(
        grads, theta, learning_rate, init_step, eps, weight_decay, groups=[list(theta)]
    )


def ldog(
    grads,
    theta,
    *,
    learning_rate=1.0,
    init_step=("heuristic", 1e-6),
    eps=1e-8,
    weight_decay=None,
):
    """Ivgi, Hinder & Carmon 2023, L-DoG: the formula of dog for each layer (leaf) on its own:
    distance, sum of squares, r_eps and the eps under the root are those of the layer."""
    return _distance_over_gradients(
        grads, theta, learning_rate, init_step, eps, weight_decay, groups=[[k] for k in theta]
    )


def _distance_over_gradients(grads, theta, learning_rate, init_step, eps, weight_decay, groups):
    grads, theta = _trees(grads, theta)
    (kind, value), start, updates = init_step, theta, []
    reach, total = {}, {}
    for i, names in enumerate(groups):
        size = np.sqrt(sum(np.sum(start[k] ** 2) for k in names))
        reach[i] = {"heuristic": value * (1 + size), "distance": value, "learning_rate": 0.0}[kind]
        total[i] = 0.0
    for t, g in enumerate(grads, 1):
        g = _map(lambda g, p: g + (weight_decay or 0.0) * p, g, theta)
        u = {}
        for i, names in enumerate(groups):
            distance = np.sqrt(sum(np.sum((theta[k] - start[k]) ** 2) for k in names))
            reach[i] = max(reach[i], distance)
            total[i] += sum(np.sum(g[k] ** 2) for k in names)
            eta = _divide(reach[i], np.sqrt(total[i] + eps))
            if kind == "learning_rate" and t == 1:
                eta = value
            for k in names:  # eta is infinite only where g is zero
                u[k] = -_at(learning_rate, t - 1) * (eta * g[k] if np.isfinite(eta) else 0 * g[k])
        updates.append({k: u[k] for k in theta})
        theta = _add(theta, u)
    return _stack(updates)


def dowg(grads, theta, *, learning_rate=1.0, init_estim_sq_dist=None, eps=1e-4, weight_decay=None):
    """Khaled, Mishchenko & Jin 2023, Algorithm 1: r2 = max(r2, |theta - theta_0|^2),
    v = v + r2 |g|^2, u = -lr r2 / (sqrt(v) + eps) g; the eps outside the root and r2_0 = eps are
    not in the paper (there r2_0 = r_eps^2), nor is the L2 decay in g."""
    grads, theta = _trees(grads, theta)
    r2 = eps if init_estim_sq_dist is None else init_estim_sq_dist
    start, v, updates = theta, 0.0, []
    for t, g in enumerate(grads, 1):
        g = _map(lambda g, p: g + (weight_decay or 0.0) * p, g, theta)
        away = _sub(theta, start)
        r2 = max(r2, _dot(away, away))
        v = v + r2 * _dot(g, g)
        eta = _divide(r2, np.sqrt(v) + eps) if _dot(g, g) > 0 else 0.0
        updates.append(_scale(-_at(learning_rate, t - 1) * eta, g))
        theta = _add(theta, updates[-1])
    return _stack(updates)


def prodigy(
    grads,
    theta,
    *,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    estim_lr0=1e-6,
    estim_lr_coef=1.0,
    weight_decay=0.0,
    safeguard_warmup=False,
):
    """Mishchenko & Defazio 2023, the Adam version, gamma = lr sqrt(1 - b2^t) / (1 - b1^t):
    m, v averages of d g and d^2 g^2, r = b3 r + gamma d^2 <g, theta_0 - theta>,
    s = b3 s + gamma d^2 g, d' = max(d, coef r / |s|_1), u = -gamma d (m / (sqrt(v) + d' eps)
    + wd theta). As the authors' code: the eps takes the new d', the step the old d; the factor
    1 - b3 of r and s is left out (it cancels); r, s over d_0; safeguard: no gamma in s. |s|_1 = 0
    leaves d as it is."""
    grads, theta = _trees(grads, theta)
    (b1, b2), d, r, start, updates = betas, estim_lr0, 0.0, theta, []
    b3 = b2**0.5 if beta3 is None else beta3
    m, v, s = _scale(0.0, theta), _scale(0.0, theta), _scale(0.0, theta)
    for t, g in enumerate(grads, 1):
        gamma = _at(learning_rate, t - 1) * np.sqrt(1 - b2**t) / (1 - b1**t)
        m = _mix(b1, m, _scale(d, g))
        v = _mix(b2, v, _map(lambda g, d=d: (d * g) ** 2, g))
        weight = d / estim_lr0 * d
        r = b3 * r + weight * gamma * _dot(g, _sub(start, theta))
        s_weight = weight * (1.0 if safeguard_warmup else gamma)
        s = _map(lambda s, g, w=s_weight: b3 * s + w * g, s, g)
        l1 = sum(np.sum(np.abs(x)) for x in s.values())
        d_new = max(d, estim_lr_coef * r / l1) if l1 > 0 else d

        def leaf(m, v, p, d=d, d_new=d_new, gamma=gamma):
            return -gamma * d * (_ratio(m, np.sqrt(v) + d_new * eps) + weight_decay * p)

        updates.append(_map(leaf, m, v, theta))
        theta, d = _add(theta, updates[-1]), d_new
    return _stack(updates)


def dadapt_adamw(
    grads,
    theta,
    *,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    eps=1e-8,
    estim_lr0=1e-6,
    weight_decay=0.0,
):
    """Defazio & Mishchenko 2023, the Adam version, c = sqrt(b2), lambda = d lr sqrt(1 - b2^t) /
    (1 - b1^t): r = c r + (1 - c) lambda <g, s / (sqrt(v_{t-1}) + eps)>, m = b1 m + (1 - b1)
    lambda g, s = c s + (1 - c) lambda g, d = max(d, r / ((1 - c) |s|_1)),
    u = -m / (sqrt(v) + eps) - wd lambda theta. v of the step before in r and decoupled decay as
    in the authors' code. |s|_1 = 0 leaves d as it is."""
    grads, theta = _trees(grads, theta)
    (b1, b2), d, r, updates = betas, estim_lr0, 0.0, []
    c = b2**0.5
    m, v, s = _scale(0.0, theta), _scale(0.0, theta), _scale(0.0, theta)
    for t, g in enumerate(grads, 1):
        step = d * _at(learning_rate, t - 1) * np.sqrt(1 - b2**t) / (1 - b1**t)
        along = _map(lambda s, v: _ratio(s, np.sqrt(v) + eps), s, v)
        r = c * r + (1 - c) * step * _dot(g, along)
        m = _mix(b1, m, _scale(step, g))
        v = _mix(b2, v, _map(np.square, g))
        s = _mix(c, s, _scale(step, g))
        l1 = sum(np.sum(np.abs(x)) for x in s.values())

        def leaf(m, v, p, step=step):
            return -_ratio(m, np.sqrt(v) + eps) - weight_decay * step * p

        updates.append(_map(leaf, m, v, theta))
        theta = _add(theta, updates[-1])
        d = max(d, r / ((1 - c) * l1)) if l1 > 0 else d
    return _stack(updates)


def mechanize(grads, theta, inner_update, *, weight_decay=1e-2, eps=1e-8, s_init=1e-6, num_betas=6):
    """Cutkosky, Defazio & Mehta 2023, Algorithm 1, in the form of the authors' JAX code:
    Delta = (theta_0 - theta) / (sum s + eps),
    h = <Delta, g + wd sum(s) |g| theta / (|theta| + eps)>; for each beta = 1 - 10^-i:
    r = beta r + s clip(h, -m, m) (old m; the clip is younger than the paper),
    m = max(beta m, |h| + eps), v = beta^2 v + h^2, s = (s_init / n m + max(r, 0)) /
    (sqrt(v) + eps); theta = theta_0 - sum(s) (Delta - inner). r itself is not cut at 0 (the paper
    and the authors' PyTorch code keep max(r, 0)); inner_update sees g without the decay."""
    grads, theta = _trees(grads, theta)
    start, updates = theta, []
    beta = 1 - 0.1 ** np.arange(1, num_betas + 1)
    r, m, v = np.zeros(num_betas), np.zeros(num_betas), np.zeros(num_betas)
    s = np.full(num_betas, s_init)
    for t, g in enumerate(grads, 1):
        inner, total = inner_update(t, g, theta), np.sum(s)
        delta = _map(lambda p, p0, w=total + eps: _ratio(p0 - p, w), theta, start)
        pull = weight_decay * total * _divide(_norm(g), _norm(theta) + eps)
        h = _dot(delta, _map(lambda g, p, c=pull: g + c * p, g, theta))
        r = beta * r + s * np.clip(h, -m, m)
        m = np.maximum(beta * m, abs(h) + eps)
        v = beta**2 * v + h**2
        s = _ratio(s_init / num_betas * m + np.maximum(r, 0.0), np.sqrt(v) + eps)
        new = _sub(start, _scale(np.sum(s), _sub(delta, inner)))
        updates.append(_sub(new, theta))
        theta = new
    return _stack(updates)


def cocob(grads, theta, *, learning_rate=1.0, alpha=100.0, eps=1e-8, weight_decay=0.0):
    """Orabona & Tommasi 2017, Algorithm 2, elementwise, c = lr (g + wd theta) (the paper: g):
    L = max(L, |c|) from eps, G = G + |c|, R = max(R - c (theta - theta_0), 0), C = C - c,
    theta = theta_0 + C / (L max(G + L, alpha L)) (L + R). lr scales the gradient, not the step:
    a constant one changes (almost) nothing."""
    grads, theta = _trees(grads, theta)
    start, updates = theta, []
    C, G, R = _scale(0.0, theta), _scale(0.0, theta), _scale(0.0, theta)
    L = _map(lambda p: np.full_like(p, eps), theta)
    for t, g in enumerate(grads, 1):
        lr = _at(learning_rate, t - 1)
        c = _map(lambda g, p, lr=lr: lr * (g + weight_decay * p), g, theta)
        L = _map(lambda L, c: np.maximum(L, np.abs(c)), L, c)
        G = _map(lambda G, c: G + np.abs(c), G, c)
        R = _map(lambda R, c, p, p0: np.maximum(R - c * (p - p0), 0.0), R, c, theta, start)
        C = _sub(C, c)

        def leaf(p0, C, L, G, R):
            return p0 + _ratio(C, L * np.maximum(G + L, alpha * L)) * (L + R)

        new = _map(leaf, start, C, L, G, R)
        updates.append(_sub(new, theta))
        theta = new
    return _stack(updates)


def momo(
    grads,
    theta,
    values,
    *,
    learning_rate=1.0,
    beta=0.9,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
):
    """Schaipp et al. 2024, Algorithm 1: averages d of g, f of the loss, gamma of <g, theta>, the
    first values whole; tau = min(lr, ((1 + lr wd)(f - f* - gamma) + <d, theta>)_+ / |d|^2),
    theta = (theta - tau d) / (1 + lr wd) (optax: tau d undivided). adapt_lower_bound: f* becomes
    max(cap / (2 (1 + lr wd)), lower_bound), cap = that numerator with f* = 0, if cap <
    (1 + lr wd) f*; after the step f* = max(f + <d, theta> - gamma - tau |d|^2 / 2, lower_bound)."""
    grads, theta = _trees(grads, theta)
    f_star, updates = lower_bound, []
    f, gamma, d = 0.0, 0.0, _scale(0.0, theta)
    for t, (g, value) in enumerate(zip(grads, values, strict=True), 1):
        lr, b = _at(learning_rate, t - 1), 0.0 if t == 1 else beta
        f = b * f + (1 - b) * float(value)
        gamma = b * gamma + (1 - b) * _dot(g, theta)
        d = _mix(b, d, g)
        grow, inner, d2 = 1 + lr * weight_decay, _dot(d, theta), _dot(d, d)
        cap = grow * (f - gamma) + inner
        if adapt_lower_bound and cap < grow * f_star:
            f_star = max(cap / (2 * grow), lower_bound)
        tau = min(lr, _divide(max(cap - grow * f_star, 0.0), d2)) if d2 > 0 else 0.0
        new = _map(lambda p, d, tau=tau, c=grow: (p - tau * d) / c, theta, d)
        if adapt_lower_bound:
            f_star = max(f + inner - gamma - tau * d2 / 2, lower_bound)
        updates.append(_sub(new, theta))
        theta = new
    return _stack(updates)


def momo_adam(
    grads,
    theta,
    values,
    *,
    learning_rate=1e-2,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
):
    """Schaipp et al. 2024, Algorithm 2: momo with averages from zero, rho = 1 - b1^t,
    D = eps + sqrt(v / (1 - b2^t)), |d|^2 = <d, d / D>: tau = min(lr / rho, ((1 + lr wd)
    (f - rho f* - gamma) + <d, theta>)_+ / |d|^2), theta = (theta - tau d / D) / (1 + lr wd) (optax
    leaves tau d / D undivided); the f* of adapt_lower_bound are divided by rho."""
    grads, theta = _trees(grads, theta)
    f_star, updates = lower_bound, []
    f, gamma, d, v = 0.0, 0.0, _scale(0.0, theta), _scale(0.0, theta)
    for t, (g, value) in enumerate(zip(grads, values, strict=True), 1):
        lr, rho = _at(learning_rate, t - 1), 1 - b1**t
        f = b1 * f + (1 - b1) * float(value)
        gamma = b1 * gamma + (1 - b1) * _dot(g, theta)
        d = _mix(b1, d, g)
        v = _mix(b2, v, _map(np.square, g))
        scaled = _map(lambda d, v, t=t: _ratio(d, eps + np.sqrt(v / (1 - b2**t))), d, v)
        grow, inner, d2 = 1 + lr * weight_decay, _dot(d, theta), _dot(d, scaled)
        cap = grow * (f - gamma) + inner
        if adapt_lower_bound and cap < grow * rho * f_star:
            f_star = max(cap / (2 * rho * grow), lower_bound)
        tau = 0.0
        if d2 > 0:
            tau = min(lr / rho, _divide(max(cap - grow * rho * f_star, 0.0), d2))
        new = _map(lambda p, s, tau=tau, c=grow: (p - tau * s) / c, theta, scaled)
        if adapt_lower_bound:
            f_star = max((f + inner - gamma - tau * d2 / 2) / rho, lower_bound)
        updates.append(_sub(new, theta))
        theta = new
    return _stack(updates)


def polyak_sgd(
    grads,
    theta,
    values,
    *,
    max_learning_rate=1.0,
    scaling=1.0,
    f_min=0.0,
    eps=0.0,
    variant="sps",
):
    """Loizou et al. 2021, eq. 4: u = -s min((f - f_min) / (|g|^2 + eps), max_lr) g; "sps+"
    (Garrigos et al. 2023) takes the positive part of the gap. s = scaling multiplies the step, as
    optax documents it (its code squares s into |g|^2, so that an uncapped step shrinks with 1/s).
    """
    grads, theta = _trees(grads, theta)
    updates = []
    for t, (g, value) in enumerate(zip(grads, values, strict=True), 1):
        gap = float(value) - f_min
        if variant == "sps+":
            gap = max(gap, 0.0)
        size = _dot(g, g) + eps
        step = min(_divide(gap, size), max_learning_rate) if size > 0 else 0.0
        updates.append(_scale(-_at(scaling, t - 1) * step, g))
    return _stack(updates)


# Iterate sequences


def schedule_free(grads, theta, *, base, learning_rate, b1=0.9, weight_lr_power=2.0):
    """Defazio et al. 2024, eqs. 6-8, grads taken at y: z = z + base(t, g, y), x = (1 - c) x + c z,
    y = (1 - b1) z + b1 x, all from theta; c = w_t / sum of w, w_t = (max lr so far)^power, lr read
    at the count of the base, t - 1 (optax: t). No weight yet (lr 0): c = 0. Returns (updates of y,
    x after each step: where to evaluate)."""
    grads, theta = _trees(grads, theta)
    x, y, z = theta, theta, theta
    lr_max, total, updates, xs = 0.0, 0.0, [], []
    for t, g in enumerate(grads, 1):
        lr_max = max(lr_max, _at(learning_rate, t - 1))
        w = float(lr_max) ** weight_lr_power
        total = total + w
        z = _add(z, base(t, g, y))
        x = _lerp(_divide(w, total), x, z)
        new = _lerp(1 - b1, x, z)
        updates.append(_sub(new, y))
        xs.append(x)
        y = new
    return _stack(updates), _stack(xs)


def _warmup(learning_rate, warmup_steps):
    """lr min(step / warmup_steps, 1): 0 at step 0."""
    if warmup_steps is None:
        return learning_rate
    return lambda step: learning_rate * min(step / warmup_steps, 1.0)


def schedule_free_sgd(
    grads,
    theta,
    *,
    learning_rate=1.0,
    warmup_steps=None,
    b1=0.9,
    weight_decay=None,
    weight_lr_power=2.0,
):
    """schedule_free around -lr (g + wd y); warm-up lr(step) = lr min(step / warmup_steps, 1), the
    first step is 0 (the authors: (step + 1) / warmup_steps). Returns (updates of y, x)."""
    lr = _warmup(learning_rate, warmup_steps)

    def base(t, g, y):
        return _map(lambda g, y: -_at(lr, t - 1) * (g + (weight_decay or 0.0) * y), g, y)

    kw = dict(learning_rate=lr, b1=b1, weight_lr_power=weight_lr_power)
    return schedule_free(grads, theta, base=base, **kw)


def schedule_free_adamw(
    grads,
    theta,
    *,
    learning_rate=0.0025,
    warmup_steps=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    weight_lr_power=2.0,
):
    """schedule_free around -lr (g / (sqrt(v / (1 - b2^t)) + eps) + wd y), as the authors' reference
    code and optax. Algorithm 1 of Defazio et al. 2024 differs: gamma_t = lr sqrt(1 - b2^t) stands
    in the weight, in the decay and before an uncorrected v (eps hat). Warm-up as in
    schedule_free_sgd. Returns (updates of y, x)."""
    lr = _warmup(learning_rate, warmup_steps)
    kw = dict(learning_rate=lr, b1=b1, weight_lr_power=weight_lr_power)
    base = adam_step(lr, b1=0.0, b2=b2, eps=eps, weight_decay=weight_decay)
    return schedule_free(grads, theta, base=base, **kw)


def ema_nesterov(
    theta, *, steps, grad_fn, base, lookahead=0.3, decay=0.99, start=0, stop=None, restore=False
):
    """Yau et al. 2026 (2605.25395): q = p + lambda m, p_new = q + base(grad at q),
    m = gamma m + (1 - gamma)(p_new - p), m from 0 at the first step on; lambda is 0 outside start
    <= t - 1 < stop and may be a schedule (the authors: times lr / lr_max). The base steps from the
    looked-ahead q; restore=True: from p (p_new = p + base). Returns (updates of p, the points q).
    """
    p, updates, points = _tree(theta), [], []
    m = _scale(0.0, p)
    for t in range(1, steps + 1):
        inside = start <= t - 1 and (stop is None or t - 1 < stop)
        q = _add(p, _scale(_at(lookahead, t - 1) if inside else 0.0, m))
        u = base(t, _tree(grad_fn(t, q)), q)
        new = _add(p if restore else q, u)
        m = _mix(decay, m, _sub(new, p))
        updates.append(_sub(new, p))
        points.append(q)
        p = new
    return _stack(updates), _stack(points)


def swa(updates, theta, *, start, every=1):
    """Izmailov et al. 2018, Algorithm 1: the equal mean of theta_t at t = start, start + every, ...
    along theta_t = theta_{t-1} + u_t; start=0 counts the initial theta, as the paper does.
    Returns the average after each step (steps, *shape); before the first sample theta_t itself."""
    updates, theta = _trees(updates, theta)
    samples, averages = [theta] if start == 0 else [], []
    for t, u in enumerate(updates, 1):
        theta = _add(theta, u)
        if t >= start and (t - start) % every == 0:
            samples.append(theta)
        averages.append(_map(lambda *p: sum(p) / len(p), *(samples or [theta])))
    return _stack(averages)


def diloco(
    grads, theta, *, base, every, outer_learning_rate=0.7, outer_momentum=0.5, nesterov=True
):
    """Douillard et al. 2023, Algorithm 1, one worker: p = p + base; after each `every` steps
    D = anchor - p, b = mu b + D, anchor = anchor - lr (D + mu b) (nesterov; else b), p = anchor.
    anchor = theta at first. (The paper's outer momentum is .9; .5 is MuLoCo's.)"""
    grads, theta = _trees(grads, theta)
    anchor, b, updates = theta, _scale(0.0, theta), []
    for t, g in enumerate(grads, 1):
        p = _add(theta, base(t, g, theta))
        if t % every == 0:
            D = _sub(anchor, p)
            b = _add(_scale(outer_momentum, b), D)
            step = _add(D, _scale(outer_momentum, b)) if nesterov else b
            anchor = _sub(anchor, _scale(_at(outer_learning_rate, t // every - 1), step))
            p = anchor
        updates.append(_sub(p, theta))
        theta = p
    return _stack(updates)


def sam(theta, *, steps, grad_fn, base, rho=0.05):
    """Foret et al. 2021, Algorithm 1, p = 2: e = rho g / |g| with |g| over all layers (0 at g = 0),
    u = base(gradient at theta + e), the base and its decay at theta."""
    return _sharpness_aware(theta, steps, grad_fn, base, rho, lambda p: np.ones_like(p))


def asam(theta, *, steps, grad_fn, base, rho=0.5, eta=0.01):
    """Kwon et al. 2021, Algorithm 1: T = |theta| + eta elementwise, e = rho T^2 g / |T g|, then as
    sam. (The authors' code has T = 1 for parameters that are not named `weight`.)"""
    return _sharpness_aware(theta, steps, grad_fn, base, rho, lambda p: np.abs(p) + eta)


def _sharpness_aware(theta, steps, grad_fn, base, rho, scale):
    theta, updates = _tree(theta), []
    for t in range(1, steps + 1):
        T = _map(scale, theta)
        Tg = _map(np.multiply, T, _tree(grad_fn(t, theta)))
        e = _scale(_divide(rho, _norm(Tg)) if _norm(Tg) > 0 else 0.0, _map(np.multiply, T, Tg))
        g = _tree(grad_fn(t, _add(theta, e)))
        updates.append(base(t, g, theta))
        theta = _add(theta, updates[-1])
    return _stack(updates)


# Directions from past gradients


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in tree.values()])


def _unflat(vector, like):
    tree, at = {}, 0
    for k, x in like.items():
        tree[k] = vector[at : at + x.size].reshape(x.shape)
        at += x.size
    return tree


def nonlinear_cg(grads, *, method="polak_ribiere", restart_every=None):
    """Nocedal & Wright 2006, section 5.2: d_1 = -g_1, d = -g + max(beta, 0) d_prev, y = g - g_prev:
    polak_ribiere <g, y> / <g_prev, g_prev>, fletcher_reeves <g, g> / <g_prev, g_prev>,
    hestenes_stiefel <g, y> / <d_prev, y>, dai_yuan <g, g> / <d_prev, y>; 0/0 is 0 and so is any
    beta with denominator 0. d = -g (restart) if <d, g> >= 0, and at t = 1 + k restart_every.
    grads are those along the path; returns the directions d_t, no step size in them."""
    grads = {k: np.asarray(g, np.float64) for k, g in grads.items()}
    like = {k: g[0] for k, g in grads.items()}
    directions, g_prev, d_prev = [], None, None
    for t in range(1, len(next(iter(grads.values()))) + 1):
        g = _flat({k: x[t - 1] for k, x in grads.items()})
        if t == 1 or (restart_every and (t - 1) % restart_every == 0):
            d = -g
        else:
            y = g - g_prev
            above = g @ (g if method in ("fletcher_reeves", "dai_yuan") else y)
            below = {
                "polak_ribiere": g_prev @ g_prev,
                "fletcher_reeves": g_prev @ g_prev,
                "hestenes_stiefel": d_prev @ y,
                "dai_yuan": d_prev @ y,
            }[method]
            beta = above / below if below != 0 else 0.0
            d = -g + max(beta, 0.0) * d_prev
            if d @ g >= 0:
                d = -g
        directions.append(_unflat(d, like))
        g_prev, d_prev = g, d
    return _stack(directions)


def lbfgs(grads, thetas, *, memory_size=10, scale_init_precond=True, curvature=1e-10):
    """Nocedal & Wright 2006, Algorithm 7.4: d_t = -H_t g_t from the last memory_size pairs
    s = theta_t - theta_{t-1}, y = g_t - g_{t-1}, start gamma I, gamma = <s, y> / <y, y> of the
    newest pair; without a pair gamma = min(1, 1 / |g|) (no scaling: gamma = 1). A pair with
    <s, y> <= curvature |s| |y| is not stored and leaves memory and gamma alone (optax stores all).
    grads and thetas: the path, (steps, *shape) each; returns the directions, no step size in them.
    """
    grads = {k: np.asarray(g, np.float64) for k, g in grads.items()}
    thetas = {k: np.asarray(thetas[k], np.float64) for k in grads}
    like = {k: g[0] for k, g in grads.items()}
    directions, pairs, g_prev, p_prev = [], [], None, None
    for t in range(len(next(iter(grads.values())))):
        g = _flat({k: x[t] for k, x in grads.items()})
        p = _flat({k: x[t] for k, x in thetas.items()})
        if t > 0:
            s, y = p - p_prev, g - g_prev
            if s @ y > curvature * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory_size:]
        gamma = 1.0
        if scale_init_precond and pairs:
            s, y = pairs[-1]
            gamma = (s @ y) / (y @ y)
        elif scale_init_precond:
            gamma = min(1.0, _divide(1.0, np.linalg.norm(g)))
        q, alphas = g, []
        for s, y in reversed(pairs):
            alphas.append((s @ q) / (s @ y))
            q = q - alphas[-1] * y
        h = gamma * q
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            h = h + (alpha - (y @ h) / (s @ y)) * s
        directions.append(_unflat(-h, like))
        g_prev, p_prev = g, p
    return _stack(directions)


# Privacy


def dp_aggregate(per_example_grads, l2_norm_clip):
    """Abadi et al. 2016, Algorithm 1 without the noise: each example's gradient over
    max(1, |g| / C), |g| over all leaves, then the sum over the batch / batch size.
    per_example_grads: dict of (steps, batch, *shape); returns a dict of (steps, *shape)."""
    grads = {k: np.asarray(g, np.float64) for k, g in per_example_grads.items()}
    squares = sum(np.sum(g**2, axis=tuple(range(2, g.ndim))) for g in grads.values())
    shrink = 1 / np.maximum(1.0, np.sqrt(squares) / l2_norm_clip)

    def leaf(g):
        return np.sum(g * shrink.reshape(shrink.shape + (1,) * (g.ndim - 2)), axis=1) / g.shape[1]

    return {k: leaf(g) for k, g in grads.items()}


# Target networks


def incremental_update(new_tensors, old_tensors, step_size):
    """Polyak & Juditsky 1992 as used for target networks (Lillicrap et al. 2016):
    tau new + (1 - tau) old."""
    return _mix(step_size, _tree(new_tensors), _tree(old_tensors))


def periodic_update(new_tensors, old_tensors, steps, update_period):
    """Mnih et al. 2015: new at steps = 0, period, 2 period, ..., else old."""
    return _tree(new_tensors if steps % update_period == 0 else old_tensors)
