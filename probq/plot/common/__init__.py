"""All pictures share these sizes, colours, names of rows, and ways into files."""
