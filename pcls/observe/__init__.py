"""What a run tells: metric files, the progress line, its environment."""
