"""What a stage that computes needs: devices, layers, trainings, saved states."""
