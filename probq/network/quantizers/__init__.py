"""What stands at each weight and each input of a layer: a ladder of codebooks, gates, scales, and the plan for them."""
