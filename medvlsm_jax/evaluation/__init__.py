"""Numbers: metrics of masks, their statistics, and what is made of a run's cases."""
