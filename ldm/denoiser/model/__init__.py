"""Networks that denoise, schedules of noise, and the loss."""
