"""Every optimizer is a sentence over the blocks.

Names, arguments and defaults are optax's where optax has the optimizer. What an argument means is
written at the block it goes to. Learning rates are numbers >= 0 or schedules; decays are numbers in
[0, 1), arrays or schedules. Each docstring says where the libraries differ: the default here, and
the other forms as sentences.
"""
