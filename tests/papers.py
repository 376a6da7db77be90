"""Float64 NumPy loops written from the papers' own formulas: the oracles of the optimizer tests.

Every function takes the gradients g_1..g_T and the initial theta (one array = one layer) and
returns the T updates u_t, theta_t = theta_{t-1} + u_t: sign and learning rate are included.
Three conventions hold throughout: t counts from 1 as in the papers, schedules are called with
the 0-based step t - 1, and 0/0 is 0. Where a common form differs from the printed algorithm,
the docstring says so. "eps out" is x / (sqrt(v) + eps), "eps in" is x / sqrt(v + eps).
"""

import numpy as np


def _float64(grads, theta):
    grads, theta = np.asarray(grads, np.float64), np.asarray(theta, np.float64)
    assert grads.shape[1:] == theta.shape, (grads.shape, theta.shape)
    return grads, theta


def _at(value, step):
    return float(value(step)) if callable(value) else value


def _ratio(a, b):
    """a / b with 0/0 = 0."""
    return a / np.where((a == 0) & (b == 0), 1.0, b)


def sgd(grads, theta, *, learning_rate, momentum=None, nesterov=False):
    """Polyak 1964, lr outside the buffer: m = mu m + g, u = -lr m; no momentum: u = -lr g.
    Nesterov's form at the shifted point (Bengio et al. 2012): u = -lr (g + mu m)."""
    grads, theta = _float64(grads, theta)
    mu, m, updates = momentum or 0.0, np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = mu * m + g
        updates.append(-_at(learning_rate, t - 1) * (g + mu * m if nesterov else m))
    return np.array(updates)


def momentum(grads, theta, *, learning_rate, momentum=0.9, inside=False):
    """Heavy ball, Polyak 1964. inside=False: v = gamma v + g, u = -lr v.
    inside=True (Sutskever et al. 2013, eqs. 1-2): v = gamma v + lr g, u = -v."""
    grads, theta = _float64(grads, theta)
    gamma, v, updates = momentum, np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        lr = _at(learning_rate, t - 1)
        v = gamma * v + (lr * g if inside else g)
        updates.append(-v if inside else -lr * v)
    return np.array(updates)


def adagrad(grads, theta, *, learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    """Duchi, Hazan & Singer 2011, diagonal form: G = G + g^2 from the initial value;
    u = -lr g / sqrt(G + eps), eps in."""
    grads, theta = _float64(grads, theta)
    G, updates = np.full_like(theta, initial_accumulator_value), []
    for t, g in enumerate(grads, 1):
        G = G + g**2
        updates.append(-_at(learning_rate, t - 1) * _ratio(g, np.sqrt(G + eps)))
    return np.array(updates)


def rmsprop(
    grads,
    theta,
    *,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
):
    """Tieleman & Hinton 2012 (lecture 6e); centered with lr inside the buffer: Graves 2013,
    eqs. 38-41: g / sqrt(v - m^2 + eps), Delta = mu Delta - lr (that). Options: eps out, m and v
    both divided by 1 - decay^t before v - m^2."""
    grads, theta = _float64(grads, theta)
    m, v = np.zeros_like(theta), np.full_like(theta, initial_scale)
    mu, Delta, updates = momentum or 0.0, np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = decay * m + (1 - decay) * g
        v = decay * v + (1 - decay) * g**2
        mass = 1 - decay**t if bias_correction else 1.0
        var = v / mass
        if centered:  # a variance: below zero only by rounding
            var = np.maximum(var - (m / mass) ** 2, 0.0)
        root = np.sqrt(var + eps) if eps_in_sqrt else np.sqrt(var) + eps
        step = -_at(learning_rate, t - 1) * _ratio(g, root)
        Delta = mu * Delta + step
        updates.append(step + mu * Delta if nesterov else Delta)
    return np.array(updates)


def adadelta(grads, theta, *, learning_rate=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Zeiler 2012, Algorithm 1: dx = -RMS[dx]_{t-1} / RMS[g]_t g, eps in both roots.
    Added to the paper: lr on the output (not in E[dx^2]), coupled decay g + wd theta."""
    grads, theta = _float64(grads, theta)
    E_g2, E_dx2, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * theta
        E_g2 = rho * E_g2 + (1 - rho) * g**2
        dx = -_ratio(np.sqrt(E_dx2 + eps) * g, np.sqrt(E_g2 + eps))
        E_dx2 = rho * E_dx2 + (1 - rho) * dx**2
        updates.append(_at(learning_rate, t - 1) * dx)
        theta = theta + updates[-1]
    return np.array(updates)


def adam(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False):
    """Kingma & Ba 2015, Algorithm 1: both corrected, eps out (eps_root in). b1, b2 may vary:
    1 - b^t is then 1 - prod b_s. nesterov: Dozat 2016's m_hat, without its factor b2 on v_hat."""
    grads, theta = _float64(grads, theta)
    m, v, prod1, prod2, updates = np.zeros_like(theta), np.zeros_like(theta), 1.0, 1.0, []
    for t, g in enumerate(grads, 1):
        b1_t, b1_next, b2_t = _at(b1, t - 1), _at(b1, t), _at(b2, t - 1)
        prod1, prod2 = prod1 * b1_t, prod2 * b2_t
        m = b1_t * m + (1 - b1_t) * g
        v = b2_t * v + (1 - b2_t) * g**2
        m_hat = m / (1 - prod1)
        v_hat = v / (1 - prod2)
        if nesterov:
            m_hat = b1_next * m / (1 - prod1 * b1_next) + (1 - b1_t) * g / (1 - prod1)
        updates.append(-_at(learning_rate, t - 1) * _ratio(m_hat, np.sqrt(v_hat + eps_root) + eps))
    return np.array(updates)


def adam_uncorrected(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, section 6.4: Algorithm 1 with the bias correction left out; eps out."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        updates.append(-_at(learning_rate, t - 1) * _ratio(m, np.sqrt(v) + eps))
    return np.array(updates)


def adam_eps_hat(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, end of section 2: alpha_t = alpha sqrt(1 - b2^t) / (1 - b1^t),
    u = -alpha_t m / (sqrt(v) + eps_hat): eps is added before v is corrected."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        alpha_t = _at(learning_rate, t - 1) * np.sqrt(1 - b2**t) / (1 - b1**t)
        updates.append(-alpha_t * _ratio(m, np.sqrt(v) + eps))
    return np.array(updates)


def adamw(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=1e-4,
    nesterov=False,
):
    """Loshchilov & Hutter 2019, Algorithm 2, with lr also on the decay (eta_t = alpha_t = lr):
    u = -lr (m_hat / (sqrt(v_hat + eps_root) + eps) + wd theta_{t-1})."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        direction = _ratio(m_hat, np.sqrt(v_hat + eps_root) + eps)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def nadam(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Dozat 2016 with constant mu = b1 and no factor b2 on v_hat; both corrected, eps out."""
    kw = dict(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return adam(grads, theta, nesterov=True, **kw)


def nadamw(
    grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, weight_decay=1e-4
):
    """Dozat 2016 as in nadam, with the decoupled decay of Loshchilov & Hutter 2019."""
    kw = dict(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return adamw(grads, theta, weight_decay=weight_decay, nesterov=True, **kw)


def nadam_torch(
    grads, theta, *, learning_rate=2e-3, b1=0.9, b2=0.999, eps=1e-8, momentum_decay=4e-3
):
    """Dozat 2016 with mu_t = b1 (1 - 0.5 0.96^(t psi)) in the look-ahead and its products, but
    m an ema with constant b1; v_hat = v / (1 - b2^t) without the factor b2; eps out."""
    grads, theta = _float64(grads, theta)
    m, v, prod, updates = np.zeros_like(theta), np.zeros_like(theta), 1.0, []
    for t, g in enumerate(grads, 1):
        mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        prod = prod * mu
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = mu_next * m / (1 - prod * mu_next) + (1 - mu) * g / (1 - prod)
        v_hat = v / (1 - b2**t)
        updates.append(-_at(learning_rate, t - 1) * _ratio(m_hat, np.sqrt(v_hat) + eps))
    return np.array(updates)


def adamax(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, Algorithm 2: u = max(b2 u, |g| + eps), only m corrected; eps is not in
    the paper and stands inside the max."""
    kw = dict(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps)
    return adamaxw(grads, theta, weight_decay=0.0, **kw)


def adamaxw(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    """Kingma & Ba 2015, Algorithm 2 as in adamax, plus decoupled decay:
    -lr (m / (1 - b1^t) / u + wd theta_{t-1})."""
    grads, theta = _float64(grads, theta)
    m, u, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, np.abs(g) + eps)
        direction = _ratio(m / (1 - b1**t), u)
        updates.append(-_at(learning_rate, t - 1) * (direction + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


def amsgrad(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Reddi, Kale & Kumar 2018, Algorithm 2 (which corrects nothing) with Adam's corrections:
    v_max = max over t of the CORRECTED v, m corrected, eps out (eps_root in)."""
    grads, theta = _float64(grads, theta)
    m, v, v_max, updates = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v / (1 - b2**t))
        m_hat = m / (1 - b1**t)
        updates.append(-_at(learning_rate, t - 1) * _ratio(m_hat, np.sqrt(v_max + eps_root) + eps))
    return np.array(updates)


def amsgrad_torch(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Reddi, Kale & Kumar 2018, Algorithm 2: max of the RAW v as printed, then that max divided
    by 1 - b2^t and m by 1 - b1^t (Adam's corrections, not in the paper); eps out."""
    grads, theta = _float64(grads, theta)
    m, v, v_max, updates = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - b1**t)
        v_hat = v_max / (1 - b2**t)
        updates.append(-_at(learning_rate, t - 1) * _ratio(m_hat, np.sqrt(v_hat) + eps))
    return np.array(updates)


def radam(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    threshold=5.0,
    nesterov=False,
):
    """Liu et al. 2020, Algorithm 2: r_t m_hat / (sqrt(v_hat + eps_root) + eps) if rho_t >=
    threshold (paper: > 4, no eps), else m_hat alone; both corrected. nesterov: Dozat's m_hat."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    rho_inf = 2 / (1 - np.longdouble(b2)) - 1
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        b2t = np.longdouble(b2) ** t  # rho cancels: in float64 it would be the oracle that is wrong
        rho = float(rho_inf - 2 * t * b2t / (1 - b2t))
        if rho >= threshold:
            v_hat = v / (1 - b2**t)
            r2 = float((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            direction = np.sqrt(r2) * _ratio(m_hat, np.sqrt(v_hat + eps_root) + eps)
        else:
            direction = m_hat
        updates.append(-_at(learning_rate, t - 1) * direction)
    return np.array(updates)


def adabelief(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    """Zhuang et al. 2020, Algorithm 2: s = b2 s + (1 - b2)(g - m_t)^2 + eps_root (kept in s),
    both corrected, m_hat / (sqrt(s_hat) + eps)."""
    grads, theta = _float64(grads, theta)
    m, s, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps_root
        m_hat = m / (1 - b1**t)
        s_hat = s / (1 - b2**t)
        updates.append(-_at(learning_rate, t - 1) * _ratio(m_hat, np.sqrt(s_hat) + eps))
    return np.array(updates)


def yogi(
    grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-3, initial_m=1e-6, initial_v=1e-6
):
    """Zaheer et al. 2018, Algorithm 2: v = v - (1 - b2) sign(v - g^2) g^2, eps out; m and v from
    their initial values and both divided by 1 - b^t (not in the printed algorithm)."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.full_like(theta, initial_m), np.full_like(theta, initial_v), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - g**2) * g**2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        updates.append(-_at(learning_rate, t - 1) * _ratio(m_hat, np.sqrt(v_hat) + eps))
    return np.array(updates)


def lion(grads, theta, *, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    """Chen et al. 2023, Algorithm 2: c = b1 m + (1 - b1) g, u = -lr (sign(c) + wd theta_{t-1}),
    then m = b2 m + (1 - b2) g; nothing corrected, no eps."""
    grads, theta = _float64(grads, theta)
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        c = b1 * m + (1 - b1) * g
        updates.append(-_at(learning_rate, t - 1) * (np.sign(c) + weight_decay * theta))
        m = b2 * m + (1 - b2) * g
        theta = theta + updates[-1]
    return np.array(updates)


def signum(grads, theta, *, learning_rate, beta=0.9):
    """Bernstein et al. 2018, Algorithm 2: m = beta m + (1 - beta) g, u = -lr sign(m)."""
    grads, theta = _float64(grads, theta)
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        updates.append(-_at(learning_rate, t - 1) * np.sign(m))
    return np.array(updates)


def lamb(
    grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0
):
    """You et al. 2020, Algorithm 2, phi = identity: u = r + wd theta with r Adam's direction
    (both corrected, eps out), step -lr |theta| / |u| u; ratio 1 if either norm is 0."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        u = _ratio(m_hat, np.sqrt(v_hat + eps_root) + eps) + weight_decay * theta
        theta_norm, u_norm = np.sqrt(np.sum(theta**2)), np.sqrt(np.sum(u**2))
        ratio = theta_norm / u_norm if theta_norm > 0 and u_norm > 0 else 1.0
        updates.append(-_at(learning_rate, t - 1) * ratio * u)
        theta = theta + updates[-1]
    return np.array(updates)


def lars(
    grads,
    theta,
    *,
    learning_rate,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
):
    """You, Gitman & Ginsburg 2017, Algorithm 1, lr inside the buffer: v = mu v + lr lambda d,
    d = g + wd theta, u = -v; lambda = trust |theta| / (|d| + eps), 1 if either norm is 0 (paper:
    |g| + wd |theta| below). nesterov: u = -(lr lambda d + mu v)."""
    grads, theta = _float64(grads, theta)
    mu, v, updates = momentum, np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        d = g + weight_decay * theta
        theta_norm, d_norm = np.sqrt(np.sum(theta**2)), np.sqrt(np.sum(d**2))
        trust = 1.0
        if theta_norm > 0 and d_norm > 0:
            trust = trust_coefficient * theta_norm / (d_norm + eps)
        scaled = _at(learning_rate, t - 1) * trust * d
        v = mu * v + scaled
        updates.append(-(scaled + mu * v) if nesterov else -v)
        theta = theta + updates[-1]
    return np.array(updates)


def novograd(
    grads, theta, *, learning_rate, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0
):
    """Ginsburg et al. 2019, Algorithm 1: v = b2 v + (1 - b2)|g|^2, a scalar with v_1 = |g_1|^2;
    m = b1 m + (g / (sqrt(v + eps_root) + eps) + wd theta), u = -lr m; nothing corrected."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), 0.0, []
    for t, g in enumerate(grads, 1):
        g2 = np.sum(g**2)
        v = g2 if t == 1 else b2 * v + (1 - b2) * g2
        m = b1 * m + (_ratio(g, np.sqrt(v + eps_root) + eps) + weight_decay * theta)
        updates.append(-_at(learning_rate, t - 1) * m)
        theta = theta + updates[-1]
    return np.array(updates)


def laprop(grads, theta, *, learning_rate, b1=0.9, b2=0.999, eps=1e-15):
    """Ziyin, Wang & Ueda 2020, Algorithm 1: n = b2 n + (1 - b2) g^2 (nu = b2, mu = b1), then
    m = b1 m + (1 - b1) g / (sqrt(n / (1 - b2^t)) + eps), u = -lr m / (1 - b1^t)."""
    grads, theta = _float64(grads, theta)
    m, n, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        n = b2 * n + (1 - b2) * g**2
        n_hat = n / (1 - b2**t)
        m = b1 * m + (1 - b1) * _ratio(g, np.sqrt(n_hat) + eps)
        updates.append(-_at(learning_rate, t - 1) * m / (1 - b1**t))
    return np.array(updates)


def adopt(grads, theta, *, learning_rate, b1=0.9, b2=0.9999, eps=1e-6):
    """Taniguchi et al. 2024, clipped form; t counts from 0 here as in the paper: v_0 = g_0^2 and
    no step; then n = clip(g / max(sqrt(v_{t-1}), eps), +-t^0.25), m = b1 m + (1 - b1) n,
    u = -lr m, and v after the step; nothing corrected, eps a floor."""
    grads, theta = _float64(grads, theta)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads):
        if t == 0:
            v = g**2
        else:
            c = t**0.25
            n = np.clip(_ratio(g, np.maximum(np.sqrt(v), eps)), -c, c)
            m = b1 * m + (1 - b1) * n
            v = b2 * v + (1 - b2) * g**2
        updates.append(-_at(learning_rate, t) * m)
    return np.array(updates)
