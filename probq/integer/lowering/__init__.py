"""`probq.lower` works with symbolic integers, and with what each operation and layer makes of them."""
