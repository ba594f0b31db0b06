"""How good what was found is: metrics, diagnostics of a posterior, studies of many fits, and reports."""
