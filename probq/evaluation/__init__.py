"""Evaluation says how good a result is: metrics, diagnostics of a posterior, studies of many fits, and reports."""
