"""How `probq.lower` works inside: symbolic integers, and what each operation and layer makes of them."""
