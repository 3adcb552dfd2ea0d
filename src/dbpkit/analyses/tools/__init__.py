"""Means that several analyses share."""
