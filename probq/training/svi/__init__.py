"""Stochastic variational inference goes in steps: each has a loss, its gradient, the budget and a record."""
