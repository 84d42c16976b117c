"""How a model is asked: continuations, options, orders, generation, losses."""
