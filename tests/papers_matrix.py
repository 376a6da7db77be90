"""Float64 NumPy loops of the matrix optimizers, written from the papers: more oracles (see papers).

The last two axes are the matrix, (rows, columns) = (fan in, fan out); leading axes are a stack of
separate matrices. PyTorch code has (fan out, fan in): its rows are the columns here. Bases of
eigenvectors are unique only where the eigenvalues differ: the first covariance of a matrix with
|rows - columns| > 1 has a null space in which every library finds its own basis.
"""

import functools

import numpy as np
from papers import _at, _float64, _ratio

JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
OPTAX = (  # optax's preset "dion", first used in microsoft/dion
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
POLAR_EXPRESS = (  # before it X / (1.02 |X| + 1e-6): margin=1.02, eps=1e-6
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
DEEPSEEK = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
RECORD = ((2.0, -1.5, 0.5),) * 12


def _per_matrix(*arrays):
    """Run an oracle of one matrix (or vector) on every matrix of a stack; the keywords named in
    arrays are arrays whose axes after the first begin with the stack's leading axes."""

    def decorate(oracle):
        @functools.wraps(oracle)
        def mapped(grads, theta, **keywords):
            grads, theta = _float64(grads, theta)
            if theta.ndim <= 2:
                return oracle(grads, theta, **keywords)
            updates = np.zeros_like(grads)
            for index in np.ndindex(theta.shape[:-2]):
                at = (slice(None), *index)
                own = dict(keywords)
                for k in arrays:
                    if own.get(k) is not None:
                        own[k] = np.asarray(own[k], np.float64)[at]
                updates[at] = oracle(grads[at], theta[index], **own)
            return updates

        return mapped

    return decorate


def _norm(x):
    return np.sqrt(np.sum(x**2))


def _schatten(x):
    """Schatten 4-norm: sqrt(|X X^T|_F) = (sum of sigma^4)^(1/4)."""
    return np.sqrt(_norm(x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x))


def _decay(step, theta, rate, after):
    """The step with decoupled decay of theta before it, or of theta + step (after)."""
    return step - rate * (theta + step if after else theta)


# Orthogonalization and other functions of one array


def orthogonalize(x, coefficients=JORDAN, *, first="frobenius", eps=1e-7, margin=1.0):
    """Newton-Schulz: X = a X + (b A + c A^2) X for each (a, b, c), A = X X^T, rows <= columns
    (else transposed before and after). First X / s: "frobenius" s = margin |X| + eps; "spectral"
    s = margin sigma_max + eps; "schatten" max(sqrt(|A|), eps); "aol" row i's is the root of its
    sum_j |A_ij|, at least eps."""
    # aol: Boissin et al. 2025. optax and Turbo-Muon floor |A| and the sums by 1e-8 or 1e-7, not
    # their roots, so that they do not scale matrices below |X| of about 1e-4 to 1e-3.
    x = np.asarray(x, np.float64)
    if x.ndim > 2:
        kw = dict(first=first, eps=eps, margin=margin)
        return np.array([orthogonalize(part, coefficients, **kw) for part in x])
    tall = x.shape[0] > x.shape[1]
    X = x.T if tall else x
    if first == "frobenius":
        s = margin * _norm(X) + eps
    elif first == "spectral":
        s = margin * np.linalg.svd(X, compute_uv=False)[0] + eps
    elif first == "schatten":
        s = max(_schatten(X), eps)
    elif first == "aol":
        s = np.maximum(np.sqrt(np.sum(np.abs(X @ X.T), axis=1, keepdims=True)), eps)
    else:
        raise ValueError(first)
    X = _ratio(X, s)
    for a, b, c in coefficients:
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if tall else X


def normalize_rows(x, eps=0.0):
    """Each row x[..., i, :] (all weights that leave input i) over its Euclidean norm + eps."""
    x = np.asarray(x, np.float64)
    return _ratio(x, np.sqrt(np.sum(x**2, axis=-1, keepdims=True)) + eps)


def normalize_columns(x, eps=0.0):
    """Each column x[..., :, j] (all weights that enter output j) over its norm + eps."""
    x = np.asarray(x, np.float64)
    return _ratio(x, np.sqrt(np.sum(x**2, axis=-2, keepdims=True)) + eps)


def graft(direction, magnitude):
    """Agarwal et al. 2020: direction |magnitude| / |direction|, step by step, Frobenius norms of
    each matrix (of the vector); both are sequences (steps, *shape); 0 where the direction is 0."""
    direction, magnitude = np.asarray(direction, np.float64), np.asarray(magnitude, np.float64)
    axes = tuple(range(1, direction.ndim))[-2:]
    norm = np.sqrt(np.sum(direction**2, axis=axes, keepdims=True))
    wanted = np.sqrt(np.sum(magnitude**2, axis=axes, keepdims=True))
    return direction * np.where(norm > 0, wanted / np.where(norm > 0, norm, 1.0), 0.0)


def power_cooling(peak, c, total, power=1.2):
    """Schedule of the track-3 records: min(peak, c (total - t)^power), 0 after total."""
    return lambda step: min(peak, c * max(0.0, total - step) ** power)


# Muon


@_per_matrix()
def muon(
    grads,
    theta,
    *,
    learning_rate=0.02,
    momentum=0.95,
    nesterov=True,
    weight_decay=0.0,
    coefficients=JORDAN,
    first="frobenius",
    eps=1e-7,
):
    """Jordan et al. 2024 (KellerJordan/Muon): m = mu m + (1 - mu) g, g (1 - mu) + mu m into
    Newton-Schulz; u = -lr (sqrt(max(1, out / in)) O + wd theta_{t-1}), out / in = columns / rows.
    Nothing corrected; the author runs the iteration in bfloat16."""
    rows, columns = theta.shape
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = momentum * m + (1 - momentum) * g
        mixed = (1 - momentum) * g + momentum * m if nesterov else m
        ortho = orthogonalize(mixed, coefficients, first=first, eps=eps)
        scaled = np.sqrt(max(1.0, columns / rows)) * ortho
        updates.append(-_at(learning_rate, t - 1) * (scaled + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


@_per_matrix()
def muon_moonlight(
    grads,
    theta,
    *,
    learning_rate=1e-3,
    momentum=0.95,
    nesterov=True,
    weight_decay=0.1,
    coefficients=JORDAN,
    eps=1e-7,
):
    """Liu et al. 2025 (Moonlight), eqs. 2-4 and its toy_train.py: M = mu M + g, g + mu M into
    Newton-Schulz, u = -lr (0.2 sqrt(max(rows, columns)) O + wd theta_{t-1})."""
    M, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        M = momentum * M + g
        ortho = orthogonalize(g + momentum * M if nesterov else M, coefficients, eps=eps)
        scaled = 0.2 * np.sqrt(max(theta.shape)) * ortho
        updates.append(-_at(learning_rate, t - 1) * (scaled + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


@_per_matrix()
def muon_optax(
    grads,
    theta,
    *,
    learning_rate,
    ns_coeffs=JORDAN,
    beta=0.95,
    eps=1e-8,
    weight_decay=0.0,
    nesterov=True,
    adaptive=False,
    preconditioning="frobenius",
    consistent_rms=None,
):
    """optax.contrib.muon: Dozat's beta m / (1 - beta^(t+1)) + (1 - beta) g / (1 - beta^t) (no
    nesterov: m / (1 - beta^t)) into Newton-Schulz; adaptive: times <x, O>; scaled as muon or by
    consistent_rms sqrt(max(in, out)); decoupled decay. ns_coeffs: a tuple of triples."""
    rows, columns = theta.shape
    scale = np.sqrt(max(1.0, columns / rows))
    if consistent_rms is not None:
        scale = consistent_rms * np.sqrt(max(rows, columns))
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        m_hat = m / (1 - beta**t)
        if nesterov:
            m_hat = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        ortho = orthogonalize(m_hat, ns_coeffs, first=preconditioning, eps=eps)
        if adaptive:
            ortho = np.sum(m_hat * ortho) * ortho
        updates.append(-_at(learning_rate, t - 1) * (scale * ortho + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


@_per_matrix()
def normuon(
    grads,
    theta,
    *,
    learning_rate=0.02,
    momentum=0.95,
    beta2=0.95,
    weight_decay=0.0,
    coefficients=JORDAN,
    eps=1e-10,
    ns_eps=1e-7,
):
    """Li et al. 2025, normuon.py: V = b2 V + (1 - b2) mean over the inputs of O^2 (one number an
    output), not corrected; O' = O / (sqrt(V) + eps); O' |O| / (|O'| + eps); then as muon. Algorithm
    1 of the paper has 0.2 sqrt(in out) for |O| and no shape scale."""
    rows, columns = theta.shape
    m, V, updates = np.zeros_like(theta), np.zeros((1, columns)), []
    for t, g in enumerate(grads, 1):
        m = momentum * m + (1 - momentum) * g
        ortho = orthogonalize((1 - momentum) * g + momentum * m, coefficients, eps=ns_eps)
        V = beta2 * V + (1 - beta2) * np.mean(ortho**2, axis=0, keepdims=True)
        scaled = _ratio(ortho, np.sqrt(V) + eps)
        scaled = scaled * _ratio(_norm(ortho), _norm(scaled) + eps)
        scaled = np.sqrt(max(1.0, columns / rows)) * scaled
        updates.append(-_at(learning_rate, t - 1) * (scaled + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


@_per_matrix()
def scion(
    grads,
    theta,
    *,
    learning_rate=1e-3,
    momentum=0.1,
    norm=None,
    scale=1.0,
    unconstrained=False,
    coefficients=JORDAN,
    eps=1e-8,
):
    """Pethick et al. 2025, Algorithms 1, 2, scion.py: d = (1 - alpha) d + alpha g; u = -lr scale
    lmo(d), constrained also -lr theta_{t-1}. norm None: "spectral" sqrt(out / in) O, vectors "bias"
    d / (rms + eps); "sign": sign(d) / in; "column", "row": each input's, each output's weights."""
    d, updates = np.zeros_like(theta), []
    norm = norm or ("spectral" if theta.ndim == 2 else "bias")
    for t, g in enumerate(grads, 1):
        d = (1 - momentum) * d + momentum * g
        if norm == "spectral":
            rows, columns = theta.shape
            lmo = np.sqrt(columns / rows) * orthogonalize(d, coefficients)
        elif norm == "sign":
            lmo = np.sign(d) / theta.shape[-2]
        elif norm == "bias":
            lmo = _ratio(d, np.sqrt(np.mean(d**2)) + eps)
        elif norm == "column":  # ColNorm: every input's weights over their rms
            lmo = _ratio(d, np.sqrt(np.mean(d**2, axis=-1, keepdims=True)) + eps)
        elif norm == "row":  # RowNorm: every output's weights over sqrt(in) times their norm
            fan_in = theta.shape[-2]
            lmo = _ratio(d, np.sqrt(fan_in * np.sum(d**2, axis=-2, keepdims=True)) + eps)
        else:
            raise ValueError(norm)
        lr = _at(learning_rate, t - 1)
        updates.append(-lr * (scale * lmo + (0.0 if unconstrained else 1.0) * theta))
        theta = theta + updates[-1]
    return np.array(updates)


# On the sphere


def _hyperball(theta, direction, lr, eps=1e-10):
    """p' = p - lr d |p| / max(|d|, eps); the update to p' |p| / max(|p'|, eps)."""
    radius = _norm(theta)
    moved = theta - lr * direction * radius / max(_norm(direction), eps)
    return moved / max(_norm(moved), eps) * radius - theta


@_per_matrix()
def muonh(
    grads,
    theta,
    *,
    learning_rate=0.014,
    momentum=0.95,
    nesterov=True,
    coefficients=RECORD,
    ns_eps=1e-7,
    eps=1e-10,
):
    """MuonH (modded-nanogpt track 3, entry 5): Jordan's momentum into 12 steps (2, -1.5, 0.5) after
    X / (|X| + 1e-7), then p' = p - lr O |p| / |O| and p' |p| / |p'|; shape scales cancel."""
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = momentum * m + (1 - momentum) * g
        mixed = (1 - momentum) * g + momentum * m if nesterov else m
        ortho = orthogonalize(mixed, coefficients, eps=ns_eps)
        updates.append(_hyperball(theta, ortho, _at(learning_rate, t - 1), eps))
        theta = theta + updates[-1]
    return np.array(updates)


@_per_matrix()
def adamh(grads, theta, *, learning_rate=0.005, b1=0.9, b2=0.95, eps=1e-8, hyperball_eps=1e-10):
    """AdamH (modded-nanogpt track 3, entry 4): Adam's direction, both moments corrected, eps out,
    then the step on the sphere |p| of each matrix; no decay."""
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        direction = _ratio(m / (1 - b1**t), np.sqrt(v / (1 - b2**t)) + eps)
        updates.append(_hyperball(theta, direction, _at(learning_rate, t - 1), hyperball_eps))
        theta = theta + updates[-1]
    return np.array(updates)


# Shampoo


def _inverse_root(L, eps, power):
    """(L + eps I)^(-power) by eigenvalues; an eigenvalue of 0 (or rounding below it) has root 0."""
    values, Q = np.linalg.eigh((L + L.T) / 2)
    values = np.maximum(values, 0.0) + eps
    return (Q * np.where(values > 0, np.where(values > 0, values, 1.0) ** -power, 0.0)) @ Q.T


def _whiten_block(grads, statistics, b2, eps, every, bias_correction):
    """Directions of one block: grads are preconditioned, statistics (the raw gradients) counted."""
    vector = grads.ndim == 2
    if vector:
        grads, statistics = grads[:, :, None], statistics[:, :, None]
    power = 0.5 if vector else 0.25
    L = np.zeros((grads.shape[1],) * 2)
    R = np.zeros((grads.shape[2],) * 2)
    mass, directions = 0.0, []
    for t, (m, g) in enumerate(zip(grads, statistics, strict=True), 1):
        weight = 1.0 if b2 == 1 else 1 - b2
        L = b2 * L + weight * g @ g.T
        R = b2 * R + weight * g.T @ g
        mass = b2 * mass + weight
        if (t - 1) % every == 0:
            total = 1.0 if b2 == 1 else mass
            over = total if bias_correction else 1.0
            left = _inverse_root(L / over, eps * total / over, power)
            right = np.eye(1) if vector else _inverse_root(R / over, eps * total / over, power)
        directions.append(left @ m @ right)
    return np.array(directions)[:, :, 0] if vector else np.array(directions)


def whiten(
    grads, b2=1.0, every=1, *, eps=1e-12, bias_correction=True, block_size=None, statistics=None
):
    """Gupta, Koren & Singer 2018, Algorithm 1: L^(-1/4) g R^(-1/4), a vector (g g^T)^(-1/2) g.
    L = L + g g^T (b2 = 1; L_0 = eps I), or b2 L + (1 - b2) g g^T and then (L / mass + eps I),
    uncorrected (L + eps mass I), mass = 1 - b2^t; roots anew at t = 1, 1 + every, ..., with g_t."""
    # block_size: both axes are cut into blocks (the last one smaller), each block alone.
    # statistics: the gradients in L and R, where grads are averages of them.
    grads = np.asarray(grads, np.float64)
    statistics = grads if statistics is None else np.asarray(statistics, np.float64)
    directions = np.zeros_like(grads)
    lead, axes = grads.shape[1:-2], grads.shape[1:][-2:]
    cuts = [range(0, n, block_size or max(n, 1)) for n in axes]
    for index in np.ndindex(lead):
        for corner in np.ndindex(*(len(c) for c in cuts)):
            own = tuple(
                slice(c[i], min(c[i] + (block_size or n), n))
                for c, i, n in zip(cuts, corner, axes, strict=True)
            )
            at = (slice(None), *index, *own)
            directions[at] = _whiten_block(
                grads[at], statistics[at], b2, eps, every, bias_correction
            )
    return directions


def shampoo(
    grads,
    theta,
    *,
    learning_rate,
    b1=0.0,
    b2=1.0,
    eps=1e-12,
    every=1,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    bias_correction=True,
    block_size=None,
    magnitude=None,
):
    """Gupta, Koren & Singer 2018 (see whiten) of the average b1 of g (corrected if bias_correction;
    not in the paper), grafted to the norms of the directions `magnitude` (steps, *shape), then
    M = mu M + d (nesterov d + mu M); u = -lr (M + wd theta_{t-1})."""
    grads, theta = _float64(grads, theta)
    m, averages = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        averages.append(m / (1 - b1**t) if bias_correction else m)
    kw = dict(eps=eps, bias_correction=bias_correction, block_size=block_size, statistics=grads)
    directions = whiten(np.array(averages), b2, every, **kw)
    if magnitude is not None:
        directions = graft(directions, magnitude)
    M, updates = np.zeros_like(theta), []
    for t, d in enumerate(directions, 1):
        M = momentum * M + d
        d = d + momentum * M if nesterov else M
        updates.append(-_at(learning_rate, t - 1) * (d + weight_decay * theta))
        theta = theta + updates[-1]
    return np.array(updates)


# SOAP and its relatives


def _eigenbasis(L):
    """Eigenvectors as columns, largest eigenvalue first."""
    return np.linalg.eigh((L + L.T) / 2)[1][:, ::-1]


def _refresh(L, Q):
    """One power step and QR, columns first sorted by diag(Q^T L Q); the basis and the order."""
    order = np.argsort(-np.einsum("ij,ij->j", Q, L @ Q), kind="stable")
    return np.linalg.qr(L @ Q[:, order])[0], order


@_per_matrix()
def soap(
    grads,
    theta,
    *,
    learning_rate=3e-3,
    b1=0.95,
    b2=0.95,
    shampoo_beta=None,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_precond_dim=10000,
    eps_hat=True,
    decay_after=True,
):
    """Vyas et al. 2024, Algorithm 3, as the author's soap.py: call 1 only fills L, R and their
    eigenvectors; then u = -lr sqrt(c2) / c1 Q_L [Q_L^T m Q_R / (sqrt(v) + eps)] Q_R^T, v of the
    rotated g, c = 1 - b^(t-1) (eps_hat=False: eps out). Vectors: no basis, call 1 skipped too."""
    # Decay is of theta + u as the author's (decay_after=False: of theta_{t-1}), none in call 1.
    # L, R and, each precondition_frequency counted steps, the basis are updated after the step, v
    # permuted alike; m is kept outside the basis. Axes over max_precond_dim have no basis.
    matrix = theta.ndim == 2
    if not matrix:
        grads, theta = grads[:, :, None], theta[:, None]
    shampoo_beta = b2 if shampoo_beta is None else shampoo_beta
    based = [matrix and n <= max_precond_dim for n in theta.shape]
    LR = [np.zeros((n, n)) if yes else None for n, yes in zip(theta.shape, based, strict=True)]
    Q = [np.eye(n) if not yes else None for n, yes in zip(theta.shape, based, strict=True)]
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        k = t - 1
        if k == 0:
            updates.append(np.zeros_like(theta))
        else:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (Q[0].T @ g @ Q[1]) ** 2
            rotated = Q[0].T @ m @ Q[1]
            c1, c2 = 1 - b1**k, 1 - b2**k
            if eps_hat:
                direction = np.sqrt(c2) / c1 * _ratio(rotated, np.sqrt(v) + eps)
            else:
                direction = _ratio(rotated / c1, np.sqrt(v / c2) + eps)
            lr = _at(learning_rate, t - 1)
            step = -lr * Q[0] @ direction @ Q[1].T
            updates.append(_decay(step, theta, lr * weight_decay, decay_after))
        theta = theta + updates[-1]
        for i, outer in enumerate((lambda g: g @ g.T, lambda g: g.T @ g)):
            if based[i]:
                LR[i] = shampoo_beta * LR[i] + (1 - shampoo_beta) * outer(g)
                if k == 0:
                    Q[i] = _eigenbasis(LR[i])
                elif k % precondition_frequency == 0:
                    Q[i], order = _refresh(LR[i], Q[i])
                    v = v[order] if i == 0 else v[:, order]
    updates = np.array(updates)
    return updates if matrix else updates[:, :, 0]


@_per_matrix()
def kl_soap(
    grads,
    theta,
    *,
    learning_rate=1e-4,
    b1=0.9,
    b2=0.98,
    shampoo_beta=None,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    init_factor=0.1,
    clamp=None,
    whole_first=False,
    shampoo=False,
    hyperball=False,
    decay_after=True,
):
    """Lin et al. 2025, the author's kl_opt.py: SOAP in the basis of L = b L + (1 - b) g Q_R
    diag(1 / lambda_R) Q_R^T g^T / columns, lambda_L = b lambda_L + (1 - b) mean over columns of
    (Q_L^T g Q_R)^2 / lambda_R, R and lambda_R the other way round; m, v, L, R not corrected."""
    # lambda only shapes the basis: the division is by sqrt(v) + eps, v a full average of squares;
    # shampoo=True (KL-Shampoo) divides by sqrt(lambda_L lambda_R^T) + eps instead. Call 1 only
    # fills L = (1 - b) g g^T / columns (whole_first: without 1 - b), R, takes their eigenvectors
    # and sets lambda = init_factor. After a later step L, R, lambda all move from the old lambda
    # and Q, with 1 / sqrt(lambda) at most clamp (None: max(10, min(size, 4000))); then, each
    # precondition_frequency counted steps, Q = qr(L Q), neither sorted nor permuted. Track 3's
    # KL-SOAP-H: b1 .95, b2 .9, frequency 1, clamp 4000, whole_first and hyperball.
    b = b2 if shampoo_beta is None else shampoo_beta
    rows, columns = theta.shape
    clamps = [clamp or max(10, min(n, 4000)) for n in theta.shape]
    LR, Q, inverse = [None, None], [None, None], [None, None]  # inverse: 1 / sqrt(lambda)
    m, v, updates = np.zeros_like(theta), np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        if t == 1:
            weight = 1.0 if whole_first else 1 - b
            LR = [weight * g @ g.T / columns, weight * g.T @ g / rows]
            Q = [_eigenbasis(LR[0]), _eigenbasis(LR[1])]
            inverse = [np.full(n, init_factor**-0.5) for n in theta.shape]
            updates.append(np.zeros_like(theta))
            continue
        m = b1 * m + (1 - b1) * g
        rotated, g_rotated = Q[0].T @ m @ Q[1], Q[0].T @ g @ Q[1]
        v = b2 * v + (1 - b2) * g_rotated**2
        if shampoo:
            root = np.outer(inverse[0], inverse[1])
            direction = rotated * root / (1 + root * eps)
        else:
            direction = _ratio(rotated, np.sqrt(v) + eps)
        direction = Q[0] @ direction @ Q[1].T
        lr = _at(learning_rate, t - 1)
        if hyperball:
            updates.append(_hyperball(theta, direction, lr))
        else:
            updates.append(_decay(-lr * direction, theta, lr * weight_decay, decay_after))
        theta = theta + updates[-1]
        left, right = g @ Q[1] * inverse[1], inverse[0][:, None] * (Q[0].T @ g)
        LR[0] = b * LR[0] + (1 - b) * left @ left.T / columns
        LR[1] = b * LR[1] + (1 - b) * right.T @ right / rows
        means = (
            np.mean((g_rotated * inverse[1][None, :]) ** 2, axis=1),
            np.mean((g_rotated * inverse[0][:, None]) ** 2, axis=0),
        )
        for i in range(2):
            eigenvalue = b * _ratio(1.0, inverse[i] ** 2) + (1 - b) * means[i]
            inverse[i] = np.minimum(_ratio(1.0, np.sqrt(eigenvalue)), clamps[i])
            if (t - 1) % precondition_frequency == 0:
                Q[i] = np.linalg.qr(LR[i] @ Q[i])[0]
    return np.array(updates)


def kl_shampoo(grads, theta, **keywords):
    """Lin et al. 2025: kl_soap's basis, but the rotated average of g is divided by
    sqrt(lambda_L lambda_R^T) + eps; no full second moment is kept."""
    return kl_soap(grads, theta, shampoo=True, **keywords)


@_per_matrix("probes")
def kron(
    grads,
    theta,
    *,
    probes,
    learning_rate=1e-3,
    b1=0.9,
    weight_decay=0.0,
    precond_lr=0.1,
    precond_init_scale=1.0,
    damping=2.0**-11.5,
    clip=1.1,
    every=1,
):
    """Li 2018, Pooladzandi & Li 2024, as psgd_jax 0.2.9 with Q updated at every step, or where the
    number of steps done is a multiple of `every`, and the probes V given (steps, *shape): A = Q_1 h
    Q_2^T, B = Q_1^-T V Q_2^-1, Q_1 = Q_1 - mu triu(A A^T - B B^T) Q_1 / s(A A^T + B B^T), Q_2 with
    A^T A and B^T B; u = -lr clip(Q_1^T Q_1 m_hat Q_2^T Q_2)."""
    # h = m_hat + damping mean|m_hat| V (kron_torch 0.3.3 adds that to m_hat itself); s(S) is the
    # lower bound |S S_j| / |S_j| of the spectral norm, S_j the largest column; clip holds the RMS;
    # then decoupled decay. Axes of size 1 and vectors have a diagonal Q, with max(S) for s. The
    # authors also balance |Q_1| and |Q_2| at random, which leaves every update as it is.
    matrix = theta.ndim == 2
    shape = theta.shape if matrix else (*theta.shape, 1)
    grads, theta = grads.reshape(-1, *shape), theta.reshape(shape)
    probes = np.asarray(probes, np.float64).reshape(-1, *shape)
    dense = [matrix and n > 1 for n in shape]
    scale = precond_init_scale ** (0.5 if matrix else 1.0)
    Q = [scale * np.eye(n) for n in shape]
    if not matrix:
        Q[1] = np.eye(1)
    m, updates = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        m_hat, V = m / (1 - b1**t), probes[t - 1]
        h = m_hat + damping * np.mean(np.abs(m_hat)) * V
        A = Q[0] @ h @ Q[1].T
        B = np.linalg.solve(Q[0].T, V) @ np.linalg.inv(Q[1])
        terms = ((A @ A.T, B @ B.T), (A.T @ A, B.T @ B))
        due = (t - 1) % int(_at(every, t - 1)) == 0
        for i in range((2 if matrix else 1) * due):
            difference, S = terms[i][0] - terms[i][1], terms[i][0] + terms[i][1]
            if dense[i]:
                column = S[:, np.argmax(np.sum(S**2, axis=0))]
                x = S @ column
                bound = _ratio(_norm(S @ x), _norm(x))
                difference = np.triu(difference)
            else:
                difference, bound = np.diag(np.diag(difference)), np.max(np.diag(S))
            Q[i] = Q[i] - precond_lr * _ratio(difference, bound) @ Q[i]
        P = Q[0].T @ Q[0] @ m_hat @ Q[1].T @ Q[1]
        P = P / max(1.0, np.sqrt(np.mean(P**2)) / clip)
        updates.append(-_at(learning_rate, t - 1) * (P + weight_decay * theta))
        theta = theta + updates[-1]
    updates = np.array(updates)
    return updates if matrix else updates[:, :, 0]


# Low rank


@_per_matrix("projections")
def galore(
    grads,
    theta,
    *,
    learning_rate,
    rank=128,
    update_proj_gap=200,
    scale=1.0,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=0.0,
    eps_hat=True,
    decay_after=True,
    align=False,
    projections=None,
):
    """Zhao et al. 2024, Algorithm 2, proj_type "std": at t = 1, 1 + gap, ... P = rank left singular
    vectors of g if rows <= columns, else right; R = P^T g (or g P), Adam of R (eps hat), moments
    kept when P changes; u = -lr scale P N. optax projects the larger side away ("reverse_std")."""
    # The signs of P are those the SVD gives (align: each turned to <p_new, p_old> >= 0);
    # projections (refreshes, small side, rank) replace the SVD. Decay as in soap; eps_hat=False:
    # eps out.
    rows, columns = theta.shape
    left = rows <= columns
    rank = min(rank, rows, columns)
    m = np.zeros((rank, columns) if left else (rows, rank))
    v, P, updates = np.zeros_like(m), None, []
    for t, g in enumerate(grads, 1):
        if (t - 1) % update_proj_gap == 0:
            old = P
            if projections is not None:
                P = np.asarray(projections, np.float64)[(t - 1) // update_proj_gap]
            else:
                U, _, Vh = np.linalg.svd(g, full_matrices=False)
                P = U[:, :rank] if left else Vh[:rank].T
            if align and old is not None:
                P = P * np.where(np.sum(P * old, axis=0) < 0, -1.0, 1.0)
        R = P.T @ g if left else g @ P
        m = b1 * m + (1 - b1) * R
        v = b2 * v + (1 - b2) * R**2
        c1, c2 = 1 - b1**t, 1 - b2**t
        if eps_hat:
            N = np.sqrt(c2) / c1 * _ratio(m, np.sqrt(v) + eps)
        else:
            N = _ratio(m / c1, np.sqrt(v / c2) + eps)
        lr = _at(learning_rate, t - 1)
        step = -lr * scale * (P @ N if left else N @ P.T)
        updates.append(_decay(step, theta, lr * weight_decay, decay_after))
        theta = theta + updates[-1]
    return np.array(updates)


@_per_matrix("projections")
def apollo(
    grads,
    theta,
    *,
    projections,
    learning_rate=1e-3,
    update_proj_gap=200,
    scale=1.0,
    scale_type="channel",
    scale_front=False,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=0.0,
    growth=1.01,
    decay_after=True,
):
    """Zhu et al. 2024, Algorithm 1, as apollo_torch: R = P^T g if rows <= columns, else g P; N = m
    / (sqrt(v) + eps) of R; s = g |N| / (|R| + 1e-8) by channels of the larger side; s divided by
    max(|s| / (|s_{t-1}| + 1e-8), growth) / growth; u = -lr sqrt(c2) / c1 sqrt(scale) s."""
    # projections (refreshes, small side, rank): N(0, 1 / rank), the next at t = 1, 1 + gap, ... The
    # limiter (growth=None: none) sees s before the bias correction c = 1 - b^t, and before
    # sqrt(scale) unless scale_front. scale_type "tensor": one norm for all. Decay as in soap.
    rows, columns = theta.shape
    left = rows <= columns
    m = v = 0.0
    previous, updates = None, []
    for t, g in enumerate(grads, 1):
        if (t - 1) % update_proj_gap == 0:
            P = np.asarray(projections, np.float64)[(t - 1) // update_proj_gap]
        R = P.T @ g if left else g @ P
        m = b1 * m + (1 - b1) * R
        v = b2 * v + (1 - b2) * R**2
        N = _ratio(m, np.sqrt(v) + eps)
        axes = (0, 1) if scale_type == "tensor" else (0 if left else 1)
        factor = np.sqrt(np.sum(N**2, axis=axes, keepdims=True)) / (
            np.sqrt(np.sum(R**2, axis=axes, keepdims=True)) + 1e-8
        )
        s = g * factor
        if scale_front:
            s = s * np.sqrt(scale)
        if growth is not None:
            if previous is not None:
                s = s / (max(_norm(s) / (previous + 1e-8), growth) / growth)
            previous = _norm(s)
        if not scale_front:
            s = s * np.sqrt(scale)
        lr = _at(learning_rate, t - 1)
        step = -lr * np.sqrt(1 - b2**t) / (1 - b1**t) * s
        updates.append(_decay(step, theta, lr * weight_decay, decay_after))
        theta = theta + updates[-1]
    return np.array(updates)


# The stack of the track-3 record


@_per_matrix()
def record(
    grads,
    theta,
    *,
    learning_rate=0.0375,
    momentum=0.95,
    b2=0.9,
    precondition_frequency=1,
    eps=1e-8,
    coefficients=RECORD,
    first="schatten",
    ns_eps=1e-7,
    outward=0.5,
    floor=0.3825,
    floor_by_output=True,
    cautious_decay=0.025,
    rescale="schatten",
    factored=False,
    init_factor=0.1,
):
    """modded-nanogpt track 3, entry 46 (2690 steps, PR 328): its Muon class for a hidden matrix, in
    its order. It whitens by SOAP with a full v, not by KL-SOAP. The trust gate of attn.proj,
    EMA-Nesterov and the tail average are left out; the author's Newton-Schulz runs in bfloat16."""
    # factored=True: in place of v the lambda_L, lambda_R of KL-Shampoo of the rotated momentum,
    # from init_factor, in the same basis (no published record). floor_by_output=False: one floor of
    # the whole matrix (.35 in entry 9). learning_rate and momentum may be schedules
    # (power_cooling).
    rows, columns = theta.shape
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    L, R, Q_L, Q_R = np.zeros((rows, rows)), np.zeros((columns, columns)), None, None
    lambda_L, lambda_R = np.full(rows, init_factor), np.full(columns, init_factor)
    updates = []
    for t, g in enumerate(grads, 1):
        lr, mu = _at(learning_rate, t - 1), _at(momentum, t - 1)
        # 1. Momentum: an uncorrected average with Nesterov's mix.
        m = mu * m + (1 - mu) * g
        u = (1 - mu) * g + mu * m
        # 2. SOAP's whitening of that momentum in the basis of earlier steps (at t = 1 none): v is
        #    an uncorrected average of the rotated momentum's squares, eps a floor of its root.
        if Q_L is not None:
            rotated = Q_L.T @ u @ Q_R
            if factored:
                lambda_L, lambda_R = (
                    b2 * lambda_L + (1 - b2) * np.mean(_ratio(rotated**2, lambda_R[None]), axis=1),
                    b2 * lambda_R
                    + (1 - b2) * np.mean(_ratio(rotated**2, lambda_L[:, None]), axis=0),
                )
                v = np.outer(lambda_L, lambda_R)
            else:
                v = b2 * v + (1 - b2) * rotated**2
            whitened = Q_L @ (rotated / np.maximum(np.sqrt(v), eps)) @ Q_R.T
            # 3. Rescaled to the norm it had, the Schatten 4-norm (immaterial but for eps, because
            #    the orthogonalization divides by it again).
            norm = _schatten if rescale == "schatten" else _norm
            u = whitened * (max(norm(u), eps) / max(norm(whitened), eps))
        # 4. Orthogonalization, times sqrt(max(1, out / in)).
        u = orthogonalize(u, coefficients, first=first, eps=ns_eps)
        u = np.sqrt(max(1.0, columns / rows)) * u
        # 5. Radial brake, first half: the part of u along theta that moves outward is halved.
        along = np.sum(u * theta) / max(np.sum(theta**2), 1e-12)
        radial = along * theta
        u = u - radial + (outward if along < 0 else 1.0) * radial
        # 6. u/w floor: every output's column of u at least floor times that of theta.
        axis = 0 if floor_by_output else (0, 1)
        theta_norm = np.maximum(np.sqrt(np.sum(theta**2, axis=axis, keepdims=True)), 1e-8)
        u_norm = np.maximum(np.sqrt(np.sum(u**2, axis=axis, keepdims=True)), 1e-8)
        u = u * np.maximum(floor * theta_norm / u_norm, 1.0)
        # 7. The step, and the radius it was to have: |theta| changed to first order.
        radius = max(_norm(theta), 1e-8)
        target = max(radius - lr * np.sum(u * theta) / radius, 1e-8)
        moved = theta - lr * u
        # 8. Radial brake, second half: rescaled to that radius.
        moved = moved * (target / max(_norm(moved), 1e-8))
        # 9. Cautious decay, after the rescaling, where u theta > 0 (theta before the step).
        moved = moved * (1 - lr * cautious_decay * (u * theta > 0))
        updates.append(moved - theta)
        theta = moved
        # 10. L, R of the raw gradients and a new basis, for the next step.
        L = b2 * L + (1 - b2) * g @ g.T
        R = b2 * R + (1 - b2) * g.T @ g
        if Q_L is None:
            Q_L, Q_R = _eigenbasis(L), _eigenbasis(R)
        elif (t - 1) % precondition_frequency == 0:
            Q_L, rows_order = _refresh(L, Q_L)
            Q_R, columns_order = _refresh(R, Q_R)
            v = v[rows_order][:, columns_order]
            lambda_L, lambda_R = lambda_L[rows_order], lambda_R[columns_order]
    return np.array(updates)
