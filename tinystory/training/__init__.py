"""Train a model: the configuration, the steps, the folder and the plots of a run. Knows no chat."""
