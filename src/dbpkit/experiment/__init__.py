"""What an experiment is: its spec, the parts made from it, what the attacker knows, how it is executed."""
