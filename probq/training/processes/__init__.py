"""Several processes fit one network together: what they share, and what each has of its own."""
