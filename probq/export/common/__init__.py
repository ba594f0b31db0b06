"""Several targets share this: folders as artefacts, results of programs, requantization behind layers."""
