"""From a posterior to widths and codes: the most probable ones or draws, always within the budget."""
