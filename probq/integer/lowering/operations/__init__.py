"""Each operation and layer of a network becomes integers here."""
