"""Checks of a model and its settings, before a number is believed."""
