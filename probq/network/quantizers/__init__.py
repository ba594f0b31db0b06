"""This room holds what stands at each weight and input of a layer: ladder, gates and scales, and the plan for them."""
