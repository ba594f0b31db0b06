"""This room has the distributions of widths and of codes, with exact divergences."""

from probq.network.distributions import kl as kl  # torch.distributions learns the divergences here
