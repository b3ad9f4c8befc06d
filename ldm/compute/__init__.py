"""What a stage that computes needs: processes and threads, attention, saved states."""
