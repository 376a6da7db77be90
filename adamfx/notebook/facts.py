"""Where libraries disagree, by word and argument: what `explain` adds to what the words say of themselves.

Measured or read in the libraries' own sources: optax 0.2.8, torch 2.13, Keras 3.15 and the authors' code.
"""

# By the name of a word, or of a word and its argument. A word about an argument is told where it is in use.
ELSEWHERE = {
    "scale_by_moments.b2": (
        "For RMSProp the decay is 0.9 in optax and Keras, 0.99 in torch; for Adam it is 0.999 in all but "
        "HeavyBall, which has 0.99."
    ),
    "scale_by_moments.eps": (
        "optax, torch and DeepSpeed add it to the corrected root. Keras adds it before the correction, "
        "where='hat', and has 1e-7 for 1e-8; HeavyBall takes the larger of the two, where='floor'. In "
        "RMSProp and AdaGrad optax and Keras have it under the root, where='in', torch outside: on "
        "gradients of its own size the steps differ by orders of magnitude."
    ),
    "scale_by_moments.lag": (
        "With lag='second' the division reads the moment of the step before, as ADOPT and ACProp do: each "
        "has its own first step. optax's ACProp has another than the paper's."
    ),
    "bias_correct": (
        "All correct both moments of Adam; none corrects RMSProp, which optax offers. Under a scheduled "
        "decay optax divides by 1 - b^t all the same, here it is the sum of the weights given out. "
        "AMSGrad: before the maximum in optax, after it in torch and Keras. Prodigy and D-Adaptation "
        "correct always in optax, by default never in the authors' code."
    ),
    "nesterov": (
        "NAdam has three formulas: optax looks ahead with b1 as it is, torch with b1 (1 - 0.5 0.96^(0.004 "
        "t)), Keras with 0.96^t in it; the first steps differ by a quarter. In Muon Jordan and torch mix "
        "average and gradient, optax also corrects them, 3 to 5% apart in the first steps."
    ),
    "running_max": (
        "optax takes the maximum of the corrected moment, torch and Keras of the uncorrected one: 10 to "
        "24% apart over the first twelve steps."
    ),
    "rectify": (
        "optax rectifies from 5 on, torch above 5, Optimisers.jl above 4. torch adds eps before the "
        "correction. pytorch_optimizer takes no step at all before."
    ),
    "center": (
        "RMSProp: optax and Keras take eps under the root of v - m^2, torch adds it to the root. Rounding "
        "may make the difference negative, and NaN in optax at the first step."
    ),
    "add_decayed_weights": (
        "Before the moments it is L2, as in torch's Adam, SGD and RMSprop; after them it is decoupled, as "
        "in AdamW. The default of AdamW is 1e-4 in optax, 1e-2 in torch, 4e-3 in Keras, which decouples "
        "it for every optimizer, SGD too. Optimisers.jl can leave the rate out of it."
    ),
    "scale_by_lr": (
        "optax has no default; torch has 1e-3 for SGD and Adam, 2e-3 for NAdam and Adamax, 1e-2 for "
        "RMSprop and Adagrad; Keras 1e-3, for SGD 1e-2. Behind the momentum, as in optax's sgd and in "
        "torch, a new rate acts at once; in front of it, as in Keras and in optax's rmsprop and lars, it "
        "fades in."
    ),
    "scale_by_trust_ratio": (
        "In LAMB the weight decay is inside the ratio in optax and Apex, outside in Keras; DeepSpeed "
        "holds the ratio in [0.01, 10], timm leaves it out where nothing decays. In LARS the norm is of g "
        "+ wd p in optax, the sum of two norms in the paper and timm."
    ),
    "scale_by_past_rms": (
        "AdaDelta's decay is 0.9 in optax and torch, 0.95 in Keras; its rate is 1 in torch, 0.001 in "
        "Keras, and without one optax 0.2.8 goes uphill."
    ),
    "scale_by_rprop": (
        "optax returns the step of the time before, so it is always one late; torch holds the first step "
        "within the bounds, too."
    ),
    "scale_by_adan": (
        "With a decay b2 of 0.92 the authors add 0.92 of the difference, optax 0.08: 43% apart at the "
        "second step."
    ),
    "scale_by_prodigy": (
        "optax always corrects the moments, the authors' code does not by default; zero gradients give "
        "NaN in optax."
    ),
    "scale_by_dadapt_adamw": (
        "optax always corrects the moments, the authors' code does not by default; zero gradients give "
        "NaN in optax."
    ),
    "scale_by_dog": "optax equals the authors' code.",
    "scale_by_madgrad": (
        "Without momentum the authors compute the first parameters anew, optax keeps them."
    ),
    "scale_by_lbfgs": (
        "optax keeps 10 pairs and takes every one, torch 100, and only those of positive curvature; one "
        "step of torch is up to 20 of these."
    ),
    "scale_by_kron": (
        "The authors' JAX code has a rate of 1e-3, the torch code 3e-4; both renew the factors ever less "
        "often, as `every` may say here."
    ),
    "scale_by_momo": "The weight decay is p / (1 + lr wd), as in the paper.",
    "sign": (
        "Lion: weight decay 1e-3 in optax, none in Keras; Optimisers.jl exchanges the two weights."
    ),
    "cautious": (
        "Four ways to rescale: by n / (kept + 1) in the authors' Lion, by the mean of the mask, held at "
        "1e-3, in their AdamW and in timm, by n / kept in HeavyBall, by the mean plus eps in Levanter."
    ),
    "mars": (
        "The authors clip the corrected gradient to norm 1 leaf by leaf, Levanter over all leaves, "
        "HeavyBall not at all."
    ),
    "grokfast": "The average starts at the first gradient in the authors' code.",
    "orthogonalize": (
        "Jordan and torch iterate in bfloat16, optax and Keras in the dtype of the parameter. To the norm "
        "optax adds 1e-8, Jordan and Keras 1e-7; torch holds it at 1e-7 at least."
    ),
    "scale_by_shape": (
        "optax, torch and Jordan: by the width, sqrt(max(1, outputs / inputs)); Keras and Moonlight: 0.2 "
        "sqrt(max(inputs, outputs)), where rates of AdamW carry over. Outputs come first in torch's "
        "kernels."
    ),
    "low_rank": (
        "The authors of GaLore keep the longer side by default, optax the shorter one: 83% apart at once."
    ),
    "factored": (
        "optax factors the two longest axes, where both have 128 at least; torch and Keras always the "
        "last two. Keras keeps the whole moment besides, and saves no memory."
    ),
    "clip_by_block_rms": "Adafactor: torch and Keras also cap the rate at 1 / sqrt(t).",
    "eigenbasis": (
        "The first step only fills the factors and is not counted in the authors' code; ports count it. "
        "The JAX port moves v only when the basis is renewed."
    ),
    "kronecker": "For a matrix the power is -1/4 with Google and Meta, -1/2 in pytorch_optimizer.",
    "add_slow_average.alpha": (
        "5 in optax's ademamix, 6 in its block, 2 in the authors' torch code."
    ),
    "average_iterates": (
        "optax reads a scheduled rate one step ahead in the weights. Keras's AdamW weighs all steps "
        "alike."
    ),
    "total": "AdaGrad starts at 0.1 in optax and Keras, at 0 in torch.",
    "decayed_max": "AdaMax: eps inside the maximum in optax and torch, added to it in Keras.",
    "yogi_ema": (
        "optax starts the first moment at 1e-6, too, so that zero gradients move the parameters."
    ),
    "trace": (
        "torch takes the first gradient whole under dampening. Muon averages with Jordan, torch and "
        "optax, and sums up in Keras and Moonlight: the same once it is orthogonalized."
    ),
    "ema.of": (
        "AdaBelief: optax adds its 1e-16 to what is stored at every step, as the paper; pytorch_optimizer "
        "adds another under the root."
    ),
    "seldom": (
        "Sophia: optax corrects m and divides by max(gamma h, eps); the authors take the sign times "
        "min(1, |m| / (rho b h + 1e-15)), b the size of the batch, uncorrected."
    ),
    "lookahead": "In optax the user carries both the fast and the slow parameters.",
}

# Of words that do not say it themselves.
PAPERS = {
    "bias_correct": "Kingma & Ba 2015, section 3",
    "add_decayed_weights": "Loshchilov & Hutter 2019",
    "nesterov": "Nesterov 1983; Dozat 2016",
    "center": "Graves 2013",
    "running_max": "Reddi et al. 2018",
    "rectify": "Liu et al. 2020",
    "scale_by_trust_ratio": "You et al. 2017, 2020",
    "scale_by_past_rms": "Zeiler 2012",
    "sign": "Bernstein et al. 2018",
    "ema": "Kingma & Ba 2015",
    "factored": "Shazeer & Stern 2018",
    "cover": "Anil et al. 2019",
    "decayed_max": "Kingma & Ba 2015, algorithm 2",
    "clip_by_global_norm": "Pascanu et al. 2013",
    "low_rank": "Zhao et al. 2024",
    "seldom": "Liu et al. 2024",
}
