"""Steps of stochastic variational inference: the loss, its gradient, the budget and the record of each step."""
