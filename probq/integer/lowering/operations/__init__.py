"""What each operation and layer of a network becomes in integers."""
