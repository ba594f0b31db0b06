"""Checkpoints keep all that the rest of a fit depends on, so that the same call goes on where a fit was killed."""
