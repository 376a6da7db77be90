"""Deliberate faults, each of which a named test must notice: a check of the checks.

A row is written like a patch: what goes wrong, the file, the line as it is and as a tired author
might have written it, and the test that has to fail, on a copy of the package in its own process.
The source text must occur exactly once, so no row goes stale.
"""

import multiprocessing
import os
import pathlib
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FAULTS = r"""
Correcting both sides leaves the first out | moments/corrections.py
- if r.first is not None and side != "second":
+ if r.first is not None and side == "first":
  test_oracles.py::test_float64_equals_the_paper[adam-closed over]

Correcting both sides leaves the second out | moments/corrections.py
- if r.second is not None and side != "first":
+ if r.second is not None and side == "second":
  test_oracles.py::test_float64_equals_the_paper[adam-closed over]

eps under the root, where most libraries have it outside | engine/record.py
- "out": lambda v, root, eps: root(v) + eps,
+ "out": lambda v, root, eps: root(v + eps),
  test_oracles.py::test_float64_equals_the_paper[adam-closed over]

eps_root outside the root | engine/record.py
- (r.second.value + d.eps_root, root, d.eps)
+ (r.second.value, root, d.eps + d.eps_root)
  test_oracles.py::test_float64_equals_the_paper[adam nesterov-closed over]

eps added before the correction, but not corrected | moments/corrections.py
- hat = safe_divide(r.denominator.eps, jnp.sqrt(r.second.rates.mass))
+ hat = r.denominator.eps
  test_oracles.py::test_float64_equals_the_paper[adam_eps_hat-closed over]

b and 1 - b change places | moments/scale_by_moments.py
- r.gain(count, 1 - b)
+ r.gain(count, b)
  test_oracles.py::test_float64_equals_the_paper[adam_uncorrected-closed over]

An average is written as a trace | moments/estimators.py
- return s + (r.gain * (x - s) + eps)  # one rounding of s per step
+ return r.decay * s + (x + eps)
  test_oracles.py::test_float64_equals_the_paper[adam_uncorrected-closed over]

A scheduled decay is read one step late | moments/scale_by_moments.py
- b, next_b = value_at(r.decay, count), value_at(r.decay, count + 1)
+ b, next_b = value_at(r.decay, count + 1), value_at(r.decay, count + 2)
  test_oracles.py::test_scheduled_decays_equal_the_weighted_mean[False]

The logs of the decays are summed without compensation | moments/scale_by_moments.py
- return jnp.stack([grown, (grown - s) - y])
+ return jnp.stack([grown, error])
  test_oracles.py::test_adam_in_float32_for_every_b2[0.9999]

The square of a complex number is not the square of its modulus | engine/arithmetic.py
- return (x * x.conj()).real if
+ return (x * x).real if
  test_oracles.py::test_complex_parameters

The deviation from the average before this step | moments/statistics.py
- square(g - at.m)),
+ square(g - at.m_before)),
  test_oracles.py::test_float64_equals_the_paper[adabelief-closed over]

The first value counts no more than the others | moments/estimators.py
- jnp.where(count == 0, 1.0, gain) if first_whole else gain
+ gain
  test_oracles.py::test_float64_equals_the_paper[novograd-closed over]

A lagging side does not lag | moments/scale_by_moments.py
- used = form.read(parts, x) if self.lags else s
+ used = s
  test_oracles.py::test_float64_equals_the_paper[adopt-closed over]

The look-ahead with the mass of this step | moments/corrections.py
- a * rates.mass / of_m.next_mass
+ a * rates.mass / of_m.mass
  test_oracles.py::test_float64_equals_the_paper[nadam-closed over]

The look-ahead forgets the gradient | moments/corrections.py
- Side(a * m + c * r.seen, rates, corrected)
+ Side(m, rates, corrected)
  test_oracles.py::test_float64_equals_the_paper[sgd nesterov-closed over]

The largest so far is only the latest | moments/corrections.py
- {"nu_max": v}
+ {"nu_max": second.value}
  test_oracles.py::test_float64_equals_the_paper[amsgrad-closed over]

The square of the mean is added to the mean square | moments/corrections.py
- jnp.maximum(second.value - square(m), 0)
+ jnp.maximum(second.value + square(m), 0)
  test_oracles.py::test_float64_equals_the_paper[rmsprop centered-closed over]

The newest gradient has age zero | moments/corrections.py
- c = 1 + (1 - b2.gain / b2.mass) * step.memory.age
+ c = (1 - b2.gain / b2.mass) * (1 + step.memory.age)
  test_oracles.py::test_float64_equals_the_paper[radam-closed over]

A second moment that is NaN reads as zero | engine/arithmetic.py
- return jnp.sqrt(x)
+ return jnp.where(x > 0, jnp.sqrt(x), 0)
  test_corrections.py::test_nan_gradients_are_seen[rmsprop]

The threshold of the paper for every caller | moments/corrections.py
- tractable = rho >= threshold
+ tractable = rho > 4
  test_oracles.py::test_float64_equals_the_paper[radam-closed over]

Yogi's sign turned round | moments/estimators.py
- jnp.sign(s - x)
+ jnp.sign(x - s)
  test_oracles.py::test_float64_equals_the_paper[yogi-closed over]

A maximum of signed gradients | moments/statistics.py
- "abs": Reading(lambda g, at: jnp.abs(g), degree=1)
+ "abs": Reading(lambda g, at: g, degree=1)
  test_oracles.py::test_float64_equals_the_paper[adamax-closed over]

The derivative of a root at zero is infinite | engine/arithmetic.py
- safe_divide(0.5, y) * tangents[0]
+ 0.5 / y * tangents[0]
  test_laws.py::test_derivatives_are_finite_at_zero_gradients[adam]

The weight decay pushes weights away from zero | blocks/decay.py
- else u + here.shared * here.param
+ else u - here.shared * here.param
  test_oracles.py::test_float64_equals_the_paper[adamw-closed over]

Up the hill | blocks/scaling.py
- (-rate if flip_sign else rate)
+ (rate if flip_sign else -rate)
  test_oracles.py::test_float64_equals_the_paper[sgd-closed over]

The trust ratio upside down | blocks/scaling.py
- safe_divide(p_norm, u_norm + eps)
+ safe_divide(u_norm, p_norm + eps)
  test_oracles.py::test_float64_equals_the_paper[lamb-closed over]

Clipping stretches what is short | blocks/clipping.py
- max_norm / jnp.maximum(size, jnp.maximum(max_norm, tiny))
+ max_norm / jnp.maximum(size, tiny)
  test_blocks.py::test_clipping_by_norm[0.001]

Matrices of one shape that lie in two ways are joined all the same | engine/chips.py
- least >= _size(tuple(_sizes()))
+ least < 0
  test_chips.py::test_matrices_of_one_shape_that_lie_in_two_ways

Bases are whole on every chip | moments/bases.py
- axes = (*range(len(stack)), p.ndim + _axis(side), ...)
+ axes = (*range(len(stack)), p.ndim + _axis(side), None)
  test_chips.py::test_what_matrices_remember_moves_with_them[soap]

What each chip gets is put together in another order | engine/chips.py
- order += [*map(sources.index, cut), len(sources) + 1 + d]
+ order += [*sorted(map(sources.index, cut)), len(sources) + 1 + d]
  test_chips.py::test_every_part_of_a_matrix_comes_to_its_place

The shares of the chips come back in another order | engine/chips.py
- order = [*map(sharing.index, names)]
+ order = [*range(len(names))]
  test_chips.py::test_every_part_of_a_matrix_comes_to_its_place

A matrix that fails keeps the roots of its whole stack | moments/bases.py
- ok &= jnp.all(jnp.isfinite(w), -1) & jnp.all(jnp.isfinite(q), (-2, -1))
+ ok &= jnp.all(jnp.isfinite(w)) & jnp.all(jnp.isfinite(q))
  test_matrices.py::test_roots_of_a_matrix_that_fail_leave_the_others_of_its_stack

What a view shows is whole on every chip | wrappers/views.py
- return cut_as(x, seen_whole(x, memory))
+ return seen_whole(x, memory)
  test_chips.py::test_what_a_view_shows_is_cut_as_the_leaf_is

Leaves on which nothing acts stand in the queue for the host | engine/leaf_function.py
- if kind.acting(self.blocks):
+ if True:
  test_scale.py::test_leaves_without_memory_hold_nobody_up_and_let_nobody_through

All matrices of a stack draw the same | engine/rows.py
- jax.random.split(k, s) if s else k
+ jnp.broadcast_to(k, s) if s else k
  test_matrices.py::test_each_matrix_of_a_stack_draws_for_itself

A decay of 0 reads all parameters | blocks/decay.py
- return u if nothing else u +
+ return u +
  test_blocks.py::test_a_decay_of_zero_reads_no_parameter

The norm of scaled numbers is not scaled back | engine/norms.py
- jnp.sqrt(of_small) / up
+ jnp.sqrt(of_small)
  test_norms.py::test_two_sums_where_there_is_no_float64[float32]

What is large is not made small where its squares overflow | engine/norms.py
- jnp.sqrt(of_large) / down
+ jnp.sqrt(of_small) / down
  test_norms.py::test_two_sums_where_there_is_no_float64[float32]

What is small is not made large before it is squared | engine/norms.py
- for n in (e, -e)]
+ for n in (-e, -e)]
  test_norms.py::test_two_sums_where_there_is_no_float64[float32]

Squares are summed in float32 | engine/norms.py
- x.astype(np.float64)
+ x.astype(np.float32)
  test_norms.py::test_norms_up_to_the_largest_number

Only the first of small vectors taken together is looked at | engine/each.py
- reduce(functools.reduce(join, map(function, xs)))
+ reduce(function(xs[0]))
  test_skipping.py::test_the_one_bad_number_of_many_leaves

The derivative of a norm | engine/norms.py
- safe_divide(x * c, size * c) * dx)
+ x * c * dx * c)
  test_blocks.py::test_the_derivative_of_a_norm[1.0]

The results of a single pass wait for one another | engine/single_pass.py
- np.int8(2), np.int8(1))
+ np.int8(1), np.int8(1))
  test_single_pass.py::test_memory_is_crossed_once[adam-step]

A loop goes on after a failure | training/dispatch.py
- (c[0] < n) & ~c[1]
+ (c[0] < n)
  test_training.py::test_too_many_nonfinite_gradients_end_the_run[30]

The dispatch after a failure runs | training/dispatch.py
- start = (jnp.zeros_like(n), failed,
+ start = (jnp.zeros_like(n), jnp.zeros_like(failed),
  test_training.py::test_nothing_is_trained_after_too_many_nonfinite_gradients[4]

The upper half of a whole number is lost | engine/packed.py
- [x >> 16, x & 0xFFFF]
+ [x >> 32, x & 0xFFFF]
  test_states.py::test_whole_numbers_and_bools_of_a_packed_state

A packed state gives scalars of the next slot | engine/packed.py
- x = _numbers(vector, slot.place, slot)
+ x = _numbers(vector, max(slot.place - 1, 0), slot)
  test_states.py::test_whole_numbers_and_bools_of_a_packed_state

A file is packed by the order of another state | engine/packed.py
- old.like({key: packed_as(x, new[key]) for key, x in old.items()})
+ old.like({key: packed_as(x, x) for key, x in old.items()})
  test_states.py::test_a_dict_of_the_same_names_is_a_state[npz]

Steps are counted from one | engine/sentence.py
- {"count": np.zeros((), np.int32)}
+ {"count": np.ones((), np.int32)}
  test_blocks.py::test_the_rate_last_applied_is_in_the_state

The update is rounded before it is added | engine/leaves.py
- u.astype(wide)).astype(p.dtype)
+ u.astype(p.dtype).astype(wide)).astype(p.dtype)
  test_blocks.py::test_step_rounds_once

A window with a number that is not finite is applied | wrappers/accumulation.py
- full & ~bad
+ full
  test_user_problems.py::test_row_09_a_nan_is_dropped_and_counted_and_the_inner_count_waits

All chips are used for a few matrices | engine/chips.py
- return min(enough,
+ return max(enough,
  test_chips.py::test_no_more_chips_than_matrices_where_an_axis_can_be_spared

The checkpoint that stays is the worst | training/orbax.py
- 1 if mode == "max" else -1
+ -1 if mode == "max" else 1
  test_orbax.py::test_the_best_stays[min]

A run that goes on does all its steps again | training/fit.py
- limit -= run.go_on(kept)
+ run.go_on(kept)
  test_orbax.py::test_a_run_in_three_parts_is_the_whole_run

The sum of the micro-gradients is not divided | wrappers/accumulation.py
- x * share.astype(x.dtype)
+ x
  test_wrappers.py::test_accumulate_is_one_large_batch

A gradient that is not finite is applied | wrappers/skipping.py
- ok = trees.finite(leaves.updates)
+ ok = trees.finite(leaves.updates) | True
  test_user_problems.py::test_row_18_never_applied_and_bitwise_unchanged

The slow parameters are left behind | wrappers/lookahead.py
- jnp.where(sync, s + a * (p.astype(s.dtype) + u.astype(s.dtype) - s), s)
+ jnp.where(sync, s + a * (p.astype(s.dtype) - s), s)
  test_wrappers.py::test_lookahead_is_algorithm_1

The rounding error is forgotten | wrappers/precision.py
- {"error": wanted - moved}
+ {"error": wanted - u}
  test_user_problems.py::test_row_06_bfloat16_parameters_move

Always down to the neighbour | moments/storages.py
- jnp.floor(jnp.abs(x) / spacing + r)
+ jnp.floor(jnp.abs(x) / spacing)
  test_user_problems.py::test_row_06_rounding_stochastically_is_right_in_the_mean

The bias of the average is not corrected | wrappers/averages.py
- safe_divide(average, w)
+ average
  test_wrappers.py::test_average_params

A static argument compares by type alone | values/grammar.py
- return (type(x), repr(x))  # tells
+ return type(x)  # tells
  test_value.py::test_values_tell_one_number_from_another

Two equal forms are two objects | values/grammar.py
- form = _forms.get(key)
+ form = None
  test_laws.py::test_pickles_copies_and_rebuilds[adam]

A replaced name replaces its neighbour too | values/value.py
- if k == name or k.endswith("." + name)]
+ if k.endswith(name)]
  test_states.py::test_names_end_at_a_dot

An exact number becomes a leaf | values/constructor.py
- if declared is EXACT:
+ if declared is INNER:
  test_value.py::test_an_exact_number_is_no_leaf

A chain loses its last block | combine.py
- return Sentence(flat)
+ return Sentence(flat[:-1])
  test_blocks.py::test_weight_decay_coupled_decoupled_independent

A live rate is read from the transformation | combine.py
- return transformation.form.build([state[LIVE][n] for n in names]), inner
+ return transformation, inner
  test_blocks.py::test_live_hyperparameters

A group works on the leaves of another | wrappers/groups.py
- leaves.among([x == k for x in memory.labels.of])
+ leaves.among([x != k for x in memory.labels.of])
  test_user_problems.py::test_row_11_groups[dict-tree]

Integers are trained | engine/trees.py
- return x is not None and jnp.issubdtype(dtype_of(x), jnp.inexact)
+ return x is not None and jnp.issubdtype(dtype_of(x), jnp.number)
  test_leaves.py::test_which_leaves_are_trained

Rounding forgets the small numbers of float16 | engine/trees.py
- jnp.where(jnp.abs(x) < float(to.tiny), jnp.round(x / grid) * grid, rounded)
+ rounded
  test_wrappers.py::test_round_to_is_a_cast_there_and_back[True-float16]

A count of steps is one less | checks.py
- return int(x)
+ return int(x) - 1
  test_accumulation.py::test_every_may_be_a_whole_float

The schedule counts from one | schedules.py
- done = jnp.clip(count - transition_begin, 0, transition_steps)
+ done = jnp.clip(count + 1 - transition_begin, 0, transition_steps)
  test_blocks.py::test_schedules_stand_wherever_a_number_can

A half sine | schedules.py
- return 0.5 * (1 + jnp.cos(jnp.pi * _fraction(count, steps)))
+ return 0.5 * (1 + jnp.sin(jnp.pi * _fraction(count, steps)))
  test_blocks.py::test_a_cosine_ends_at_alpha

A carried moment is not that of the peer | interop/directions.py
- new = jnp.array(np.asarray(value).reshape(x.shape), x.dtype)
+ new = jnp.zeros_like(x)
  test_training.py::test_state_carried_over_from_optax[adam]

The moments of Adadelta change places | interop/carry_optax.py
- {"e_g": NU, "e_x": "nu (scale_by_past_rms)"}
+ {"e_x": NU, "e_g": "nu (scale_by_past_rms)"}
  test_carry.py::test_optax_both_ways_in_a_few_steps[adadelta(LR)]

Half a window is carried over as its mean | interop/carry_optax.py
- return Form(lambda mean, memory: np.asarray(mean) * int(getattr(memory, counter)), back)
+ return Form(lambda mean, memory: np.asarray(mean), back)
  test_carry.py::test_optax_both_ways_in_a_few_steps[MultiSteps of 4]

Half a window goes back as its sum | interop/carry_optax.py
- return total / n if n else jnp.zeros_like(total)
+ return total if n else jnp.zeros_like(total)
  test_carry.py::test_optax_both_ways_in_a_few_steps[MultiSteps of 4]

The product of NAdam begins at step 0 | interop/carry_torch.py
- for t in range(1, n + 1))
+ for t in range(n))
  test_carry.py::test_torch_both_ways_in_a_few_steps[NAdam(momentum_decay=0.5)]

Rows and columns of Adafactor change places | interop/carry_torch.py
- key=lambda x: (x.shape[-1] != 1, -math.prod(x.shape)))
+ key=lambda x: (x.shape[-1] == 1, -math.prod(x.shape)))
  test_carry.py::test_torch_both_ways_in_a_few_steps[Adafactor()]

The counters of the other side stay | interop/directions.py
- slot.new = np.asarray(derived.back(done, slot.options))
+ slot.new = None
  test_carry.py::test_torch_both_ways_in_a_few_steps[Adam(amsgrad=True)]

torch goes on in our memory | interop/directions.py
- new = jnp.array(np.asarray(value).reshape(x.shape), x.dtype)
+ new = jnp.asarray(np.asarray(value).reshape(x.shape), x.dtype)
  test_carry.py::test_torch_both_ways_in_a_few_steps[Adadelta(lr=1.0)]

A carried sum is taken for an average | interop/words.py
- return f"{first}{side.name} of {of}"
+ return f"{plain} of {of}"
  test_carry.py::test_another_recursion_is_not_taken_for_ours

Moments of what was divided are taken for those of the gradient | interop/words.py
- value = "direction" if "divided" in passed else "value"
+ value = "value"
  test_carry.py::test_another_recursion_is_not_taken_for_ours

Blocks in another order are taken for ours | interop/level.py
- self.records = [fitting, *self.records[i + 1 :]]
+ self.records[i] = fitting
  test_carry.py::test_another_recursion_is_not_taken_for_ours

The buffer of Muon is taken for that of SGD | interop/carry_torch.py
- [MUON if "ns_steps" in options else SGD]
+ [SGD]
  test_carry.py::test_another_recursion_of_torch_is_not_taken_for_ours

A counter at its window is no more | interop/carry.py
- if int(getattr(memory, field)) >= most:
+ if int(getattr(memory, field)) > most:
  test_carry.py::test_a_counter_beyond_its_window

A parameter that only the other side trains is passed over | interop/directions.py
- if not kept and (slot.value is None or trees.is_trained(slot.value)):
+ if not kept and slot.value is None:
  test_carry.py::test_a_parameter_that_is_trained_on_one_side_only

A basis begins anew under moments that lie in it | interop/directions.py
- if block.name not in BEGIN_ANEW and (large := large_of(memory, fields)):
+ if block.name == "nothing" and (large := large_of(memory, fields)):
  test_carry.py::test_a_wrapper_whose_memory_the_moments_are_written_in

A number of a checkpoint is rounded | training/checkpoints.py
- old, found = x.item(), new.item()
+ new = new.astype(np.float32).astype(dtype); old, found = x.item(), new.item()
  test_checkpoints.py::test_numbers_and_numpy_arrays_come_back_exactly

Memory along axes of its parameter is in one piece | engine/placement.py
- of[a] if _is_axis(a) else others if a is ... else None for a in axes
+ None for a in axes
  test_transformation.py::test_factors_lie_as_the_axes_of_their_parameter

The sum of what leaves add is that of the first | engine/rows.py
- functools.reduce(jax.lax.add, [p[name].astype(dtype) for p in parts])
+ functools.reduce(lambda a, b: a, [p[name].astype(dtype) for p in parts])
  test_transformation.py::test_dog_sums_over_all_leaves

The gradient is asked for at the parameters | engine/sentence.py
- leaves = leaves.replace(params=own(leaves, memory, step))
+ own(leaves, memory, step)
  test_transformation.py::test_ema_nesterov_steps_unrounded_and_looks_ahead

The loss of the last micro-batch goes with the mean gradient | wrappers/accumulation.py
- "value": average}
+ "value": value}
  test_transformation.py::test_accumulate_averages_the_loss_that_goes_with_the_mean_gradient

What a predicate leaves out is what it takes | masks.py
- return lambda path, x: not accepts(path, x)
+ return accepts
  test_user_problems.py::test_row_22_one_block_for_decay

The coefficients of another set | blocks/matrices.py
- "jordan": (JORDAN,) * 5
+ "jordan": (JORDAN,) * 4
  test_matrices.py::test_orthogonalize[jordan-frobenius]

The margin is forgotten | blocks/matrices.py
- else margin * size + eps
+ else size + eps
  test_matrices.py::test_orthogonalize[polar_express-frobenius]

The shape is scaled the other way round | blocks/matrices.py
- math.sqrt(max(1, outputs / inputs))
+ math.sqrt(max(1, inputs / outputs))
  test_matrices.py::test_muon[shape0]

A basis is not sorted | moments/bases.py
- order = jnp.argsort(-held, axis=-1, stable=True)
+ order = jnp.argsort(held, axis=-1, stable=True)
  test_matrices.py::test_soap[shape0]

The second moment does not follow its basis | moments/bases.py
- v = _take(v, order, side)
+ v = v
  test_matrices.py::test_soap[shape0]

The momentum does not follow its basis | moments/bases.py
- return new, list(map(_sorted, vs, orders)), _turned(firsts, old, new)
+ return new, list(map(_sorted, vs, orders)), firsts
  test_matrices.py::test_soap[shape0]

Matrices of one size come back as those of another leaf | engine/chips.py
- start = at.stop
+ start = 0
  test_matrices.py::test_stacks_of_one_size_make_one_batch

The first gradient of SOAP moves something | moments/bases.py
- before = 1 if skips_first else 0
+ before = 0
  test_matrices.py::test_soap[shape2]

The other side does not weigh | moments/bases.py
- (g @ bases["right"]) * by_column
+ (g @ bases["right"])
  test_matrices.py::test_kl_soap[shape0-False]

Roots of an old mass divide by the new one | moments/bases.py
- v = v * (mass / then)[..., None, None] if values else v * mass
+ v = v
  test_matrices.py::test_shampoo[0.9-3-shape0]

A byte is as coarse near zero as elsewhere | moments/storages.py
- 2 * y / (1 + jnp.abs(y)) if signed else y
+ y
  test_stored.py::test_codes_and_scales[int8]

A divisor in a byte may become zero | moments/storages.py
- jnp.where((codes == 0) & (y > 0), 1, codes)
+ codes
  test_stored.py::test_a_divisor_that_is_not_zero_stays_so

Every leaf draws the same numbers | wrappers/stored.py
- jax.random.fold_in(key, at)
+ key
  test_stored.py::test_rounding_at_random_draws_anew_in_every_step_and_leaf

The state is not shared out | wrappers/placement.py
- parts = [axis if d == dim else free for d in range(x.ndim)]
+ parts = [free for d in range(x.ndim)]
  test_scale.py::test_a_state_in_shares_steps_as_a_whole_one[adamw-auto]

Members may be longer than their file | training/archive.py
- > file.seek(0, os.SEEK_END)
+ > file.seek(0, os.SEEK_END) * 10**9
  test_checkpoints.py::test_a_foreign_file_is_refused_before_it_takes_memory[bomb]

The dead's half-written files stay | training/archive.py
- _remove_unless_locked(left)
+ pass
  test_checkpoints.py::test_a_long_name_many_threads_and_what_the_dead_have_left

An epoch may be the iterator of the one before | training/stream.py
- self.one is self.batches or self.one is self.before
+ self.one is self.batches
  test_interruptions.py::test_epochs_over_what_can_be_gone_through_once

A program outlives what its loss has captured | values/reads.py
- numbers = np.ascontiguousarray(x).view(np.uint8).data if x.size else b""
+ numbers = b""
  test_reads.py::test_fit_sees_what_has_changed[an array in a closure]

A program outlives a global of a helper | values/reads.py
- names, attributes = _names(f.__code__)
+ names, attributes = (), ()
  test_reads.py::test_fit_sees_what_has_changed[a list in a global of a helper]

A position forgets what was passed over | training/stream.py
- {**mark, "skip": taken - at}
+ {**mark, "skip": 0}
  test_positions.py::test_resumed_is_straight[bytes-3]

The last row of a table is written before its evaluation | training/logs.py
- self._log(run, 1)
+ self._log(run, 0)
  test_callbacks.py::test_a_table_holds_the_history

Rows after the last checkpoint stay in a table | training/logs.py
- if float(row["step"]) <= run.step]
+ ]
  test_callbacks.py::test_a_table_goes_on_and_what_is_done_again_counts

A press within a run inside is not handed on | training/interrupts.py
- outer.__self__.pressed |= self.pressed
+ pass
  test_interruptions.py::test_a_press_inside_of_an_evaluation_that_trains_ends_both

What was fetched from the host stays on the device | engine/host.py
- memories = rested(memories)
+ memories = fetched(memories)
  test_scale.py::test_a_state_on_the_host[offload(adamw(1e-2))]

Blocks are put back in another order | wrappers/views.py
- y = jnp.swapaxes(y, -2, -3).reshape(
+ y = y.reshape(
  test_matrices.py::test_in_blocks_and_back

A singular vector is not turned to the old one | wrappers/views.py
- return jnp.where(with_old < 0, -new, new)
+ return new * jnp.sign(jnp.sum(new, -2, keepdims=True))
  test_matrices.py::test_galore[shape2]

The size of the direction itself | wrappers/grafting.py
- safe_divide(norm_over(m, matrix_axes(m))
+ safe_divide(norm_over(d, matrix_axes(d))
  test_matrices.py::test_shampoo_grafted

The factor learns to grow | blocks/kron.py
- a - b, _bound(a + b)
+ b - a, _bound(a + b)
  test_matrices.py::test_kron[shape0]

The limiter forgets | blocks/apollo.py
- "norm": size / held}
+ "norm": size}
  test_matrices.py::test_apollo[shape0-False]

The outward part is kept whole | blocks/radius.py
- jnp.where(along < 0, (outward - 1) * along, 0)
+ jnp.where(along > 0, (outward - 1) * along, 0)
  test_matrices.py::test_the_record_of_2026_as_one_sentence[shape0]

The distance travelled shrinks | blocks/distance.py
- reach = jnp.maximum(reach, safe_root(found["moved"]))
+ reach = jnp.minimum(reach, safe_root(found["moved"])) + reach / 2
  test_parameter_free.py::test_equals_its_paper[dog]

The square of the distance is missing | blocks/distance.py
- v = step.memory.total + r2 * step.sums.square
+ v = step.memory.total + step.sums.square
  test_parameter_free.py::test_equals_its_paper[dowg]

Prodigy steps with the new distance | blocks/adaptation.py
- return -gamma * d * u
+ return -gamma * new * u
  test_parameter_free.py::test_equals_its_paper[prodigy, safeguard]

D-Adaptation takes the new second moment | blocks/adaptation.py
- gain = dot(g, safe_divide(old.s, safe_root(old.nu) + eps))
+ gain = dot(g, safe_divide(old.s, safe_root(_average(old.nu, square(g), b2)) + eps))
  test_parameter_free.py::test_equals_its_paper[dadapt_adamw]

A reward may be negative | blocks/coin.py
- R = jnp.maximum(old.reward - g * (p - old.start), 0)
+ R = old.reward - g * (p - old.start)
  test_parameter_free.py::test_equals_its_paper[cocob]

The loss is not averaged | blocks/loss.py
- f = old.loss + gain * (value - old.loss)
+ f = value
  test_parameter_free.py::test_equals_its_paper[momo]

The gap may be negative | blocks/loss.py
- gap = jnp.maximum(gap, 0) if variant == "sps+" else gap
+ gap = gap
  test_parameter_free.py::test_equals_its_paper[polyak_sgd, sps+]

A plateau is a step late | blocks/loss.py
- cut = ~is_cooling & (misses == patience)
+ cut = ~is_cooling & (misses == patience + 1)
  test_parameter_free.py::test_reduce_on_plateau[arguments0]

The largest step of Mechanic is forgotten | wrappers/mechanic.py
- m = jnp.maximum(beta * old.m, jnp.abs(h) + eps)
+ m = beta * old.m + jnp.abs(h) + eps
  test_parameter_free.py::test_equals_its_paper[mechanize]

The Hessian is averaged in every step | moments/estimators.py
- jnp.where(r.count % every == 0, s + r.gain * (x - s), s)
+ jnp.where(r.count >= 0, s + r.gain * (x - s), s)
  test_parameter_free.py::test_sophia_of_given_hessians[None]

The average weighs every step alike | wrappers/iterates.py
- return safe_divide(w, total), {
+ return 1 / (step.count + 1).astype(total.dtype), {
  test_iterates.py::test_schedule_free[5-2.0]

The step restores what was looked ahead | wrappers/iterates.py
- moves = out.updates if restore else
+ moves = out.updates if not restore else
  test_iterates.py::test_ema_nesterov[False]

One sample too many | wrappers/iterates.py
- due = (t >= start) & ((t - start) % every == 0)
+ due = (t >= start) & ((t - start) % every != 1)
  test_iterates.py::test_swa[5-3]

The anchor stays | wrappers/iterates.py
- anchor = leaves.each(_plus, memory.anchor, far.updates)
+ anchor = memory.anchor
  test_iterates.py::test_outer_step

The worst point is the other way | wrappers/iterates.py
- return (p + r * T * y)
+ return (p - r * T * y)
  test_iterates.py::test_sharpness_aware[tx0-oracle0]

Examples are not clipped | wrappers/privacy.py
- yield jnp.where(total == 0, 1, shrink)
+ yield jnp.ones_like(shrink)
  test_iterates.py::test_the_private_mean_is_clipped_example_by_example

The imaginary part is the real one | wrappers/views.py
- jax.lax.complex(y[0], y[1])
+ jax.lax.complex(y[0], y[0])
  test_iterates.py::test_split_real_and_imaginary

The imaginary part goes uphill | training/step.py
- return out, trees.uphill(grads)
+ return out, grads
  test_loss_laws.py::test_complex_numbers_are_trained_as_pairs_of_real_ones[sgd]

Along the line the imaginary part counts the other way | blocks/linesearch.py
- self.leaves.layout.pick(trees.flatten(trees.uphill(g))[0])
+ self.leaves.layout.pick(trees.flatten(g)[0])
  test_loss_laws.py::test_gradients_that_a_line_search_kept_are_those_of_jax

A product of complex numbers is that of numbers, not of pairs | engine/arithmetic.py
- jnp.sum((x.conj() * y).real, axes
+ jnp.sum((x * y).real, axes
  test_laws.py::test_a_turn_of_complex_numbers_turns_the_step[radial_brake]

Signs of complex numbers agree where their product is positive | engine/arithmetic.py
- (jnp.sign(x).conj() * jnp.sign(y)).real > 0
+ (jnp.sign(x) * jnp.sign(y)).real > 0
  test_laws.py::test_a_turn_of_complex_numbers_turns_the_step[cautious]

A part of a complex number gets half of the noise | engine/arithmetic.py
- return jnp.sqrt(2).astype(x.real.dtype) * x if jnp.iscomplexobj(x) else x
+ return x
  test_iterates.py::test_noise_of_every_real_number[complex128]

The imaginary part of a memory is lost | moments/storages.py
- Form(_of_real(lambda x, key: {"": x.astype(dtype)}),
+ Form(lambda x, key: {"": x.real.astype(dtype)},
  test_stored.py::test_complex_numbers_are_kept_whole[cast]

The curvature of a complex number is the sum over its parts | wrappers/curvature.py
- (a * b).real / _parts(a)
+ (a * b).real
  test_parameter_free.py::test_curvatures_of_complex_numbers_are_means_over_both_parts

A pair without curvature is kept | blocks/quasi_newton.py
- keep = products[s, y] > 1e-10 * size
+ keep = products[s, y] != 0
  test_second_order.py::test_lbfgs_equals_the_two_loops[10-True]

The direction of Polak and Ribiere may turn back | blocks/quasi_newton.py
- beta = jnp.maximum(safe_divide(above, below), 0)
+ beta = safe_divide(above, below)
  test_second_order.py::test_conjugate_gradients[polak_ribiere-None]

A spike is usual | wrappers/skipping.py
- return x - mean <= factor * deviation
+ return x - mean <= factor * deviation + 100
  test_spikes.py::test_skip_spikes[4]

The curvature of a step is not asked | blocks/linesearch.py
- good = (x.value <= begin.value + slope_rtol * x.a * begin.slope + tol) & flat
+ good = x.value <= begin.value + slope_rtol * x.a * begin.slope + tol
  test_second_order.py::test_every_step_meets_the_wolfe_conditions[rosenbrock_2-0.1]

The slope promises nothing | blocks/linesearch.py
- bound = (1 + rtol) * begin.value + slope_rtol * a * begin.slope + atol
+ bound = (1 + rtol) * begin.value + atol
  test_second_order.py::test_backtracking_meets_the_condition_of_armijo

A schedule is computed for every leaf | engine/control.py
- return jax.tree.map(over_one, scalars)
+ return scalars
  test_programs.py::test_a_schedule_is_computed_once_for_all_leaves

Equal eigenvalues turn into one another | moments/bases.py
- return (w, q), (dw, q @ safe_divide(turned, gaps))
+ return (w, q), (dw, q @ (turned / gaps))
  test_laws.py::test_derivatives_are_finite_at_zero_gradients[whiten]

Fromage does not contract | blocks/radius.py
- return (u - here.param * (here.shared * here.shared / (1 + r))) / r
+ return u - here.param * (here.shared * here.shared / (1 + r))
  test_oracles.py::test_float64_equals_the_paper[fromage-closed over]

A flag may be anything | values/arguments.py
- bool: Kind(lambda x: isinstance(x, (bool, np.bool_)), ("True or False",)),
+ bool: Kind(lambda x: True, ("True or False",)),
  test_misuse.py::test_construction

A NaN is a number like others | values/arguments.py
- if isinstance(x, float) and not math.isfinite(x) and name in self.kinds:
+ if isinstance(x, float) and math.isinf(x) and name in self.kinds:
  test_misuse.py::test_construction

An error from within does not name what was given | values/arguments.py
- error.args = (f"{self.name}({given}): {error}",)
+ error.args = (f"{self.name}: {error}",)
  test_misuse.py::test_construction

Strings are leaves | engine/trees.py
- return getattr(dtype, "kind", "V") not in "OSUMm"
+ return getattr(dtype, "kind", "V") not in "O"
  test_misuse.py::test_use[init-params]

A loss may be a vector | checks.py
- if not is_number or np.shape(value) or not jax.numpy.issubdtype(
+ if not is_number or not jax.numpy.issubdtype(
  test_misuse.py::test_training[fit-loss_fn]

A stop that returns nothing goes on | training/fit.py
- if answer is not LEFT and (not trees.is_number(answer) or np.shape(answer)):
+ if answer is not LEFT and np.shape(answer):
  test_misuse.py::test_training[fit-stop]

An evaluation may be a string | training/fit.py
- if not trees.is_number(x) or np.shape(x) or np.iscomplexobj(x):
+ if np.shape(x) or np.iscomplexobj(x):
  test_misuse.py::test_training[fit-evaluate]

The squares are not halved | interop/least_squares.py
- loss = 0.5 * sum(
+ loss = sum(
  test_least_squares.py::test_finds_what_scipy_finds[gauss_newton]

A word that stands elsewhere is one removed and one added | notebook/compare.py
- j = next((j for j in new if names[1][j] == names[0][i]), None)
+ j = None
  test_compare.py::test_words_added_removed_moved

A number that differs is passed over | notebook/compare.py
- elif not _same(x, y):
+ elif y is None:
  test_compare.py::test_numbers_by_their_names

torch's AdamW decays as optax's | notebook/others.py
- "AdamW": "adamw(0.001, weight_decay=0.01)",
+ "AdamW": "adamw(0.001)",
  test_words_of_others.py::test_three_steps_of_torch[AdamW]

A fact is told at every word | notebook/words.py
- if k in ELSEWHERE and k not in self._told]
+ if k in ELSEWHERE]
  test_words_of_others.py::test_a_fact_is_told_once_and_where_it_is_in_use

What a user wrote is HTML | notebook/html.py
- return html.escape(str(x))
+ return str(x)
  test_looks.py::test_long_arguments_are_folded_and_all_is_escaped

Bytes of a row in place of those of a number | notebook/tables.py
- key: _bytes(part) / SIDE**2
+ key: _bytes(part) / SIDE
  test_looks.py::test_bytes_per_parameter[adam-8]

A path ends one step early | notebook/responses.py
- None, steps + 1)[1]
+ None, steps)[1]
  test_plots.py::test_paths

The momentum that NAdam looks ahead with is one step late | schedules.py
- return init_value * (1 - 0.5 * 0.96 ** (t * momentum_decay))
+ return init_value * (1 - 0.5 * 0.96 ** ((t - 1) * momentum_decay))
  test_words_of_others.py::test_three_steps_of_torch[NAdam]
"""


def row(text):
    head, old, new, test = text.splitlines()
    what, file = head.split(" | ")
    return pytest.param(file, old[2:], new[2:], test.strip(), id=what)


ROWS = [row(text) for text in FAULTS.strip().split("\n\n")]


# Faults are tried in forks of one process that has imported what takes long, and not the package.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["chex", "jax.numpy", "optax", "pytest"])


def ended_by(command, copy, out):
    """In its own process: pytest, with the copy as the package."""
    with out.open("wb") as f:
        for stream in (1, 2):
            os.dup2(f.fileno(), stream)
    os.chdir(copy)
    for name in [k for k in os.environ if k.startswith("PYTEST_")]:
        del os.environ[name]
    paths = (str(copy), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # of processes that tests start
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    code = pytest.main(command)
    sys.stdout.flush()
    os._exit(code)


def run_on_a_copy(tmp_path, test, file, old, new):
    """Exit status and output of the test on a copy of the package with one fault."""
    package = shutil.copytree(ROOT / "adamfx", tmp_path / "adamfx")
    source = (package / file).read_text()
    assert source.count(old) == 1, f"{file} has {source.count(old)} times: {old}"
    (package / file).write_text(source.replace(old, new))
    with (package / "__init__.py").open("a") as f:
        f.write('\nimport pathlib\npathlib.Path(__file__).with_name("imported").touch()\n')
    options = ["-x", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    out = tmp_path / "output"
    process = FORKS.Process(
        target=ended_by, args=([*options, str(ROOT / "tests" / test)], tmp_path, out)
    )
    process.start()
    process.join()
    text = out.read_text()
    assert (package / "imported").exists(), f"the copy was not imported\n{text}"
    return process.exitcode, text


@pytest.mark.slow
def test_a_copy_without_a_fault_passes(tmp_path):
    """One test on a copy; that all of them pass on the package itself is the rest of the suite."""
    file, old, _, test = ROWS[0].values
    code, text = run_on_a_copy(tmp_path, test, file, old, old)
    assert code == 0, text[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "old", "new", "test"), ROWS)
def test_fault_is_noticed(file, old, new, test, tmp_path):
    code, text = run_on_a_copy(tmp_path, test, file, old, new)
    assert code == 1, f"exit {code}; 1 means failed\n{text[-3000:]}"
    assert "AssertionError" in text, "by another error than a failed comparison"
