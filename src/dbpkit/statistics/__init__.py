"""Estimates, intervals and resampling: pure functions of numbers."""
