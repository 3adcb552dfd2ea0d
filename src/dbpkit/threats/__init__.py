"""What a perturbation may be: budgets on pixels and on features."""
