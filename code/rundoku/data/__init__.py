"""Real models and data sets: where from, under which licence, loaded how."""
