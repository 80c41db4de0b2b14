"""The IMDB experiment: data, models, simulated labels and the evaluation, one command a stage."""
