"""From noise and token states to images."""
