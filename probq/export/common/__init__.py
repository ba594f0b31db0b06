"""What several targets share: folders as artefacts, results of programs, requantization behind layers."""
