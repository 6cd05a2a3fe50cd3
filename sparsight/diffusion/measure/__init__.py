"""Comparing students with the untouched model: FLOPs, parameters, time and memory."""
