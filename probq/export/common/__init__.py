"""Several targets have this in common: folders as artefacts, results of programs, requantization behind layers."""
