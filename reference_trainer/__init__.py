"""The training program that proves boxreg."""
