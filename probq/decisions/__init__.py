"""Decisions turn a posterior into widths and codes, the most probable ones or draws, always within the budget."""
