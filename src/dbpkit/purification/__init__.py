"""Purifiers, the samplers they run, and what an attacker differentiates of them."""
