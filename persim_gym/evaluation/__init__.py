"""How good a model is: prediction errors, returns, and forecasts with their calibration."""
