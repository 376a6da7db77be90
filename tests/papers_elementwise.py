"""Float64 NumPy oracles of the element-wise, sublinear-memory and clipping methods, and of the
words that stand before or after an optimizer. Conventions as in papers.py; besides:

- optimizers: `name(grads, theta, *, learning_rate, ...)` returns the updates, sign included;
- words: `name(u, ...)` takes the values of all steps, (steps, *shape), and where it reads the
  parameters `thetas`, (steps, *shape), theta BEFORE each step, and returns the same shape. u is
  what will be subtracted (times the rate), as the gradient is; the three words that end in a
  new theta (hyperball, radial_brake, keep_params_nonnegative) say so and return what is ADDED;
- "matrix" is the last two axes (in, out), leading axes a stack of separate matrices, a vector
  is one matrix; "leaf" is the whole array; norms are Frobenius norms;
- schedules: a factory returns the function of the 0-based count.
"""

import itertools
import math

import numpy as np
from papers import _at, _float64, _ratio


def _norm(x, axis=None):
    return np.sqrt(np.sum(x**2, axis=axis, keepdims=True))


def _rms(x):
    return np.sqrt(np.mean(x**2))


def _matrix_axes(x):
    return (-2, -1) if x.ndim >= 2 else None


def _pairs(u, thetas):
    u, thetas = np.asarray(u, np.float64), np.asarray(thetas, np.float64)
    assert u.shape == thetas.shape, (u.shape, thetas.shape)
    return zip(u, thetas, strict=True)


# First-order and diagonal methods


def adan(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.98,
    b2=0.92,
    b3=0.99,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Xie et al. 2022, Algorithm 1 with b_i = 1 - beta_i as in the authors' code: d = g - g_prev
    (0 at t = 1), m, v, n averages of g, d, (g + b2 d)^2, all corrected,
    (m_hat + b2 v_hat) / (sqrt(n_hat + eps_root) + eps) + wd theta. The paper decays by division
    by 1 + lr wd; optax has 1 - b2 (its defect) and eps_root 1e-8 (the authors: none)."""
    grads, theta = _float64(grads, theta)
    m, v, n, updates = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta), []
    g_prev = grads[0]
    for t, g in enumerate(grads, 1):
        d, g_prev = g - g_prev, g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        top = m / (1 - b1**t) + b2 * v / (1 - b2**t)
        direction = _ratio(top, np.sqrt(n / (1 - b3**t) + eps_root) + eps)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def ademamix(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    alpha=5.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Pagliardini et al. 2024, Algorithm 1: m1, m2 averages of g by b1, b3, v of g^2;
    (m1_hat + alpha m2) / (sqrt(v_hat + eps_root) + eps) + wd theta: the slow m2 is NOT corrected.
    b1, b2, b3, alpha may vary (0-based step); the corrections are then 1 - prod b_s."""
    grads, theta = _float64(grads, theta)
    m1, m2, v, updates = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta), []
    prod1, prod2 = 1.0, 1.0
    for t, g in enumerate(grads, 1):
        b1_t, b2_t, b3_t = _at(b1, t - 1), _at(b2, t - 1), _at(b3, t - 1)
        prod1, prod2 = prod1 * b1_t, prod2 * b2_t
        m1 = b1_t * m1 + (1 - b1_t) * g
        m2 = b3_t * m2 + (1 - b3_t) * g
        v = b2_t * v + (1 - b2_t) * g**2
        top = m1 / (1 - prod1) + _at(alpha, t - 1) * m2
        direction = _ratio(top, np.sqrt(v / (1 - prod2) + eps_root) + eps)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def simplified_ademamix(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.99,
    b2=0.95,
    alpha=0.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Morwani et al. 2025, Simplified AdEMAMix: m = b1 m + g (a sum, not an average, and not
    corrected), v the corrected average of g^2, (m + alpha g) / (sqrt(v_hat + eps_root) + eps)."""
    grads, theta = _float64(grads, theta)
    m, v, prod2, updates = np.zeros_like(theta), np.zeros_like(theta), 1.0, []
    for t, g in enumerate(grads, 1):
        b2_t = _at(b2, t - 1)
        prod2 = prod2 * b2_t
        m = _at(b1, t - 1) * m + g
        v = b2_t * v + (1 - b2_t) * g**2
        v_hat = v / (1 - prod2)
        direction = _ratio(m + _at(alpha, t - 1) * g, np.sqrt(v_hat + eps_root) + eps)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def adopt(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.9999,
    eps=1e-6,
    nesterov=False,
    use_clipping=True,
    clip_value_fn=lambda t: t**0.25,
):
    """Taniguchi et al. 2024 as papers.adopt, with the arguments of optax's alias beyond it:
    use_clipping=False is the paper's Algorithm 1 (n = g / max(sqrt(v_{t-1}), eps), not clipped),
    clip_value_fn(t) the bound, t = 0, 1, ..., nesterov: u = -lr (b1 m + (1 - b1) n)."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads):
        if t == 0:
            v = g**2
            updates.append(np.zeros_like(theta))
            continue
        n = _ratio(g, np.maximum(np.sqrt(v), eps))
        if use_clipping:
            n = np.clip(n, -clip_value_fn(t), clip_value_fn(t))
        m = b1 * m + (1 - b1) * n
        v = b2 * v + (1 - b2) * g**2
        updates.append(-_at(learning_rate, t) * (b1 * m + (1 - b1) * n if nesterov else m))
    return np.array(updates)


def acprop(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-16,
    eps_root=1e-16,
    weight_decay=0.0,
    previous_mean=True,
):
    """Zhuang et al. 2021: g_t / (sqrt(s_hat_{t-1}) + eps), at t = 1 g / (1 + eps); then
    s = b2 s + (1 - b2)(g - m)^2 + eps_root (kept in s), s_hat_t = s_t / (1 - b2^t). m is m_{t-1}
    (optax's code) or m_t with previous_mean=False (the authors' code, optax's docstring): then
    s is smaller by b1^2 for the same gradients (eps_root apart)."""
    grads, theta = _float64(grads, theta)
    m, s, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        s_hat = np.ones_like(theta) if t == 1 else s / (1 - b2 ** (t - 1))
        direction = _ratio(g, np.sqrt(s_hat) + eps)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        m_prev, m = m, b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - (m_prev if previous_mean else m)) ** 2 + eps_root
        theta = theta + updates[-1]
    return np.array(updates)


def padam(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    p=0.125,
    amsgrad=True,
    bias_correction=True,
):
    """Chen et al. 2020, Algorithm 1: u = -lr m / v_max^p, v_max the maximum of v; here
    (sqrt(v_max) + eps)^(2p), the eps of the authors' code, so p = 1/2 is papers.amsgrad (adam with
    amsgrad=False). bias_correction (not printed): m and v corrected before the maximum. The
    authors' code corrects by sqrt(1 - b2^t) whatever p, after the maximum."""
    grads, theta = _float64(grads, theta)
    m, v, v_max, updates = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if bias_correction else (m, v)
        v_max = np.maximum(v_max, v_hat) if amsgrad else v_hat
        direction = _ratio(m_hat, (np.sqrt(v_max) + eps) ** (2 * p))
        updates.append(-_at(learning_rate, t - 1) * direction)
    return np.array(updates)


def rprop(
    grads,
    theta,
    *,
    learning_rate,
    eta_minus=0.5,
    eta_plus=1.2,
    min_step_size=1e-6,
    max_step_size=50.0,
):
    """iRprop-, Igel & Huesken 2003 (Riedmiller & Braun 1993 without the step back): the step, at
    first learning_rate, is multiplied by eta_plus / eta_minus where g g_prev > 0 / < 0 (clipped
    then, and only then); after a flip g counts as 0, here and as g_prev; u = -sign(g) step.
    optax is one step late; torch also clips the first step."""
    grads, theta = _float64(grads, theta)
    step, sign_prev, updates = np.full_like(theta, learning_rate), np.zeros_like(theta), []
    for g in grads:
        same = np.sign(g) * sign_prev
        grown = np.clip(step * eta_plus, min_step_size, max_step_size)
        shrunk = np.clip(step * eta_minus, min_step_size, max_step_size)
        step = np.where(same > 0, grown, np.where(same < 0, shrunk, step))
        sign_prev = np.where(same < 0, 0.0, np.sign(g))
        updates.append(-sign_prev * step)
    return np.array(updates)


def _optimistic(directions, alpha, beta):
    previous, out = directions[0], []
    for t, r in enumerate(directions, 1):
        a, b = _at(alpha, t - 1), _at(beta, t - 1)
        out.append((a + b) * r - b * previous)
        previous = r
    return np.array(out)


def optimistic_gradient_descent(grads, theta, *, learning_rate, alpha=1.0, beta=1.0):
    """Mokhtari, Ozdaglar & Pattathil 2020, generalized OGDA: u = -lr ((alpha + beta) g -
    beta g_prev) with g_0 = g_1 (Daskalakis et al. 2018: g_0 = 0)."""
    grads, theta = _float64(grads, theta)
    rates = [_at(learning_rate, t) for t in range(len(grads))]
    moved = _optimistic(grads, alpha, beta)
    return np.array([-lr * x for lr, x in zip(rates, moved, strict=True)])


def optimistic_adam(
    grads,
    theta,
    *,
    learning_rate,
    alpha=1.0,
    beta=1.0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=False,
):
    """Daskalakis et al. 2018, Algorithm 1 (u = -2 lr r_t + lr r_{t-1}, r Adam's direction) as
    optax's v2: r = (alpha + beta) r_t - beta r_{t-1}, r_0 = r_1 (paper: 0), and the rate of THIS
    step on both. nesterov: Dozat's m_hat (optax's default, not the paper's)."""
    grads, theta = _float64(grads, theta)
    m, v, directions = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        directions.append(_ratio(m_hat, np.sqrt(v / (1 - b2**t) + eps_root) + eps))
    moved = _optimistic(directions, alpha, beta)
    return np.array([-_at(learning_rate, t) * x for t, x in enumerate(moved)])


def qhm(grads, theta, *, learning_rate, beta=0.999, nu=0.7):
    """Ma & Yarats 2019 (QHM) with the paper's rule of thumb as defaults: m = beta m +
    (1 - beta) g, not corrected, u = -lr ((1 - nu) g + nu m)."""
    grads, theta = _float64(grads, theta)
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        updates.append(-_at(learning_rate, t - 1) * ((1 - nu) * g + nu * m))
    return np.array(updates)


def qhadam(grads, theta, *, learning_rate, b1=0.995, b2=0.999, nu1=0.7, nu2=1.0, eps=1e-8):
    """Ma & Yarats 2019 (QHAdam): ((1 - nu1) g + nu1 m_hat) / (sqrt((1 - nu2) g^2 +
    nu2 v_hat) + eps). Defaults: what the authors recommend instead of Adam's b1 = 0.9 (their
    code's own are Adam's: nus 1, b1 0.9)."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        top = (1 - nu1) * g + nu1 * m / (1 - b1**t)
        square = (1 - nu2) * g**2 + nu2 * v / (1 - b2**t)
        updates.append(-_at(learning_rate, t - 1) * _ratio(top, np.sqrt(square) + eps))
    return np.array(updates)


def aggmo(grads, theta, *, learning_rate, betas=(0.0, 0.9, 0.99)):
    """Lucas et al. 2019: v_i = beta_i v_i - g for every i, theta + lr / K sum_i v_i:
    sums, not averages, each with weight 1 / K."""
    grads, theta = _float64(grads, theta)
    velocities, updates = [np.zeros_like(theta) for _ in betas], []
    for t, g in enumerate(grads, 1):
        velocities = [b * v - g for b, v in zip(betas, velocities, strict=True)]
        updates.append(_at(learning_rate, t - 1) * sum(velocities) / len(betas))
    return np.array(updates)


def sophia(
    grads,
    theta,
    *,
    learning_rate,
    hessians,
    b1=0.965,
    b2=0.99,
    eps=1e-8,
    weight_decay=1e-4,
    gamma=0.01,
    clip_threshold=1.0,
    update_interval=10,
    lagged=True,
):
    """Liu et al. 2023, Algorithm 3 in optax's form: clip(m_hat / max(gamma h, eps), +-threshold)
    + wd theta; h = b2 h + (1 - b2) hessians[t] at 0-based steps 0, k, 2k, ..., never corrected.
    lagged: the step divides by the h BEFORE that (optax; so h = 0 at first), False: by the new
    h (paper). The paper does not correct m."""
    grads, theta = _float64(grads, theta)
    hessians = np.asarray(hessians, np.float64)
    m, h, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        h_new = h
        if (t - 1) % update_interval == 0:
            h_new = b2 * h + (1 - b2) * hessians[t - 1]
        m = b1 * m + (1 - b1) * g
        used = h if lagged else h_new
        direction = _ratio(m / (1 - b1**t), np.maximum(gamma * used, eps))
        if clip_threshold is not None:
            direction = np.clip(direction, -clip_threshold, clip_threshold)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        h, theta = h_new, theta + updates[-1]
    return np.array(updates)


def madgrad(grads, theta, *, learning_rate, momentum=0.9, weight_decay=0.0, eps=1e-6):
    """Defazio & Jelassi 2021, Algorithm 1: l = (lr + eps) sqrt(t), s = s + l g, G = G + l g^2,
    z = theta_0 - s / (cbrt(G) + eps), theta = momentum theta + (1 - momentum) z. lr + eps: the
    authors' code. Coupled decay g + wd theta. momentum = 0: theta = z."""
    grads, theta = _float64(grads, theta)
    start, s, G, updates = theta, np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * theta
        weight = (_at(learning_rate, t - 1) + eps) * np.sqrt(t)
        s = s + weight * g
        G = G + weight * g**2
        z = start - _ratio(s, np.cbrt(G) + eps)
        updates.append((1 - momentum) * (z - theta))
        theta = theta + updates[-1]
    return np.array(updates)


def stable_adamw(
    grads, theta, *, learning_rate, b1=0.9, b2=0.99, eps=1e-6, weight_decay=1e-2, clip_threshold=1.0
):
    """Wortsman et al. 2023, Algorithm 2: AdamW with eta = lr / max(1, RMS_t / clip_threshold),
    RMS_t = RMS of the leaf's g / max(sqrt(v_hat), eps); eta is on the decay as well (as printed;
    the authors' code keeps lr there). Both moments corrected (the paper folds that into b),
    eps out. Defaults: optimi's."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        root = np.sqrt(v / (1 - b2**t))
        rms = _rms(_ratio(g, np.maximum(root, eps)))
        rate = _at(learning_rate, t - 1) / max(1.0, rms / clip_threshold)
        direction = _ratio(m / (1 - b1**t), root + eps)
        updates.append(-rate * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def adam_atan2(grads, theta, *, learning_rate, b1=0.9, b2=0.999, a=1.0, b=1.0, weight_decay=0.0):
    """Everett et al. 2024, Adam-atan2: a atan2(m_hat, b sqrt(v_hat)) + wd theta, no eps; atan2(0,
    0) = 0. Common: a = 4/pi = 1.27, b = 1 (then |m_hat| = sqrt(v_hat) moves by lr, as Adam)."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        direction = a * np.arctan2(m / (1 - b1**t), b * np.sqrt(v / (1 - b2**t)))
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def sign_sgd(grads, theta, *, learning_rate):
    """Bernstein et al. 2018, Algorithm 1: u = -lr sign(g)."""
    grads, theta = _float64(grads, theta)
    return np.array([-_at(learning_rate, t) * np.sign(g) for t, g in enumerate(grads)])


def fromage(grads, theta, *, learning_rate, min_norm=1e-6):
    """Bernstein et al. 2020, Algorithm 1: theta = (theta - lr |theta| / |g| g) / sqrt(1 + lr^2),
    norms of the leaf; not in the paper: both norms at least min_norm, ratio 1 if one is 0."""
    grads, theta = _float64(grads, theta)
    updates = []
    for t, g in enumerate(grads, 1):
        lr = _at(learning_rate, t - 1)
        theta_norm, g_norm = max(_norm(theta).item(), min_norm), max(_norm(g).item(), min_norm)
        ratio = theta_norm / g_norm if theta_norm > 0 and g_norm > 0 else 1.0
        updates.append((theta - lr * ratio * g) / np.sqrt(1 + lr**2) - theta)
        theta = theta + updates[-1]
    return np.array(updates)


# Sublinear memory


def sm3(grads, theta, *, learning_rate, momentum=0.9, eps=1e-8):
    """Anil et al. 2019, SM3-II with covers = slices along each axis: nu = g^2 + min over axes of
    mu_axis, mu_axis = max of nu over the other axes (a vector: nu itself); then
    m = momentum m + (1 - momentum) g / sqrt(nu + eps), 0 where nu = 0, u = -lr m. eps: optax's."""
    grads, theta = _float64(grads, theta)
    axes = range(theta.ndim)
    others = [tuple(j for j in axes if j != i) for i in axes] if theta.ndim > 1 else [()]
    covers = [np.zeros(theta.max(axis=o, keepdims=True).shape) for o in others]
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        least = np.full_like(theta, np.inf)
        for mu in covers:
            least = np.minimum(least, mu)
        nu = g**2 + least
        covers = [nu.max(axis=o, keepdims=True) for o in others]
        divided = np.where(nu > 0, g / np.sqrt(np.where(nu > 0, nu + eps, 1.0)), 0.0)
        m = momentum * m + (1 - momentum) * divided
        updates.append(-_at(learning_rate, t - 1) * m)
    return np.array(updates)


def adafactor(
    grads,
    theta,
    *,
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
):
    """Shazeer & Stern 2018, Algorithms 4-5: averages with b_t = 1 - (t - offset)^-decay_rate of
    the row and column means of g^2 + eps, v = row col / mean(row), over the two largest axes (of
    equals the later) if both reach the minimum, else the full v; g / sqrt(v), divided by max(1,
    RMS / threshold), times lr, times max(1e-3, RMS(theta)), averaged by momentum, plus wd theta
    WITHOUT lr. optax's order; the paper: relative steps, momentum before the scale."""
    grads, theta = _float64(grads, theta)
    shape, axes = theta.shape, None
    if factored and theta.ndim >= 2:
        second, first = (int(i) for i in np.argsort(shape, kind="stable")[-2:])
        axes = (second, first) if shape[second] >= min_dim_size_to_factor else None
    v, row, col = 0.0, 0.0, 0.0
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        b = 1 - float(t - decay_offset) ** -decay_rate
        square = g**2 + eps
        if axes is None:
            v = b * v + (1 - b) * square
        else:
            row = b * row + (1 - b) * square.mean(axis=axes[1], keepdims=True)
            col = b * col + (1 - b) * square.mean(axis=axes[0], keepdims=True)
            v = _ratio(row, row.mean(axis=axes[0], keepdims=True)) * col
        u = _ratio(g, np.sqrt(v))
        if clipping_threshold is not None:
            u = u / max(1.0, _rms(u) / clipping_threshold)
        if learning_rate is not None:
            u = _at(learning_rate, t - 1) * u
        if multiply_by_parameter_scale:
            u = u * max(1e-3, _rms(theta))
        if momentum is not None:
            m = momentum * m + (1 - momentum) * u
            u = m
        if weight_decay_rate is not None:
            u = u + _at(weight_decay_rate, t - 1) * theta
        updates.append(-u)
        theta = theta + updates[-1]
    return np.array(updates)


def adamini(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    """Zhang et al. 2024, Adam-mini: Adam with v an average of the mean of g^2 over a block: one
    output's weights (the input axis -2) of a matrix, the whole of a vector; both corrected, eps
    out, plus wd theta. The authors choose blocks by name (heads, outputs, or the leaf)."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), 0.0, []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.mean(g**2, axis=-2 if g.ndim >= 2 else None, keepdims=True)
        direction = _ratio(m / (1 - b1**t), np.sqrt(v / (1 - b2**t)) + eps)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def came(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    eps=(1e-30, 1e-16),
    clip_threshold=1.0,
    weight_decay=0.0,
):
    """Luo et al. 2023, Algorithm 2: u = g / sqrt(v), v = row col / mean(row) from averages by b2
    of g^2 + eps[0], clipped to RMS clip_threshold over the leaf; m = b1 m + (1 - b1) u;
    S factored alike by b3 from (u - m)^2 + eps[1]; m / sqrt(S) + wd theta. A vector: full v, m
    not divided (authors' code). Nothing corrected; means, not sums, which is the same."""
    grads, theta = _float64(grads, theta)
    matrix = theta.ndim >= 2
    m, updates = np.zeros_like(theta), []
    v, row, col, S_row, S_col = 0.0, 0.0, 0.0, 0.0, 0.0

    def outer(row, col):
        return _ratio(row, row.mean(axis=-2, keepdims=True)) * col

    for t, g in enumerate(grads, 1):
        square = g**2 + eps[0]
        if matrix:
            row = b2 * row + (1 - b2) * square.mean(axis=-1, keepdims=True)
            col = b2 * col + (1 - b2) * square.mean(axis=-2, keepdims=True)
            v = outer(row, col)
        else:
            v = b2 * v + (1 - b2) * square
        u = _ratio(g, np.sqrt(v))
        u = u / max(1.0, _rms(u) / clip_threshold)
        m = b1 * m + (1 - b1) * u
        direction = m
        if matrix:
            instability = (u - m) ** 2 + eps[1]
            S_row = b3 * S_row + (1 - b3) * instability.mean(axis=-1, keepdims=True)
            S_col = b3 * S_col + (1 - b3) * instability.mean(axis=-2, keepdims=True)
            direction = _ratio(m, np.sqrt(outer(S_row, S_col)))
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


# Words before an optimizer: gradients to gradients


def mars(grads, gamma=0.025, b1=0.95, max_norm=1.0):
    """Yuan et al. 2024, approximate form: c = g + gamma b1 / (1 - b1)(g - g_prev),
    divided by its norm (of the leaf) if that exceeds 1. g_0 = g_1: c_1 = g_1 before the norm (the
    authors' code starts from g_0 = 0)."""
    grads = np.asarray(grads, np.float64)
    g_prev, out = grads[0], []
    for g in grads:
        c = g + gamma * b1 / (1 - b1) * (g - g_prev)
        norm = _norm(c).item()
        out.append(c * max_norm / norm if norm > max_norm else c)
        g_prev = g
    return np.array(out)


def grokfast(grads, alpha=0.98, lamb=2.0):
    """Lee et al. 2024, Grokfast-EMA: s = alpha s + (1 - alpha) g with s_1 = g_1, g + lamb s."""
    grads = np.asarray(grads, np.float64)
    s, out = grads[0], []
    for g in grads:
        s = alpha * s + (1 - alpha) * g
        out.append(g + lamb * s)
    return np.array(out)


def centralize(u, axis=0):
    """Yong et al. 2020, eq. 1: minus the mean over every axis but `axis`, the OUTPUT axis in the
    paper. optax keeps the FIRST axis, 0 (out of torch's (out, in)); a kernel (in, out) needs
    axis=-1 to follow the paper. Vectors and scalars: unchanged."""
    out = []
    for x in np.asarray(u, np.float64):
        if x.ndim > 1:
            axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
            x = x - x.mean(axis=axes, keepdims=True)
        out.append(x)
    return np.array(out)


def adaptive_grad_clip(u, thetas, clipping, eps=1e-3, axis=None):
    """Brock et al. 2021, eq. 3: a unit of norm above c max(|p|, eps) is scaled to that. Units as
    in optax: the whole if at most one axis is longer than 1, else norms over axis 0 (2 or 3
    axes), all but the last (4 or 5 axes), or `axis`. No floor under |u| (optax: 1e-6)."""
    out = []
    for x, p in _pairs(u, thetas):
        over = axis
        if axis is None:
            whole = np.squeeze(x).ndim <= 1
            over = None if whole else {2: 0, 3: 0, 4: (0, 1, 2), 5: (0, 1, 2, 3)}[x.ndim]
        x_norm, limit = _norm(x, over), clipping * np.maximum(_norm(p, over), eps)
        out.append(np.where(x_norm < limit, x, x * _ratio(limit, x_norm + (x_norm == 0))))
    return np.array(out)


# Words after an optimizer's direction


def cautious(u, g):
    """Liang et al. 2024: u [u g > 0] / max(mean of the mask over the leaf, 1e-3), the normaliser
    of C-AdamW and timm (the paper: size / (sum + 1))."""
    u, g = np.asarray(u, np.float64), np.asarray(g, np.float64)
    masks = np.sign(u) * np.sign(g) > 0  # not u * g, which underflows
    return np.array([x * k / max(k.mean(), 1e-3) for x, k in zip(u, masks, strict=True)])


def cautious_weight_decay(u, thetas, weight_decay):
    """Chen et al. 2025: u + wd theta [u theta > 0], before lr: only where u shrinks |theta|
    already (the paper's mask is u theta >= 0: it also decays where u = 0)."""
    pairs = _pairs(u, thetas)
    return np.array([x + weight_decay * p * (np.sign(x) * np.sign(p) > 0) for x, p in pairs])


def clip_by_block_rms(u, threshold):
    """Shazeer & Stern 2018, section 6: u / max(1, RMS(u) / threshold), RMS over the leaf."""
    return np.array([x / max(1.0, _rms(x) / threshold) for x in np.asarray(u, np.float64)])


def clip_update_norm(u, thetas, clipping, eps=1e-3):
    """u min(1, c max(|p|, eps) / |u|), norms of the leaf: adaptive_grad_clip with one unit (not
    levanter's word of this name, which clips by past norms)."""
    out = []
    for x, p in _pairs(u, thetas):
        limit, norm = clipping * max(_norm(p).item(), eps), _norm(x).item()
        out.append(x * limit / norm if norm > limit else x)
    return np.array(out)


def normalize_by_update_norm(u, scale_factor=1.0, eps=1e-6):
    """optax: u scale_factor / (|u| + eps), one norm over all leaves; u and the result are dicts
    of (steps, *shape)."""
    u = {k: np.asarray(x, np.float64) for k, x in u.items()}
    steps = len(next(iter(u.values())))
    norms = [np.sqrt(sum(np.sum(x[t] ** 2) for x in u.values())) + eps for t in range(steps)]
    return {
        k: np.array([_ratio(scale_factor * r, n) for r, n in zip(x, norms, strict=True)])
        for k, x in u.items()
    }


def scale_by_param_block_norm(u, thetas, min_scale=1e-3):
    """optax: u max(|theta|, min_scale), norm of the leaf."""
    return np.array([x * max(_norm(p).item(), min_scale) for x, p in _pairs(u, thetas)])


def scale_by_param_block_rms(u, thetas, min_scale=1e-3):
    """optax, Adafactor's relative step: u max(RMS(theta), min_scale), RMS of the leaf."""
    return np.array([x * max(_rms(p), min_scale) for x, p in _pairs(u, thetas)])


def uw_floor(u, thetas, ratio=0.35, per_row=False):
    """modded-nanogpt, track 3: u max(1, ratio |theta| / |u|), norms of each matrix, or with
    per_row of each output's weights: the rows of torch's (out, in), here one index of the last
    axis, norms over axis -2. A vector is one row. Zero u or theta: unchanged."""
    out = []
    for x, p in _pairs(u, thetas):
        axes = (-2 if per_row else (-2, -1)) if x.ndim >= 2 else None
        x_norm, floor = _norm(x, axes), ratio * _norm(p, axes)
        out.append(x * np.maximum(1.0, floor / np.where(x_norm == 0, 1.0, x_norm)))
    return np.array(out)


def hyperball(u, thetas, learning_rate):
    """AdamH, MuonH: q = theta - lr u |theta| / max(|u|, 1e-10), theta' = q |theta| / |q|, norms
    of each matrix; returns theta' - theta (what is added). A zero theta stays zero."""
    out = []
    for t, (x, p) in enumerate(_pairs(u, thetas)):
        axes = _matrix_axes(x)
        radius = _norm(p, axes)
        q = p - _at(learning_rate, t) * x * radius / np.maximum(_norm(x, axes), 1e-10)
        out.append(_ratio(q * radius, _norm(q, axes)) - p)
    return np.array(out)


def radial_brake(u, thetas, learning_rate):
    """modded-nanogpt PR 294, per matrix: c = <u, p> / |p|^2, c < 0 is outward (u is subtracted);
    u' = u - c p / 2 if c < 0 else u: the outward component halved, the inward kept, the tangent
    kept. q = p - lr u', R = |p| - lr <u', p> / |p| (= |p| (1 - lr c'), c' the braked c),
    p' = q R / |q|: the radius moves by the radial part alone. R is at least 0 (the record: 1e-8).
    Returns p' - p (what is added); a zero p stays zero."""
    out = []
    for t, (x, p) in enumerate(_pairs(u, thetas)):
        axes, lr = _matrix_axes(x), _at(learning_rate, t)
        radius = _norm(p, axes)
        unit = _ratio(p, radius)
        radial = np.sum(x * unit, axis=axes, keepdims=True)
        braked = x - np.where(radial < 0, 0.5 * radial, 0.0) * unit
        q = p - lr * braked
        target = np.maximum(radius - lr * np.where(radial < 0, 0.5 * radial, radial), 0.0)
        target = np.where(radius == 0, 0.0, target)
        out.append(_ratio(q * target, _norm(q, axes)) - p)
    return np.array(out)


def keep_params_nonnegative(u, thetas):
    """optax: u is what is ADDED; -theta where theta + u < 0, so that theta ends at 0."""
    return np.array([np.where(p + x < 0, -p, x) for x, p in _pairs(u, thetas)])


# Schedules: functions of the 0-based count


def _line(start, end, fraction):
    return start + (end - start) * fraction


def wsd(peak_value, warmup_steps, stable_steps, decay_steps, init_value=0.0, end_value=0.0):
    """Hu et al. 2024 (MiniCPM), warm-up, stable, decay: init to peak in a line over warmup_steps
    (peak at count warmup_steps), constant, peak to end in a line, then end."""

    def schedule(count):
        if count < warmup_steps:
            return _line(init_value, peak_value, count / warmup_steps)
        count = count - warmup_steps - stable_steps
        if count <= 0:
            return peak_value
        return (
            _line(peak_value, end_value, count / decay_steps) if count < decay_steps else end_value
        )

    return schedule


def power_cooling(init_value, coefficient, total_steps, power=1.2):
    """modded-nanogpt, track 3: min(init_value, coefficient (T - t)^power), 0 from t = T on."""
    return lambda count: min(init_value, coefficient * max(total_steps - count, 0) ** power)


def sgdr(cosine_kwargs):
    """Loshchilov & Hutter 2017, eq. 5, cycles as in optax: dicts of init_value, peak_value,
    warmup_steps, decay_steps (the whole cycle, warm-up included), end_value=0, exponent=1; a
    line init to peak, then peak to end by ((1 + cos(pi s)) / 2)^exponent; then end."""
    cycles = list(cosine_kwargs)

    def schedule(count):
        for i, k in enumerate(cycles):
            if count < k["decay_steps"] or i == len(cycles) - 1:
                break
            count = count - k["decay_steps"]
        peak, warmup = k["peak_value"], k["warmup_steps"]
        if count < warmup:
            return _line(k["init_value"], peak, count / warmup)
        s = min((count - warmup) / (k["decay_steps"] - warmup), 1.0)
        cosine = ((1 + math.cos(math.pi * s)) / 2) ** k.get("exponent", 1.0)
        return _line(k.get("end_value", 0.0), peak, cosine)

    return schedule


def piecewise_interpolate(interpolate_type, init_value, boundaries_and_scales=None):
    """optax: init_value at 0, multiplied by each scale AT its boundary; between two boundaries a
    line ("linear") or half a cosine ("cosine") from value to value; then the last value."""
    points = [(0, init_value)]
    for boundary, scale in sorted((boundaries_and_scales or {}).items()):
        points.append((boundary, points[-1][1] * scale))

    def schedule(count):
        for (left, start), (right, end) in itertools.pairwise(points):
            if left <= count < right:
                s = (count - left) / (right - left)
                return _line(start, end, s if interpolate_type == "linear" else _half(s))
        return points[-1][1]

    def _half(s):
        return (1 - math.cos(math.pi * s)) / 2

    return schedule


# Words that read the loss


def reduce_on_plateau(
    losses,
    factor=0.1,
    patience=10,
    rtol=1e-4,
    atol=0.0,
    cooldown=0,
    accumulation_size=1,
    min_scale=0.0,
):
    """optax.contrib: the scale of each step. Every accumulation_size values their mean is judged:
    better than (1 - rtol) best - atol is the new best; else, unless cooling down, the
    patience-th miss in a row multiplies the scale by factor (not below min_scale) and starts
    `cooldown` judgements without a count (the best is still kept). torch waits one miss more."""
    scale, best, misses, cooling, values, scales = 1.0, np.inf, 0, 0, [], []
    for loss in losses:
        values.append(float(loss))
        if len(values) == accumulation_size:
            mean, values = sum(values) / accumulation_size, []
            if mean < (1 - rtol) * best - atol:
                best, misses = mean, 0
            else:
                misses += 1
            if cooling > 0:
                cooling, misses = cooling - 1, 0
            else:
                if misses == patience:
                    scale, misses, cooling = scale * factor, 0, cooldown
                scale = max(scale, min_scale)
        scales.append(scale)
    return np.array(scales)


def skip_spikes(losses, grad_norms=None, window=128, factor=6.0):
    """OLMo 2 (SkipStepOptimizer): True where the step is applied: x - mean <= factor std for the
    loss and the norm, mean and Bessel std of the `window` values BEFORE this one, skipped values
    among them (a NaN is skipped). Here nothing is judged before the window is full; OLMo-core
    judges from max(20, window / 2) values on (this one counted), levanter from window / 2 and
    with the population std, at least 1e-6."""
    series = [np.asarray(losses, np.float64)]
    if grad_norms is not None:
        series.append(np.asarray(grad_norms, np.float64))
    applied = np.ones(len(series[0]), bool)
    for x in series:
        for t in range(window, len(x)):
            past = x[t - window : t]
            applied[t] &= x[t] - past.mean() <= factor * past.std(ddof=1)
    return applied
