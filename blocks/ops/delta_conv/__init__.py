"""The delta convolution as an operation, in several forms that give the same: see ``blocks.delta_conv``."""
