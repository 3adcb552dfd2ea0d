"""Figures of speed and memory, measured on the machine they are run on; never part of a test."""
