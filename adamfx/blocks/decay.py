"""Weight decay. Where it stands in the chain says which kind it is.

coupled       chain(add_decayed_weights(wd), scale_by_moments(...), ..., scale_by_lr(lr))
              L2 regularisation: the decay goes through the moments
decoupled     chain(scale_by_moments(...), ..., add_decayed_weights(wd), scale_by_lr(lr))
              AdamW: Loshchilov & Hutter 2019, algorithm 2
independent   chain(..., scale_by_lr(lr, flip_sign=False), add_decayed_weights(wd), scale(-1.0))
              the learning rate does not scale the decay
"""

from __future__ import annotations

from adamfx import checks
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.arguments import Mask


@block
def add_decayed_weights(weight_decay: Rate = 0.0, mask: Mask = None):
    """u <- u + weight_decay p. Needs params.

    Args:
      weight_decay: >= 0, or a schedule.
      mask: where it acts: a tree of bools (or a prefix of one), or a callable of the parameters that
        returns one, e.g. `ndim_at_least(2)`. None: everywhere.
    """
    checks.number("add_decayed_weights", "weight_decay", weight_decay, low=0)
    # No compiler leaves out 0 p, which is NaN for an infinite p; so each step would read all parameters.
    nothing = isinstance(weight_decay, int | float) and weight_decay == 0

    def leaf(u, here):
        return u if nothing else u + here.shared * here.param

    def shared(step):
        return value_at(weight_decay, step.count)

    return leafwise(leaf, shared=shared, needs_params=True, mask=mask)
