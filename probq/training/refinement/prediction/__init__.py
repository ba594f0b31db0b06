"""This room predicts from choices that were measured what others give."""
