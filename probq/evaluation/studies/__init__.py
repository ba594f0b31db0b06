"""Studies answer questions that take several fits or many networks: fronts, restarts, temperatures, ensembles."""
