"""The delta convolution as an operation, in several forms that give the same: see :mod:`blocks.delta_conv`."""
