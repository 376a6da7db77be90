"""What the experiments minimise: pure functions of parameters, usable on their own."""
