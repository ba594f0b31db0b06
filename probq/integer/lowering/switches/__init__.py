"""Several integer models become one, with a switch between them."""
