"""Look inside a model: what it would say after each layer, where its heads look, and what each part is good for."""
