"""What filters of documents do to the model that is trained on what they leave."""
