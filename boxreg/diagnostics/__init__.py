"""What is wrong with a training set-up: `audit` examines it, `overfit` trains it on one batch."""
