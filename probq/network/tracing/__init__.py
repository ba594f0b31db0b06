"""One run of a network on an example shows what it computes, and the layers found on the way."""
