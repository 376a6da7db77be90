"""The optimizers of optax, torch and Keras, with their own defaults, as sentences: what `find` reads.

The names are those of optax 0.2.8, torch 2.13 and Keras 3.13; where a library has no learning rate of its
own, 0.001 stands.
"""

ADAM = "scale_by_moments(0.9, 0.999), bias_correct()"
HAT = "scale_by_moments(0.9, 0.999, eps=1e-07, where='hat'), bias_correct()"

# Those called alike here, with their defaults; after a learning rate, and without one.
WITH_RATE = """
adabelief adagrad adam adamax adamaxw adamw amsgrad fromage lamb lars lion madgrad nadam nadamw noisy_sgd
novograd optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3 acprop ademamix adopt galore
simplified_ademamix sophia
"""
WITHOUT = """
adadelta adafactor cocob dadapt_adamw dog dowg lbfgs momo momo_adam polyak_sgd prodigy schedule_free_adamw
schedule_free_sgd
"""
OPTAX = {name: f"{name}(0.001)" for name in WITH_RATE.split()}
OPTAX |= {name: f"{name}()" for name in WITHOUT.split()}
OPTAX |= {
    "adan": "adan(0.001, eps_root=1e-08)",
    "muon": "muon(0.001, eps=1e-08, others=adam(0.001, nesterov=True))",
    "optimistic_adam": "optimistic_adam(0.001, nesterov=True)",
    "optimistic_adam_v2": "optimistic_adam(0.001, nesterov=True)",
    "yogi": (
        "chain(scale_by_moments(ema(0.9, initial=1e-06), yogi_ema(0.999), eps=0.001), bias_correct(), "
        "scale_by_lr(0.001))"
    ),
    "scale_by_adadelta": (
        "chain(scale_by_moments(None, 0.9, eps=1e-06, where='in'), scale_by_past_rms(0.9, 1e-06))"
    ),
    "scale_by_adam": f"chain({ADAM})",
    "scale_by_adamax": "chain(scale_by_moments(0.9, decayed_max(0.999, eps=1e-08), eps=0.0), bias_correct())",
    "scale_by_amsgrad": f"chain({ADAM}, running_max())",
    "scale_by_belief": (
        "chain(scale_by_moments(0.9, ema(0.999, of='deviation', eps=1e-16), eps=1e-16), bias_correct())"
    ),
    "scale_by_lion": "chain(scale_by_moments(0.99, None, lag='first'), nesterov(0.9), sign())",
    "scale_by_radam": f"chain({ADAM}, rectify())",
    "scale_by_rms": "scale_by_moments(None, 0.9, where='in')",
    "scale_by_rss": "scale_by_moments(None, total(0.1), eps=1e-07, where='in')",
    "scale_by_sign": "sign()",
    "scale_by_sm3": (
        "chain(scale_by_moments(None, total(storage=cover()), where='in'), scale_by_moments(0.9, None))"
    ),
    "scale_by_stddev": "chain(scale_by_moments(0.9, 0.9, where='in'), center())",
    "scale_by_yogi": (
        "chain(scale_by_moments(ema(0.9, initial=1e-06), yogi_ema(0.999), eps=0.001), bias_correct())"
    ),
}

TORCH = {
    "ASGD": "average_params(chain(add_decayed_weights(0.0001), scale_by_lr(0.01)))",
    "Adadelta": (
        "chain(scale_by_moments(None, 0.9, eps=1e-06, where='in'), scale_by_past_rms(0.9, 1e-06), "
        "scale_by_lr(1.0))"
    ),
    "Adafactor": "adafactor(0.01, min_dim_size_to_factor=1)",
    "Adagrad": "chain(scale_by_moments(None, total(), eps=1e-10), scale_by_lr(0.01))",
    "Adam": "adam(0.001)",
    "AdamW": "adamw(0.001, weight_decay=0.01)",
    "Adamax": "adamax(0.002)",
    "LBFGS": "chain(scale_by_lbfgs(100), scale_by_lr(1.0))",
    "Muon": (
        "chain(scale_by_moments(0.95, None), nesterov(), orthogonalize(dtype='bfloat16'), "
        "scale_by_shape(outputs=-2), add_decayed_weights(0.1), scale_by_lr(0.001))"
    ),
    "NAdam": f"chain({ADAM}, nesterov(dozat_schedule(0.9, 0.004)), scale_by_lr(0.002))",
    "RAdam": (
        "chain(scale_by_moments(0.9, 0.999, where='hat'), bias_correct(), rectify(), scale_by_lr(0.001))"
    ),
    "RMSprop": "chain(scale_by_moments(None, 0.99), scale_by_lr(0.01))",
    "Rprop": "rprop(0.01)",
    "SGD": "sgd(0.001)",
}

KERAS = {
    "Adadelta": (
        "chain(scale_by_moments(None, 0.95, eps=1e-07, where='in'), scale_by_past_rms(0.95, 1e-07), "
        "scale_by_lr(0.001))"
    ),
    "Adafactor": "adafactor(0.001, min_dim_size_to_factor=1)",
    "Adagrad": "adagrad(0.001)",
    "Adam": f"chain({HAT}, scale_by_lr(0.001))",
    "AdamW": f"chain({HAT}, add_decayed_weights(0.004), scale_by_lr(0.001))",
    "Adamax": (
        "chain(scale_by_moments(0.9, decayed_max(0.999), eps=1e-07), bias_correct(), scale_by_lr(0.001))"
    ),
    "Lamb": (
        "chain(scale_by_moments(0.9, 0.999, eps=1e-07), bias_correct(), scale_by_trust_ratio(), "
        "scale_by_lr(0.001))"
    ),
    "Lion": "chain(scale_by_moments(0.99, None, lag='first'), nesterov(0.9), sign(), scale_by_lr(0.001))",
    "Muon": (
        "on_matrices(chain(scale_by_moments(trace(0.95), None), nesterov(), orthogonalize(), "
        "scale_by_shape('max', 0.2), add_decayed_weights(0.004), scale_by_lr(0.001)), "
        f"chain({HAT}, add_decayed_weights(0.004), scale_by_lr(0.001)))"
    ),
    "Nadam": (
        "chain(scale_by_moments(0.9, 0.999, eps=1e-07), bias_correct(), nesterov(dozat_schedule(0.9, 1.0)), "
        "scale_by_lr(0.001))"
    ),
    "RMSprop": "chain(scale_by_moments(None, 0.9, eps=1e-07, where='in'), scale_by_lr(0.001))",
    "SGD": "sgd(0.01)",
    "ScheduleFreeAdamW": "schedule_free_adamw(0.0025)",
}

KNOWN = {f"optax.{name}": text for name, text in OPTAX.items()}
KNOWN |= {f"torch.optim.{name}": text for name, text in TORCH.items()}
KNOWN |= {f"keras.optimizers.{name}": text for name, text in KERAS.items()}

# What cannot be had by a name alone, and what to write.
NONE = {
    "optax.dpsgd": "dpsgd(learning_rate, l2_norm_clip, noise_multiplier) here, which needs all three",
    "torch.optim.SparseAdam": (
        "for sparse gradients, which JAX does not have; of whole ones it makes torch.optim.Adam"
    ),
    "keras.optimizers.Ftrl": "not here; the nearest is keras.optimizers.Adagrad",
}
FULL = [*KNOWN, *NONE]

# Where the sentence is not what the library does, and in what.
NOTES = {
    "optax.acprop": "optax divides by another moment at the first step",
    "optax.adadelta": "without a learning rate optax 0.2.8 goes uphill; here it is 1",
    "optax.adan": "optax adds 0.08 of the difference where the authors add 0.92",
    "optax.galore": "singular vectors have a free sign, and optax keeps the shorter side of the gradient",
    "optax.rprop": "optax is one step late",
    "optax.sophia": "optax estimates the Hessian with random numbers of its own",
    "torch.optim.ASGD": (
        "in torch the rate falls as 1 / (1 + 1e-6 t)^0.75, and the average begins after a million steps"
    ),
    "torch.optim.Adafactor": "from step 10,000 on torch caps the rate at 1 / sqrt(t)",
    "torch.optim.LBFGS": (
        "one step of torch is up to 20 of these, and scales the first one by the 1-norm of the gradient"
    ),
    "keras.optimizers.Adafactor": "from step 1,000,000 on Keras caps the rate at 1 / sqrt(t)",
    "keras.optimizers.Muon": "Keras gives embeddings to Adam, too; name them in `matrices` of on_matrices",
}
RATE = ("learning_rate", "max_learning_rate")
