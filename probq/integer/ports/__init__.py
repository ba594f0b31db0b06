"""Inputs and outputs of integer models are put together here, and taken apart."""
