"""What a trained model does elsewhere."""
