"""Measuring denoisers and mixers: FLOPs, parameters, time, memory."""
