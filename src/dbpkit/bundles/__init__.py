"""A run in one file that a stranger can judge again: packed, opened, verified, and ranked beside others.

A bundle comes from somebody else. It is read as a hostile file: nothing in it chooses what is imported,
opened or overwritten.
"""
